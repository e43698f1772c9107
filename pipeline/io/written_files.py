"""The files of an output as they were written: described by size and SHA-256, and compared with that."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

from imgindex.errors import DamagedError, OutputError
from imgindex.io import filesystem
from imgindex.io.retries import retried
from imgindex.records import WrittenFile

# What is copied from an object store is in memory in pieces of so many bytes, of so many files at once.
_PIECE_BYTES = 8 << 20
_DOWNLOADS = threading.BoundedSemaphore(8)


def describe(file: Path, path: str) -> WrittenFile:
    """Size and SHA-256 of the local `file`, which a generation holds at `path`."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return WrittenFile(path, file.stat().st_size, digest)


def describe_bytes(data: bytes, path: str) -> WrittenFile:
    """Size and SHA-256 of `data`, which a generation holds at `path`."""
    return WrittenFile(path, len(data), hashlib.sha256(data).hexdigest())


def placed(directory: str, file: WrittenFile) -> WrittenFile:
    """`file` of a generation's `directory`, with its whole path."""
    return replace(file, path=filesystem.join(directory, file.path))


def write_described(directory: str, path: str, data: bytes) -> WrittenFile:
    """Writes `data` to `path` in a generation's `directory` and describes it. Raises OutputError."""
    filesystem.write_bytes(filesystem.join(directory, path), data)
    return describe_bytes(data, path)


def fault_of(directory: str, file: WrittenFile) -> str | None:
    """What is wrong with a small file as it lies in a generation's `directory`; None where nothing is."""
    try:
        read_checked(placed(directory, file))
    except DamagedError as error:
        return str(error)
    return None


def fault_in(file: WrittenFile, *, every_byte: bool) -> str | None:
    """What is wrong with a file, whose path is whole; None where nothing is. It is read in pieces.

    Without `every_byte` only its size is compared. Raises OutputError where the file is there, as far as is
    known, but cannot be read.
    """
    with filesystem.as_output_error("read", file.path):
        try:
            local = filesystem.is_local(file.path)
            size = Path(file.path).stat().st_size if local else filesystem.find(file.path).size
            if size != file.size:
                return f"{file.path} has {size} bytes and not the {file.size} that were written"
            if every_byte and _sha256(file.path, size) != file.sha256:
                return str(_other_bytes(file))
        except (FileNotFoundError, NotADirectoryError):
            return f"{file.path} is not there"
    return None


def _sha256(path: str, size: int) -> str:
    """The SHA-256 of the first `size` bytes of a file. Raises OSErrors."""
    if filesystem.is_local(path):
        return describe(Path(path), path).sha256
    digest = hashlib.sha256()

    def read(start: int) -> bytes:
        return retried(lambda: filesystem.read_once(path, start, _PIECE_BYTES))

    for start in range(0, size, _PIECE_BYTES):
        digest.update(read(start))
    return digest.hexdigest()


def localize_checked(file: WrittenFile, folder: Path, *, every_byte: bool = True) -> Path:
    """A local path with the bytes of `file`, whose path is whole: itself where it is local, else in `folder`.

    Raises:
      DamagedError: they are not those that were written. Without `every_byte` only the number of bytes of
        a local file is looked at.
      OutputError: there is no room for the copy.
    """
    if not filesystem.is_local(file.path):
        return _download_checked(file, folder)
    local = Path(file.path)
    try:
        is_as_written = local.stat().st_size == file.size
        if is_as_written and every_byte:
            is_as_written = describe(local, file.path) == file
    except OSError as error:
        raise _unreadable(file, error) from error
    if not is_as_written:
        raise _other_bytes(file)
    return local


def _download_checked(file: WrittenFile, folder: Path) -> Path:
    """Copies an object into `folder` piece by piece. Raises what `localize_checked` does."""
    copy = folder / hashlib.sha256(file.path.encode()).hexdigest()
    digest, size = hashlib.sha256(), 0
    try:
        with _DOWNLOADS, copy.open("wb") as opened:
            # One byte more than there should be shows that there are others.
            while size <= file.size:
                wanted = min(_PIECE_BYTES, file.size + 1 - size)
                piece = _read_piece(file, size, wanted)
                opened.write(piece)
                digest.update(piece)
                size += len(piece)
                if len(piece) < wanted:
                    break
    except OSError as error:
        raise OutputError(
            f"{file.path} cannot be copied to {folder}, which must hold its {file.size} bytes: "
            f"{error.strerror or error}; TMPDIR can name another folder"
        ) from error
    if WrittenFile(file.path, size, digest.hexdigest()) != file:
        copy.unlink()
        raise _other_bytes(file)
    return copy


def _read_piece(file: WrittenFile, start: int, size: int) -> bytes:
    try:
        return retried(lambda: filesystem.read_once(file.path, start, size))
    except OSError as error:
        raise _unreadable(file, error) from error


def read_checked(file: WrittenFile) -> bytes:
    """The bytes of a file, whose path is whole. Raises DamagedError where they are not what was written."""
    try:
        data = filesystem.read_limited(file.path, file.size)
    except OSError as error:
        raise _unreadable(file, error) from error
    if describe_bytes(data, file.path) != file:
        raise _other_bytes(file)
    return data


def _unreadable(file: WrittenFile, error: OSError) -> DamagedError:
    return DamagedError(f"{file.path} cannot be read: {error.strerror or error}")


def _other_bytes(file: WrittenFile) -> DamagedError:
    return DamagedError(f"{file.path} has other bytes than were written")
