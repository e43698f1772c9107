"""Objects that a store keeps packed: those with ``Content-Encoding: gzip``.

Stores give such objects as they lie there. An object is known to be packed by its first two bytes, with which
no image, list or table begins. So no request asks for its metadata.
"""

import gzip
import io
import zlib
from typing import IO, cast

from imgindex.io.filesystem import is_local

_MARK = b"\x1f\x8b"


class DamagedEncodingError(OSError):
    """A packed object cannot be unpacked, for it is damaged or cut off."""


def unpacked(path: str, data: bytes, limit: int | None = None) -> bytes:
    """The content of the file `path`, whose bytes are `data`: unpacked where it is an object that is packed.

    Of content that is longer than `limit` bytes it is the first `limit` + 1, so that little packed data
    cannot fill the memory. Data that is longer stays as it is. Raises DamagedEncodingError.
    """
    if is_local(path) or not data.startswith(_MARK) or (limit is not None and len(data) > limit):
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as content:
            return content.read(-1 if limit is None else limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedEncodingError(f"its gzip encoding is damaged: {error}") from error


def unpacked_file(path: str, file: IO[bytes]) -> IO[bytes]:
    """`file`, or its content where it is an object that is packed; what is damaged raises as it is read."""
    is_packed = not is_local(path) and file.read(len(_MARK)) == _MARK
    file.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=file)) if is_packed else file
