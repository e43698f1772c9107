"""The samples of TIFFs that Pillow does not read.

Pillow reads the tags, and unpacks what it or its libtiff can. imagecodecs, the extra `tiff`, does the
rest.
"""

import functools
import importlib
import importlib.util
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, WebPImagePlugin

from imgindex.models import jpeg_xl

Values = npt.NDArray[Any]

_NONE, _LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE, _LZMA, _ZSTD = 1, 5, 8, 32773, 32946, 34925, 50000
_BY_LIBTIFF = {_LZW, _DEFLATE, _PACKBITS, _OLD_DEFLATE}
_WITH_PREDICTOR = {_LZW, _DEFLATE, _OLD_DEFLATE, _LZMA, _ZSTD}
# Libtiff may be built without these. Each with a 7 that it has packed.
_ONE_BYTE = {
    _LZMA: bytes.fromhex(
        "fd377a585a000004e6d6b446020021010c0000008f98419c01000007000000005e9e0f30"
        "1e18d72300011901a52c81cc1fb6f37d010000000004595a"
    ),
    _ZSTD: bytes.fromhex("28b52ffd200109000007"),
}
# A picture of its own in each strip or tile. Pillow's formats, and the functions of imagecodecs.
_WEBP, _LERC, _JPEG_XL = 50001, 34887, (50002, 52546)
_BY_PILLOW = {_WEBP: "WEBP", 34712: "JPEG2000", 33005: "JPEG2000", 34933: "PNG"}
_BY_IMAGECODECS = {
    _LZMA: "lzma", _ZSTD: "zstd", _LERC: "lerc", 50002: "jpegxl", 52546: "jpegxl", 34934: "jpegxr",
    22610: "jpegxr", 34712: "jpeg2k", 33005: "jpeg2k", 34933: "png",
}  # fmt: skip

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 6, 8, 9
_COLORS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, YCBCR: 3, CIELAB: 3, ICCLAB: 3}
ASSOCIATED, UNASSOCIATED = 1, 2

_PREDICTOR, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _LERC_PARAMETERS = 317, 338, 339, 50674
_SUBSAMPLING, _REFERENCES, PROFILE, ORIENTATION = 530, 532, 34675, 274
_FULL_RANGE: tuple[float, ...] = (0, 255, 128, 255, 128, 255)

# Pixels that are given at once; of a tile that is larger than the image.
_BLOCK, _LARGEST_TILE = 1 << 18, 1 << 24


class UnsupportedError(Exception):
    """A TIFF that is not read here either."""


class MissingCodecError(Exception):
    """A TIFF whose compression imagecodecs unpacks, which is not installed."""


@dataclass(frozen=True)
class Layout:
    """What the tags of a TIFF say of its samples."""

    tags: Any  # Pillow's directory, a mapping
    width: int
    height: int
    dtype: np.dtype[Any]
    samples: int
    photometric: int
    compression: int
    predictor: int
    planes: int  # in which the samples of a pixel lie apart, or 1
    across: int  # pixels of a strip or tile
    down: int
    tiled: bool
    subsampling: tuple[int, int]  # pixels that share a color, across and down

    @property
    def colors(self) -> int:
        """Samples of a pixel that are colors; more are extra."""
        return _COLORS[self.photometric]

    @property
    def unpacked(self) -> int:
        """Bytes of a strip or tile, unpacked; 0 where nothing is packed."""
        size = self.across * self.down * self.samples * self.dtype.itemsize
        return 0 if self.compression == _NONE else size

    @property
    def alpha(self) -> int:
        """What the first extra sample is, `ASSOCIATED` or `UNASSOCIATED`; 0 where it is no transparency."""
        extra = self.tags.get(_EXTRA_SAMPLES, (0,))
        kind = extra[0] if isinstance(extra, tuple) and extra else extra
        return kind if self.samples > self.colors and kind in (ASSOCIATED, UNASSOCIATED) else 0


