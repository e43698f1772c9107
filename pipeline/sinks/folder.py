"""A folder of files as a sink: written beside its place, read back, and put there by a rename."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from imgindex.errors import OutputError, UsageError
from imgindex.io import filesystem
from imgindex.io.digest_json import seal, unseal
from imgindex.io.paths import absolute
from imgindex.io.written_files import fault_in, placed
from imgindex.records import WrittenFile
from imgindex.runtime import signals
from imgindex.sinks.source import Source
from imgindex.text import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Says in an export what it holds. A folder without it is none of ours.
DESCRIPTION = "export.json"
_SCHEMA_VERSION = 1
_MAX_DESCRIPTION_BYTES = 1 << 24


class NewFiles:
    """The files of a folder in the making."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.written: list[WrittenFile] = []
        # What the description says beside, or in place of, what it says of every format.
        self.facts: dict[str, object] = {}

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Opens the new file `path`, /-separated, to be written from its first byte to its last."""
        whole = self._folder / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        with whole.open("xb") as file:
            hashed = _Hashed(file)
            yield cast(BinaryIO, hashed)  # which has all of it that writers use
            file.flush()
            os.fsync(file.fileno())
        self.written.append(WrittenFile(path, hashed.size, hashed.digest.hexdigest()))


class _Hashed(BufferedIOBase):
    """A file that keeps the size and SHA-256 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        count = self._file.write(data)
        self.digest.update(data)
        self.size += count
        return count

    def tell(self) -> int:
        return self.size


# Writes all batches of a source to new files.
WriteFiles = Callable[[NewFiles, Source], None]


