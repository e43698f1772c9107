"""Parts of files, on any filesystem: one range, or a file that is read here and there."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from imgindex.io.filesystem import find, is_local, read_once
from imgindex.io.retries import retried

# Bytes of an object that are read at once: a request takes about as long as they do.
_READ_AHEAD = 4 << 20


def read_range(path: str, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start`; fewer where it ends before. Raises OSErrors."""
    read = _read_local if is_local(path) else read_once
    return retried(lambda: read(path, start, size))


def _read_local(path: str, start: int, size: int) -> bytes:
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(size)


@contextlib.contextmanager
def reader(path: str) -> Iterator[IO[bytes]]:
    """Yields a file that can be read from anywhere, a few MiB of an object at a time. Raises OSErrors."""
    if is_local(path):
        with Path(path).open("rb") as file:
            yield file
    else:
        with io.BufferedReader(_Remote(path), _READ_AHEAD) as buffered:
            yield cast(IO[bytes], buffered)


class _Remote(io.RawIOBase):
    """A file of an object store, read by ranges."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._size = find(path).size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        data = read_range(self._path, self._position, wanted) if wanted else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