def read_layout(data: bytes) -> Layout:
    """Reads the tags of the first picture of a TIFF.

    Raises ValueError where they are damaged, UnsupportedError where they name what is not read here.
    """
    file = io.BytesIO(data)
    head = file.read(16)
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(head if head[2:4] == b"+\0" else head[:8])
    if not 0 < tags.next < len(data):
        raise ValueError("the file is truncated")
    file.seek(tags.next)
    tags.load(file)
    width, height = number(tags, 256), number(tags, 257)
    samples, planar = number(tags, 277, 1), number(tags, 284, 1)
    photometric, compression = number(tags, 262, -1), number(tags, 259, 1)
    if min(width, height, samples) < 1:
        raise ValueError("its size is not positive")
    if photometric not in _COLORS or samples < _COLORS[photometric] or samples > 64:
        raise UnsupportedError(f"colors of kind {photometric} in {samples} samples a pixel")
    # Other codecs have no predictor, and libtiff does not look at its tag.
    predictor = number(tags, _PREDICTOR, 1) if compression in _WITH_PREDICTOR else 1
    tiled = 322 in tags
    if predictor not in (1, 2, 3) or planar not in (1, 2) or number(tags, 266, 1) != 1:
        raise UnsupportedError("its predictor, its planes or its order of bits")
    across = number(tags, 322) if tiled else width
    down = number(tags, 323) if tiled else min(number(tags, 278, height), height)
    if not 0 < across * down <= max(width * height, _LARGEST_TILE):
        raise ValueError(f"its strips or tiles are of {across} x {down} pixels")
    subsampling = _subsampling(tags, planar) if (photometric, compression) == (YCBCR, _NONE) else (1, 1)
    dtype = _dtype(tags, samples)
    if predictor == 3 and dtype.kind != "f":
        raise UnsupportedError("whole numbers with the predictor of floating point")
    if photometric == YCBCR:
        given = tuple(float(value) for value in tags.get(_REFERENCES, _FULL_RANGE))
        if dtype != np.uint8 or given != _FULL_RANGE or (subsampling != (1, 1) and samples != 3):
            raise UnsupportedError("YCbCr of other than 8 bits, or with a black and white of its own")
    return Layout(
        tags, width, height, dtype, samples, photometric, compression, predictor,
        samples if planar == 2 else 1, across, down, tiled, subsampling,
    )  # fmt: skip


def number(tags: Any, tag: int, default: int | None = None) -> int:
    """The first number of a tag. Raises ValueError where there is none, and no default."""
    value = tags.get(tag, default)
    if isinstance(value, tuple) and value:
        value = value[0]
    if not isinstance(value, int):
        raise ValueError(f"its tag {tag} is missing or damaged")
    return value


def _subsampling(tags: Any, planar: int) -> tuple[int, int]:
    across, down = tags.get(_SUBSAMPLING, (2, 2))
    if across not in (1, 2, 4) or down not in (1, 2, 4) or (planar == 2 and (across, down) != (1, 1)):
        raise UnsupportedError(f"colors that {across} x {down} pixels share")
    return across, down