class FolderSink:
    """A folder of the files that a function makes of a generation, and a description of them."""

    def __init__(self, folder: str, kind: str, write: WriteFiles) -> None:
        """`write` writes the format `kind`. Raises UsageError where `folder` cannot be replaced."""
        if not filesystem.is_local(folder):
            raise UsageError(f"{folder} is on an object store; export to a local folder and copy that")
        # Where a link leads is replaced, not the link.
        self.folder = Path(os.path.realpath(absolute(folder)))
        self._refuse_what_is_not_ours(every_byte=True)
        self._kind = kind
        self._write = write
        self._partial = self._beside("partial")
        self._replaced = self._beside("replaced")
        self._files: list[WrittenFile] = []
        self.description: dict[str, Any] = {}  # of what `create` has written
        self._lock: int | None = None

    def _beside(self, state: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}.{state}")

    def _refuse_what_is_not_ours(self, *, every_byte: bool) -> None:
        """Raises UsageError where the folder cannot be replaced, or holds what no export has written.

        Without `every_byte` only the sizes of what an export has written are compared.
        """
        if os.path.ismount(self.folder):
            raise UsageError(f"{self.folder} is a mount point, which no rename replaces; name a folder in it")
        if Path.cwd().is_relative_to(self.folder):
            raise UsageError(
                f"the current directory lies in {self.folder}, which would be replaced; change to another "
                "directory, or name a new folder"
            )
        described = _described(self.folder)
        ours = {each.as_posix() for path in described for each in (Path(path), *Path(path).parents)}
        found = _paths_in(self.folder)
        others = sorted(found - ours)
        if others:
            raise UsageError(
                f"{self.folder} holds {others[0]}, which no export has written; name a new folder"
            )
        for path in sorted(found & described.keys()):
            file = described[path]
            fault = file and fault_in(placed(str(self.folder), file), every_byte=every_byte)
            if fault:
                raise UsageError(f"{fault}; move it away, or name a new folder")

    def _mode(self) -> int | None:
        """The permissions of the folder that is replaced; None where there is none."""
        try:
            return stat.S_IMODE(self.folder.stat().st_mode)
        except FileNotFoundError:
            return None

    def create(self, source: Source) -> None:
        """Writes a hidden folder beside the place of the export."""
        with filesystem.as_output_error("write", str(self.folder)):
            # What may be for few eyes only is shown to no others while it is written.
            self._partial.mkdir(0o777 if self._mode() is None else 0o700, parents=True)
            self._lock = _lock(self._partial)
            files = NewFiles(self._partial)
            self._write(files, source)
            self.description = self._describe(source, files)
            with files.open(DESCRIPTION) as file:
                file.write(seal(self.description))
            self._files = files.written

    def _describe(self, source: Source, files: NewFiles) -> dict[str, Any]:
        manifest = source.manifest
        return {
            "schema_version": _SCHEMA_VERSION,
            "format": self._kind,
            "generation": manifest.generation,
            # A forged manifest may hold text there that cannot be encoded.
            "spec": printable(manifest.spec.digest),
            "backbone": printable(manifest.spec.backbone),
            "metric": manifest.metric,
            "dims": manifest.dims,
            "images": manifest.items,
            "normalized": source.normalize,
            **files.facts,
            "files": [asdict(file) for file in files.written],
        }

    def verify(self) -> None:
        """Reads every byte back. Raises OutputError where one is another than was written."""
        for file in self._files:
            fault = fault_in(placed(str(self._partial), file), every_byte=True)
            if fault is not None:
                raise OutputError(f"the export cannot be read back: {fault}")

    def switch(self) -> None:
        """Renames the new folder to the place of the export, out of which it renames what was there."""
        self._refuse_what_is_not_ours(every_byte=False)  # which may have come meanwhile
        with filesystem.as_output_error("replace", str(self.folder)):
            mode = self._mode()
            if mode is not None:
                self._partial.chmod(mode)
            with contextlib.suppress(FileNotFoundError):
                self.folder.rename(self._replaced)
            try:
                self._partial.rename(self.folder)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    self._replaced.rename(self.folder)
                raise
        self._unlock()
        signals.done(f"{self.folder} is complete")

    def prune(self) -> None:
        """Deletes what was in the place of the export, and what exports to it that were killed have left."""
        with filesystem.as_output_error("delete what it replaced beside", str(self.folder)):
            ours = re.compile(rf"\.{re.escape(self.folder.name)}\.[0-9a-f]{{32}}\.(partial|replaced)")
            with os.scandir(self.folder.parent) as entries:
                left = [(Path(entry.path), ours.fullmatch(entry.name)) for entry in entries]
            for path, match in left:
                if match and (match[1] == "replaced" or _is_left(path)):
                    shutil.rmtree(path)

    def discard(self) -> None:
        """Deletes the hidden folder as far as it can: a thread may still be writing to it."""
        shutil.rmtree(self._partial, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(folder: Path) -> int | None:
    """Locks a folder until the descriptor is closed, or its process ends. None: it cannot be locked."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another holds it, or, as on NFS, folders have no locks
        os.close(descriptor)
        return None
    return descriptor


def _is_left(partial: Path) -> bool:
    """Whether the process that wrote a hidden folder has ended."""
    descriptor = _lock(partial)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _paths_in(folder: Path) -> set[str]:
    """All that lies in `folder`, /-separated; nothing where it is not there. Raises UsageError for a file."""

    def fail(error: OSError) -> None:
        raise error

    try:
        with filesystem.as_output_error("list", str(folder)):
            return {
                Path(where, name).relative_to(folder).as_posix()
                for where, folders, files in os.walk(folder, onerror=fail)
                for name in folders + files
            }
    except OutputError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError) and cause.filename == str(folder):
            return set()
        if isinstance(cause, NotADirectoryError):
            raise UsageError(f"{folder} is a file; name a folder") from error
        raise


def _described(folder: Path) -> dict[str, WrittenFile | None]:
    """The files of an export as it has written them, by their paths; nothing for what is no export.

    The description, which is sealed, does not describe itself.
    """
    try:
        data = filesystem.read_regular(str(folder / DESCRIPTION), _MAX_DESCRIPTION_BYTES)
        files = [WrittenFile(**file) for file in unseal(data)["files"]]
        return {Path(file.path).as_posix(): file for file in files} | {DESCRIPTION: None}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
