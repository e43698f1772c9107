"""Files on any filesystem that Beam knows: read, list, and write so that no half-written file shows.

Reads, and all that is done on filesystems other than the local one, are tried again where they fail for a
reason that passes.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from imgindex.errors import DamagedError, OutputError
from imgindex.io.object_protocol import LAST, Found, Page, Versioned
from imgindex.io.object_stores import object_store
from imgindex.io.retries import retried
from imgindex.runtime.temporary_folder import TemporaryFolder

# Files in the making, of which nothing that reads an output looks at any.
_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.partial")

# What Beam takes for a scheme. "://" may stand in the name of a local file, too.
_SCHEME = re.compile("[a-zA-Z][-a-zA-Z0-9+.]*://")

# Files that are looked at to find the next folders: small, for those of a folder that is found are in vain.
_FOLDER_PAGE = 50


def is_local(path: str) -> bool:
    """Whether `path` is on the local filesystem: it does not begin with a scheme, as Beam reads one."""
    return _SCHEME.match(path) is None


def join(base: str, *parts: str) -> str:
    """`parts`, /-separated, below `base`."""
    return "/".join([base.rstrip("/") or "/", *parts])


class NotAFileError(OSError):
    """A directory, a pipe, a device or a socket where a file was to be read."""


@contextlib.contextmanager
def as_output_error(action: str, path: str) -> Iterator[None]:
    """Raises OutputError, which names `action` and `path`, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot {action} {path}: {error.strerror or error}") from error


def read_bytes(path: str) -> bytes:
    """The whole file. Raises FileNotFoundError and other OSErrors."""
    return retried(lambda: Path(path).read_bytes() if is_local(path) else read_once(path))


def read_start(path: str, count: int) -> bytes:
    """At most the first `count` bytes of a file, which may be a pipe. Raises OSErrors."""
    if is_local(path):
        with Path(path).open("rb") as file:
            return file.read(count)
    return retried(lambda: read_once(path, size=count))


def read_regular(path: str, limit: int) -> bytes:
    """A regular file, of one that is longer than `limit` bytes the first `limit` + 1.

    Raises:
      NotAFileError: it is another kind of file; to read that might take for ever.
      OSError: FileNotFoundError and others.
    """
    return retried(
        lambda: _read_local_regular(path, limit) if is_local(path) else read_once(path, size=limit + 1)
    )


def _read_local_regular(path: str, limit: int) -> bytes:
    # Else the opening of a pipe would wait for a writer; for regular files it makes no difference.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFileError(errno.EINVAL, "it is no regular file", path)
        with open(descriptor, "rb", closefd=False) as file:
            # What a file says of its size saves memory; it may have grown since.
            data = file.read(min(status.st_size, limit) + 1)
            return data if len(data) <= status.st_size else data + file.read(limit + 1 - len(data))
    finally:
        os.close(descriptor)


def read_once(path: str, start: int = 0, size: int | None = None) -> bytes:
    """`size` bytes of an object from `start`, or all that follow; not tried again. Raises OSErrors."""
    with object_store(path) as store:
        return store.read(path, start, size)


def read_limited(path: str, limit: int) -> bytes:
    """The whole of a regular file of at most `limit` bytes, which are looked at first. Raises OSErrors."""
    if is_local(path):
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
        size = status.st_size
    else:
        size = find(path).size
    if size > limit:
        raise OSError(errno.EFBIG, f"{size} bytes are more than the {limit} that are expected", path)
    return read_bytes(path)


def read_written(path: str, limit: int) -> bytes:
    """The whole of a file that an output should hold, of at most `limit` bytes. Raises OutputError."""
    with as_output_error("read", path):
        try:
            return read_limited(path, limit)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise DamagedError(f"{path} is damaged: {error.strerror}") from error


