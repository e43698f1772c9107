"""Files that other programs read and Pillow refuses, written anew so that Pillow reads them.

Only what Pillow has refused comes here: what it reads by itself keeps its pixels.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")

# Bytes that Pillow lets a profile in a PNG have, unpacked.
_PNG_PROFILE = 1 << 20

JPEG_END = b"\xff\xd9"

# Would change pixels of a JPEG that lacks some of its data; one that has all of it never looks at them.
JPEG_FILL = b"\x5a\xa5\x12" * 400

_BITFIELDS = 3
_BMP_HEADERS = (40, 52, 56, 108, 124)  # in OS/2's, of 64 bytes, 3 names another compression
_BMP_STRIP = 1 << 20  # pixels that are converted at once


def repaired_png(data: bytes) -> bytes | None:
    """A PNG without its texts, its damaged side chunks and its huge profile; None where it has none of them.

    The chunks that hold the picture keep their checksums.
    """
    if not data.startswith(_PNG):
        return None
    kept = [_PNG]
    for name, body, whole in png_chunks(data):
        is_damaged = name[:1].islower() and zlib.crc32(whole[4:-4]) != int.from_bytes(whole[-4:], "big")
        if not (name in _PNG_TEXTS or is_damaged or (name == b"iCCP" and _unpacks_to_too_much(body))):
            kept.append(whole)
    better = b"".join(kept)
    return None if better == data else better


class PngChunk(NamedTuple):
    """A chunk of a PNG."""

    name: bytes
    body: bytes
    whole: bytes  # with length, name and checksum


def png_chunks(data: bytes) -> Iterator[PngChunk]:
    """The chunks of a PNG, of which the last may be cut off."""
    position = len(_PNG)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield PngChunk(data[position + 4 : position + 8], data[position + 8 : end - 4], data[position:end])
        position = end


def _unpacks_to_too_much(body: bytes) -> bool:
    packed = body.partition(b"\0")[2][1:]
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _PNG_PROFILE)
    except zlib.error:
        return True
    return not unpacking.eof


def repaired_jpeg(data: bytes) -> bytes | None:
    """A JPEG without the bytes that stray before its first marker; None for others."""
    if data[:2] != b"\xff\xd8" or data[2:3] == b"\xff":
        return None
    marker = data.find(b"\xff", 2)
    return data[:2] + data[marker:] if marker > 0 else None


def bit_fields_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a BMP whose colors lie in bit fields; None for others."""
    if len(data) < 66 or data[:2] != b"BM":
        return None
    header, width, height, _, bits, kind = struct.unpack_from("<IiiHHI", data, 14)
    if kind != _BITFIELDS or header not in _BMP_HEADERS or bits not in (16, 32) or width < 1 or height == 0:
        return None
    return width, abs(height)


def repaired_bmp(data: bytes) -> bytes | None:
    """A BMP of bit fields of any kind as one of 8 bits a color; None for others.

    Raises ValueError where it is cut off, or where a field is no row of bits.
    """
    size = bit_fields_size(data)
    if size is None:
        return None
    width, height = size
    start = int.from_bytes(data[10:14], "little")
    header, bits = int.from_bytes(data[14:18], "little"), int.from_bytes(data[28:30], "little")
    masks = list(struct.unpack_from("<3I", data, 54))
    alpha = int.from_bytes(data[66:70], "little") if header >= 56 else 0
    stride = -(-width * bits // 32) * 4
    if start + stride * height > len(data):
        raise ValueError("the file is truncated")
    fields = [_field(mask) for mask in (*masks[::-1], alpha)]  # blue comes first
    raw = np.frombuffer(data, np.uint8, stride * height, start).reshape(height, stride)
    pixels = np.zeros((height, width, 4), np.uint8)
    rows = max(1, _BMP_STRIP // width)
    for top in range(0, height, rows):
        strip = raw[top : top + rows, : width * bits // 8]
        values = np.ascontiguousarray(strip).view(f"<u{bits // 8}").astype(np.uint32)
        for channel, (shift, most) in enumerate(fields):
            if most:
                scaled = (values >> np.uint32(shift) & np.uint32(most)) * (255.0 / most)
                pixels[top : top + rows, :, channel] = scaled.round()
    plain = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000 if alpha else 0)
    body = pixels.tobytes()
    written = struct.pack("<I8sHHIIiiII", 108, data[18:26], 1, 32, _BITFIELDS, len(body), 0, 0, 0, 0) + plain
    written = written.ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 122 + len(body), 0, 0, 122) + written + body


def _field(mask: int) -> tuple[int, int]:
    """How far the bits of `mask` are from the lowest, and the largest value that they hold."""
    if mask == 0:
        return 0, 0
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    if most & (most + 1):
        raise ValueError(f"its bit field {mask:#x} is no row of bits")
    return shift, most


# Bytes of a value by its type in a TIFF; those of 64 bits and what they become in 32.
_TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
_NARROWED = {16: (4, "Q", "I"), 17: (9, "q", "i"), 18: (4, "Q", "I")}

# Tags that lead to further directories.
_TIFF_DIRECTORIES = (330, 34665, 34853, 40965)


def repaired_bigtiff(data: bytes) -> bytes | None:
    """A big-endian BigTIFF as a TIFF, for Pillow takes only little-endian ones for BigTIFFs; None for others.

    Raises ValueError where its directory is damaged.
    """
    if data[:8] != b"MM\0+\0\x08\0\0":
        return None
    try:
        (start,) = struct.unpack_from(">Q", data, 8)
        (count,) = struct.unpack_from(">Q", data, start)
        entries, tail = [], bytearray()
        body = len(data) + len(data) % 2
        for at in range(start + 8, start + 8 + 20 * min(count, 4096), 20):
            tag, kind, number = struct.unpack_from(">HHQ", data, at)
            size = _TIFF_TYPES.get(kind, 0) * number
            if tag in _TIFF_DIRECTORIES or not 0 < size <= len(data):
                continue
            place = at + 12 if size <= 8 else struct.unpack_from(">Q", data, at + 12)[0]
            value = data[place : place + size]
            if kind in _NARROWED:
                kind, wide, narrow = _NARROWED[kind]
                value = struct.pack(f">{number}{narrow}", *struct.unpack(f">{number}{wide}", value))
            if len(value) > 4:
                where = struct.pack(">I", body + len(tail))
                tail += value + bytes(len(value) % 2)
                value = where
            entries.append(struct.pack(">HHI", tag, kind, number) + value.ljust(4, b"\0"))
        header = b"MM\0*" + struct.pack(">I", body + len(tail))
    except (struct.error, OverflowError) as error:
        raise ValueError(f"its directory is damaged: {error}") from error
    directory = struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)
    return header + data[8:].ljust(body - 8, b"\0") + bytes(tail) + directory


def jpeg_pixels_start(data: bytes) -> int | None:
    """The offset of a JPEG's first pixel data; None for other files, and for a JPEG that ends before it."""
    position = 2
    while data[:2] == b"\xff\xd8" and data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        if marker == b"\xff":  # markers may have any number of these before them
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xda":
            return position if position < len(data) else None
    return None


def is_cut_jpeg(data: bytes) -> bool:
    """Whether this may be a JPEG whose end marker alone is missing."""
    return data[:3] == b"\xff\xd8\xff" and not data.endswith(JPEG_END)
