"""TIFFs of which libtiff leaves pixels undefined and reports no error.

Pillow gives libtiff memory for one strip or tile, and does not clear it. Two codecs call a strip decoded
though they have not written all of it: Group 4's where its data ends early or is damaged, and JPEG's where
the JPEG is smaller than the strip. What was in that memory before would become part of the picture.
"""

import io
import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

_GROUP4, _JPEG = 4, 7
_SEPARATE_PLANES = 2
_YCBCR = 6

# Pixels of a tile that is larger than the image; and those of Group 4 that are tried at once.
_LARGEST_TILE = _TRIED_PIXELS = 1 << 24

_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class _Block:
    """A strip or a tile: what the file holds of it, and how many pixels it is to give."""

    data: bytes
    width: int
    rows: int


def check_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Raises ValueError where pixels of `image`, opened from `data`, would be undefined or cannot be read."""
    compression = image.tag_v2.get(TiffImagePlugin.COMPRESSION)
    if compression == _GROUP4:
        blocks = list(_blocks(image, data))
        if image.tag_v2.get(TiffImagePlugin.FILLORDER) == 2:
            blocks = [replace(block, data=block.data.translate(_REVERSED_BITS)) for block in blocks]
        _check_group4(blocks)
    elif compression == _JPEG and not _has_small_planes(image):
        for block in _blocks(image, data):
            _check_jpeg(block)


def _has_small_planes(image: TiffImagePlugin.TiffImageFile) -> bool:
    # Of such planes libtiff makes whole ones by itself, in memory that it has cleared.
    tags = image.tag_v2
    separate = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _SEPARATE_PLANES
    return separate and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _YCBCR


def _blocks(image: TiffImagePlugin.TiffImageFile, data: bytes) -> Iterator[_Block]:
    tags = image.tag_v2
    width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    tiled = TiffImagePlugin.TILEOFFSETS in tags
    if tiled:
        offsets, counts = tags[TiffImagePlugin.TILEOFFSETS], tags[TiffImagePlugin.TILEBYTECOUNTS]
        across, down = tags[TiffImagePlugin.TILEWIDTH], tags[TiffImagePlugin.TILELENGTH]
    else:
        offsets, counts = tags[TiffImagePlugin.STRIPOFFSETS], tags[TiffImagePlugin.STRIPBYTECOUNTS]
        across, down = width, min(tags.get(TiffImagePlugin.ROWSPERSTRIP, height), height)
    if not 0 < across * down <= max(width * height, _LARGEST_TILE):
        raise ValueError(f"its strips or tiles are of {across} x {down} pixels")
    strips = -(-height // down)
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=False)):
        last = not tiled and number % strips == strips - 1
        rows = height - (strips - 1) * down if last else down
        yield _Block(data[offset : offset + count], across, rows)


def _check_group4(blocks: Sequence[_Block]) -> None:
    for (width, rows), alike in itertools.groupby(blocks, lambda block: (block.width, block.rows)):
        remaining = list(alike)
        step = max(1, _TRIED_PIXELS // (width * rows))
        for start in range(0, len(remaining), step):
            batch = [block.data for block in remaining[start : start + step]]
            on_white, on_black = (_decoded_on(color, batch, width, rows) for color in (255, 0))
            if not np.array_equal(on_white, on_black):
                raise ValueError("its Group 4 data ends early or is damaged")


def _decoded_on(color: int, strips: Sequence[bytes], width: int, rows: int) -> npt.NDArray[np.bool_]:
    """`strips` decoded in memory that holds `color` before each of them, [strips, rows, width]."""
    blank = io.BytesIO()
    Image.new("1", (width, rows), color).save(blank, "TIFF", compression="group4", strip_size=1 << 30)
    with Image.open(blank) as written:
        assert isinstance(written, TiffImagePlugin.TiffImageFile)  # noqa: S101
        (ground,) = _blocks(written, blank.getvalue())
    tiff = _group4_tiff([part for strip in strips for part in (ground.data, strip)], width, rows)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(tiff)) as image:
        pixels = np.asarray(image)
    return pixels.reshape(-1, 2, rows, width)[:, 1].copy()


def _group4_tiff(strips: Sequence[bytes], width: int, rows: int) -> bytes:
    """A TIFF of strips of Group 4, each of so many rows."""
    entries = [
        (TiffImagePlugin.IMAGEWIDTH, [width]),
        (TiffImagePlugin.IMAGELENGTH, [rows * len(strips)]),
        (TiffImagePlugin.BITSPERSAMPLE, [1]),
        (TiffImagePlugin.COMPRESSION, [_GROUP4]),
        (TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, [1]),
        (TiffImagePlugin.STRIPOFFSETS, [0] * len(strips)),
        (TiffImagePlugin.SAMPLESPERPIXEL, [1]),
        (TiffImagePlugin.ROWSPERSTRIP, [rows]),
        (TiffImagePlugin.STRIPBYTECOUNTS, [len(strip) for strip in strips]),
    ]
    arrays = 8 + 2 + 12 * len(entries) + 4
    body = arrays + 8 * len(strips)  # of longs: the offsets, then the counts
    ends = list(itertools.accumulate((len(strip) for strip in strips), initial=body))
    entries[5] = (TiffImagePlugin.STRIPOFFSETS, ends[:-1])
    directory = struct.pack("<H", len(entries))
    tail = b""
    for tag, values in entries:
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            directory += struct.pack("<HHII", tag, 4, len(values), arrays + len(tail))
            tail += packed
        else:
            directory += struct.pack("<HHI", tag, 4, 1) + packed
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + tail + b"".join(strips)


def _check_jpeg(block: _Block) -> None:
    width, height = _jpeg_size(block.data)
    if width < block.width or height < block.rows:
        raise ValueError(f"it holds a JPEG of {width} x {height} pixels for {block.width} x {block.rows}")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG. Raises ValueError where it has none."""
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise ValueError("its JPEG data has no size")