def page(prefix: str, after: str = "", limit: int | None = None) -> Page:
    """Files of an object store whose paths begin with `prefix` and sort behind `after`. Raises OSError.

    They are the first ones, at most `limit`, or all: `more` tells whether there are others.
    """

    def ask() -> Page:
        with object_store(prefix) as store:
            return store.page(prefix, after, limit)

    return retried(ask)


def each_object(prefix: str, after: str = "") -> Iterator[Found]:
    """All files of an object store as of `page`, page by page, in the order of their paths."""
    more = True
    while more:
        found, more = page(prefix, after)
        yield from found
        after = found[-1].path if found else after
        more = more and bool(found)


def find(path: str) -> Found:
    """A file of an object store. Raises OSError, FileNotFoundError where there is none."""
    found = retried(lambda: _find(path))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "No such file", path)
    return found


def _find(path: str) -> Found | None:
    with object_store(path) as store:
        return store.find(path)


def exists(path: str) -> bool:
    """Whether there is a file, or on local filesystems a directory, at `path`. Raises OutputError."""
    with as_output_error("look at", path):
        if not is_local(path):
            return retried(lambda: _find(path)) is not None
        # Path.exists also answers no where it could not look, and a build deletes what is not there whole.
        try:
            Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def modified(path: str) -> float:
    """When a file was last written, in seconds since the epoch. Raises OutputError."""
    with as_output_error("look at", path):
        return Path(path).stat().st_mtime if is_local(path) else find(path).modified


def list_names(directory: str, suffix: str) -> list[str]:
    """The names of the finished files in `directory` that end in `suffix`, sorted. Raises OutputError."""
    with as_output_error("list", directory):
        if is_local(directory):
            names = [entry.name for entry in _entries(directory)]
        else:
            below = join(directory, "")
            names = [found.path.removeprefix(below) for found in each_object(below)]
    return sorted(name for name in names if name.endswith(suffix) and "/" not in name)


def list_modified(directory: str) -> list[tuple[str, float]]:
    """What lies in `directory`, by name, and when each was last written, in seconds since the epoch.

    Raises OutputError.
    """
    with as_output_error("list", directory):
        if is_local(directory):
            return [(entry.name, entry.stat().st_mtime) for entry in _entries(directory)]
        below = join(directory, "")
        return [(found.path.removeprefix(below), found.modified) for found in each_object(below)]


def list_folders(directory: str) -> list[str]:
    """The names of the folders in `directory`, sorted. Raises OutputError."""
    with as_output_error("list", directory):
        if is_local(directory):
            return sorted(entry.name for entry in _entries(directory) if entry.is_dir())
        return sorted(_remote_folders(join(directory, "")))


def _entries(directory: str) -> list[os.DirEntry[str]]:
    """What a local directory holds: nothing where there is none. Raises OSErrors."""
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remote_folders(below: str) -> set[str]:
    folders, after, more = set(), "", True
    while more:
        # One request a folder, and not one for every thousand files in it.
        found, more = page(below, after, _FOLDER_PAGE)
        names = [file.path.removeprefix(below).partition("/") for file in found]
        folders |= {name for name, slash, _ in names if slash}
        if found:
            name, slash, _ = names[-1]
            after = f"{below}{name}/{LAST}" if slash else found[-1].path
    return folders


@contextlib.contextmanager
def staged(path: str) -> Iterator[Path]:
    """Yields a local path to write; when the block ends well, the file appears at `path`, whole.

    Raises OutputError where `path` cannot be written.
    """
    with as_output_error("write", path):
        if is_local(path):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
            try:
                yield partial
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        else:
            with TemporaryFolder() as folder:
                partial = Path(folder) / "staged"
                yield partial
                retried(lambda: _upload(partial, path))


def _upload(source: Path, path: str) -> None:
    with object_store(path) as store:
        store.write(source, path)


def write_bytes(path: str, data: bytes) -> None:
    """Writes `data` so that `path` holds all of it or what it held before. Raises OutputError."""
    with staged(path) as partial:
        partial.write_bytes(data)


