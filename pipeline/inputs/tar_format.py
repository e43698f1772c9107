"""The members of tar files: where each lies, so that it is read alone and nothing is unpacked.

The headers are walked here and not by `tarfile`, which takes a damaged header for the end, and reads as much
for a name as a header asks for.
"""

import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

_BLOCK = 512
_END = bytes(_BLOCK)

COMPRESSED_MESSAGE = "a compressed tar can only be read from its beginning; decompress it to .tar"

# A long name or a set of attributes; what claims to be larger is damage.
_MAX_EXTENSION = 1 << 20

# What a file begins with that is a compressed one: gzip, bzip2, xz, Zstandard, LZ4.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")

_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_WITHOUT_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip


class Member(NamedTuple):
    """A file inside of a tar."""

    name: str  # its path there, as of a file in a folder
    offset: int  # of its first byte in the tar
    size: int  # bytes
    is_file: bool  # and no link or device


class TarError(Exception):
    """A tar that cannot be read on, with a reason and a message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def each_member(file: IO[bytes], size: int) -> Iterator[Member]:
    """The members of an opened tar of `size` bytes, in its order, but for folders.

    Raises TarError when what follows the last one is neither whole nor the end.
    """
    position = 0
    long_name = ""
    attributes: dict[str, str] = {}
    of_all: dict[str, str] = {}
    while (header := _header(file, position, size)) is not None:
        data = position + _BLOCK
        if header.type in _EXTENSIONS:
            extension = _extension(file, header, data, size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                long_name = extension.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type == tarfile.XHDTYPE:
                attributes = _attributes(extension, position)
            elif header.type == tarfile.XGLTYPE:
                of_all |= _attributes(extension, position)
            position = data + _padded(header.size)
            continue
        known = of_all | attributes
        if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in known):
            raise TarError("damaged_tar", f"at byte {position} is a sparse file, which is not supported")
        is_file = header.type not in _WITHOUT_DATA
        length = _size(known.get("size", header.size), position) if is_file else 0
        if data + length > size:
            raise TarError("truncated_tar", f"it ends inside of the member at byte {position}")
        if header.type != tarfile.DIRTYPE:
            yield Member(_tidy(known.get("path") or long_name or header.name), data, length, is_file)
        position = data + _padded(length)
        long_name, attributes = "", {}


def _header(file: IO[bytes], position: int, size: int) -> tarfile.TarInfo | None:
    """The header at `position`; None where the tar ends there as it should."""
    file.seek(position)
    block = file.read(_BLOCK)
    if block == _END:
        return None
    if position == 0 and block.startswith(_COMPRESSED):
        raise TarError("compressed_tar", COMPRESSED_MESSAGE)
    if len(block) < _BLOCK:
        raise TarError("truncated_tar", f"it ends at byte {size} without the mark of its end")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise TarError("damaged_tar", f"no header at byte {position}: {error}") from error


def _extension(file: IO[bytes], header: tarfile.TarInfo, data: int, size: int) -> bytes:
    length = _size(header.size, data)
    if length > _MAX_EXTENSION:
        raise TarError("damaged_tar", f"the header before byte {data} promises {length} bytes of names")
    file.seek(data)
    extension = file.read(length)
    if len(extension) < length:
        raise TarError("truncated_tar", f"it ends at byte {size}, inside of a header")
    return extension


def _attributes(extension: bytes, position: int) -> dict[str, str]:
    """The records ``length key=value`` of an extended header, POSIX's pax."""
    attributes = {}
    rest = extension.rstrip(b"\0")
    while rest:
        digits, _, _ = rest[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = rest[len(digits) + 1 : max(length, 1) - 1].partition(b"=")
        if not (length and equals and rest[length - 1 : length] == b"\n"):
            raise TarError("damaged_tar", f"the extended header at byte {position} cannot be read")
        attributes[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        rest = rest[length:]
    return attributes


def _size(given: str | int, position: int) -> int:
    length = int(given) if isinstance(given, int) or given.isdecimal() else -1
    if length < 0:
        raise TarError("damaged_tar", f"the header at byte {position} has no size")
    return length


def _padded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _tidy(name: str) -> str:
    """The path of a member, below the tar whatever it says."""
    return posixpath.normpath("/" + name).lstrip("/")