def _dtype(tags: Any, samples: int) -> np.dtype[Any]:
    bits, forms = tags.get(258, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    if len(set(bits)) != 1 or len(set(forms)) != 1 or len(bits) not in (1, samples):
        raise UnsupportedError("samples of different kinds")
    kind = {1: "u", 2: "i", 3: "f"}.get(forms[0])
    if bits[0] not in (8, 16, 32, 64) or kind is None or kind + str(bits[0]) == "f8":
        raise UnsupportedError(f"{bits[0]} bits a sample of kind {forms[0]}")
    return np.dtype(f"{kind}{bits[0] // 8}")


def is_other(tags: Any) -> bool:
    """Whether Pillow takes a TIFF of these tags for one that it reads, and does not."""
    compression = number(tags, 259, 1)
    if compression == _NONE:
        return number(tags, 262, -1) == YCBCR
    return compression == _WEBP or (compression in _ONE_BYTE and not _is_in_libtiff(compression))


Codec = Callable[[bytes, int, int, int], Values]


def codec_of(layout: Layout) -> Codec:
    """What unpacks the data of a strip or tile, given its width, rows and samples, to values."""
    if layout.compression == _NONE:
        return functools.partial(_as_it_is, layout)
    if layout.compression in _BY_LIBTIFF or (
        layout.compression in _ONE_BYTE and _is_in_libtiff(layout.compression)
    ):
        return functools.partial(_by_libtiff, layout)
    # Pillow has more than 8 bits for gray alone.
    if layout.compression in _BY_PILLOW and (layout.dtype == np.uint8 or _is_gray_16(layout)):
        return functools.partial(_by_pillow, layout)
    if layout.compression not in _BY_IMAGECODECS:
        raise UnsupportedError(f"compression {layout.compression}")
    if layout.compression == _LERC and layout.tags.get(_LERC_PARAMETERS, (0, 0))[1:] not in ((), (0,)):
        raise UnsupportedError("LERC that is compressed once more")
    if importlib.util.find_spec("imagecodecs") is None:
        raise MissingCodecError(f"TIFFs of compression {layout.compression} in {layout.dtype}")
    return functools.partial(_by_imagecodecs, layout)


@functools.cache
def _is_in_libtiff(compression: int) -> bool:
    """Whether Pillow's libtiff is built with this compression, which only unpacking something tells."""
    try:
        return bool(_unpacked(compression, _ONE_BYTE[compression], 1, 1)[0] == 7)
    except OSError:
        return False


def _is_gray_16(layout: Layout) -> bool:
    return layout.dtype == np.uint16 and layout.samples == layout.planes


def _as_it_is(layout: Layout, raw: bytes, width: int, rows: int, samples: int) -> Values:
    across, down = layout.subsampling
    if (across, down) == (1, 1):
        return _samples(layout, raw, width, rows, samples)
    columns, lines = -(-width // across), -(-rows // down)
    units = _whole(raw, columns * lines * (across * down + 2)).reshape(lines, columns, -1)
    luma = units[..., :-2].reshape(lines, columns, down, across).swapaxes(1, 2).reshape(lines * down, -1)
    chroma = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
    return np.dstack([luma, chroma])[:rows, :width]


def _whole(raw: bytes | Values, count: int) -> Values:
    """So many bytes, which are there."""
    found = np.frombuffer(raw, np.uint8)
    if found.size < count:
        raise ValueError("the file is truncated: a strip or tile is too short")
    return found[:count]


def _samples(layout: Layout, raw: bytes | Values, width: int, rows: int, samples: int) -> Values:
    count = rows * width * samples
    lines = _whole(raw, count * layout.dtype.itemsize).reshape(rows, -1)
    order: Literal["<", ">"] = "<" if layout.tags.prefix == b"II" else ">"
    if layout.predictor == 1:
        return lines.view(layout.dtype.newbyteorder(order)).reshape(rows, width, samples)
    values = np.empty((rows, width, samples), layout.dtype)
    step = max(1, _BLOCK // width)
    for top in range(0, rows, step):
        part = lines[top : top + step]
        if layout.predictor == 2:  # adds whole numbers, also where they stand for others
            whole = np.dtype(f"u{layout.dtype.itemsize}")
            steps = part.view(whole.newbyteorder(order)).reshape(len(part), width, samples)
            values[top : top + step] = steps.cumsum(axis=1, dtype=whole).view(layout.dtype)
        else:
            summed = part.reshape(len(part), -1, samples).cumsum(axis=1, dtype=np.uint8)
            planes = summed.reshape(len(part), layout.dtype.itemsize, width * samples)
            together = np.ascontiguousarray(planes.swapaxes(1, 2)).view(layout.dtype.newbyteorder(">"))
            values[top : top + step] = together.reshape(len(part), width, samples)
    return values


def _by_libtiff(layout: Layout, raw: bytes, width: int, rows: int, samples: int) -> Values:
    found = _unpacked(layout.compression, raw, width * samples * layout.dtype.itemsize, rows)
    return _samples(layout, found, width, rows, samples)


def _unpacked(compression: int, raw: bytes, row: int, rows: int) -> Values:
    """Has Pillow's libtiff unpack bytes, as rows of 8-bit gray."""
    tags = [
        (256, row), (257, rows), (258, 8), (259, compression), (262, 1), (273, 122), (277, 1), (278, rows),
        (279, len(raw)),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + raw
    with TiffImagePlugin.TiffImageFile(io.BytesIO(tiff)) as image:
        # Else Pillow would get it by itself, and compare bytes with the most pixels that it allows.
        image.im = Image.new("L", image.size).im
        image.load()
        found = np.empty((rows, row), np.uint8)
        step = max(1, _BLOCK // row)  # Pillow makes two copies of what becomes an array
        for top in range(0, rows, step):
            bottom = min(top + step, rows)
            part = Image.new("L", (row, bottom - top))
            part.paste(image, (0, -top))
            found[top:bottom] = np.asarray(part)
        return found.ravel()


def _by_pillow(layout: Layout, raw: bytes, width: int, rows: int, samples: int) -> Values:
    with Image.open(io.BytesIO(raw), formats=[_BY_PILLOW[layout.compression]]) as image:
        if image.size != (width, rows):
            raise ValueError(f"a strip or tile holds a picture of {image.size} pixels for {width, rows}")
        if isinstance(image, WebPImagePlugin.WebPImageFile) and samples == 4:
            return _checked(layout, np.asarray(image.convert("RGBA")), width, rows, samples)
        return _checked(layout, np.asarray(image), width, rows, samples)


def _by_imagecodecs(layout: Layout, raw: bytes, width: int, rows: int, samples: int) -> Values:
    codecs: Any = importlib.import_module("imagecodecs")
    name = _BY_IMAGECODECS[layout.compression]
    decode = getattr(codecs, f"{name}_decode")
    if layout.compression in _ONE_BYTE:
        found = decode(raw, out=rows * width * samples * layout.dtype.itemsize)
        return _samples(layout, found, width, rows, samples)
    if layout.compression in _JPEG_XL and jpeg_xl.size(raw) != (width, rows):
        raise ValueError(f"a strip or tile holds a picture of {jpeg_xl.size(raw)} pixels for {width, rows}")
    # It compares what the data says of its shape before it decodes. LERC leaves out pixels without a value.
    values = np.zeros((rows, width, samples), layout.dtype)
    decode(raw, out=values)
    return values


def _checked(layout: Layout, values: Values, width: int, rows: int, samples: int) -> Values:
    shape = values.shape if values.ndim == 3 else (*values.shape, 1)
    if shape != (rows, width, samples) or values.dtype != layout.dtype:
        raise ValueError(f"a strip or tile holds {values.shape} of {values.dtype}, not what the tags say")
    return values.reshape(rows, width, samples)


def blocks(data: bytes, layout: Layout, codec: Codec) -> Iterator[tuple[int, int, Values]]:
    """Where values [rows, columns, samples] lie, top and left, and the values, some rows at a time."""
    names = (324, 325) if layout.tiled else (273, 279)
    offsets, counts = (layout.tags.get(name, ()) for name in names)
    columns, lines = -(-layout.width // layout.across), -(-layout.height // layout.down)
    if min(len(offsets), len(counts)) < columns * lines * layout.planes:
        raise ValueError("the file is truncated: its strips or tiles are not all there")
    for place in range(columns * lines):
        top, left = place // columns * layout.down, place % columns * layout.across
        rows = layout.down if layout.tiled else min(layout.down, layout.height - top)
        planes = []
        for plane in range(layout.planes):
            at = place + plane * columns * lines
            raw = data[offsets[at] : offsets[at] + counts[at]]
            if not raw or len(raw) < counts[at]:
                raise ValueError("the file is truncated: a strip or tile lies beyond its end")
            planes.append(codec(raw, layout.across, rows, layout.samples // layout.planes))
        step = max(1, _BLOCK // layout.across)
        for first in range(0, min(rows, layout.height - top), step):
            last = min(first + step, layout.height - top)
            parts = [plane[first:last, : layout.width - left] for plane in planes]
            yield top + first, left, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