def read_versioned(path: str) -> Versioned | None:
    """All of a small file with its version, which `replace` asks for; None where there is no file.

    Raises OutputError.
    """
    with as_output_error("read", path):
        if not is_local(path):
            return retried(lambda: _read_versioned(path))
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            return None
        return Versioned(data, hashlib.sha256(data).hexdigest())


def _read_versioned(path: str) -> Versioned | None:
    with object_store(path) as store:
        return store.read_versioned(path)


def replace_version(path: str, data: bytes, version: str | None) -> str | None:
    """Makes `path` hold `data` if it has `version` still; None stands for no file.

    An object store looks and writes in one step, where it has conditional writes. No other writer may have
    the same `data`.

    Returns the new version, or None where the file has another one and stays as it is. Raises OutputError.
    """
    if is_local(path):
        found = read_versioned(path)
        if (found and found.version) != version:
            return None
        write_bytes(path, data)
        return hashlib.sha256(data).hexdigest()
    with as_output_error("write", path):
        replaced = retried(lambda: _replace_remotely(path, data, version))
    if replaced is None:
        # A first attempt may have arrived though its answer was lost: the next one finds what it wrote.
        found = read_versioned(path)
        replaced = found.version if found and found.data == data else None
    return replaced


def _replace_remotely(path: str, data: bytes, version: str | None) -> str | None:
    with object_store(path) as store:
        return store.replace(path, data, version)


def delete(path: str) -> None:
    """Deletes one file. Raises OutputError."""
    with as_output_error("delete", path):
        if is_local(path):
            Path(path).unlink()
        else:
            retried(lambda: _delete_remotely([path]))


def _delete_remotely(paths: list[str]) -> None:
    if paths:
        with object_store(paths[0]) as store:
            store.delete(paths)


def delete_tree(directory: str) -> None:
    """Deletes everything below `directory`, if there is anything. Raises OutputError."""
    with as_output_error("delete", directory):
        if is_local(directory):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory)
        else:
            retried(lambda: _delete_remotely([file.path for file in each_object(join(directory, ""))]))


def last_written(directory: str) -> float:
    """When the newest file below `directory` was written, in seconds since the epoch; 0 where there is none.

    By the clock of its storage. Raises OutputError.
    """
    with as_output_error("list", directory):
        if is_local(directory):
            walked = os.walk(directory, onerror=_raise_unless_gone)
            files = (Path(folder, name) for folder, _, names in walked for name in names)
            return max(map(_time_of, files), default=0.0)
        return max((found.modified for found in each_object(join(directory, ""))), default=0.0)


def _time_of(file: Path) -> float:
    try:
        return file.lstat().st_mtime
    except FileNotFoundError:  # as of what its writer has just finished, and given another name
        return 0.0


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def abort_uploads(prefix: str, before: float, is_ours: Callable[[str], bool]) -> None:
    """Gives up uploads that writers that died have left below `prefix`, whose parts the store still keeps.

    Only those that began `before`, in seconds since the epoch by the store's clock, to a path that `is_ours`.
    Raises OSError.
    """

    def abort() -> None:
        with object_store(prefix) as store:
            store.abort_uploads(prefix, before, is_ours)

    if not is_local(prefix):
        retried(abort)


def delete_partials(directory: str, names: re.Pattern[str]) -> None:
    """Deletes what writers that died have left of the files in `directory` whose names match `names`.

    What lies in its folders stays, and so does any other file, whatever its name ends in. On an object store
    there is nothing to delete: an object shows only when it is whole. Raises OutputError.
    """
    if is_local(directory):
        with as_output_error("delete", directory):
            for entry in _entries(directory):
                partial = _PARTIAL.fullmatch(entry.name)
                if partial and names.fullmatch(partial["name"]) and entry.is_file(follow_symlinks=False):
                    Path(entry.path).unlink()
