"""Gray values of 16 to 64 bits and of floats: which of them are black and white."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Values = npt.NDArray[Any]
Keys = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

# Of a thousand values one may be darker than black, and one brighter than white.
_CLIPPED = 0.001

# Whites of 16-bit values: cameras and scanners give 8, 10, 12, 14 or 16 bits.
_WHITES = (255, 1023, 4095, 16383, 65535)

# The largest floats are a mark for "no value" wherever files do not name one.
_LARGEST_FLOAT = 1e38

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE, _S_MAX_SAMPLE, _GDAL_NODATA = 258, 262, 281, 341, 42113


def is_deep(image: Image.Image) -> bool:
    """Whether `image` is gray and has more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


@dataclass(frozen=True)
class Levels:
    """How the values of one image become 8-bit gray."""

    black: float
    white: float
    inverted: bool = False  # the file calls its least value white
    nodata: float | None = None  # stands for no value
    transparent: float | None = None  # stands for white paper

    def apply(self, values: Values) -> npt.NDArray[np.uint8]:
        """Gray [height, width] of `values` of the same shape; what is no value is black."""
        valid = _is_valid(values, self.nodata)
        scale = 255 / (self.white - self.black) if self.white > self.black else 0.0
        gray = ((np.where(valid, values, self.black).astype(np.float64) - self.black) * scale).clip(0, 255)
        if self.inverted:
            gray = 255 - gray
        gray[~valid] = 0
        if self.transparent is not None:
            gray[values == self.transparent] = 255
        return gray.round().astype(np.uint8)


def levels_of(image: Image.Image, strips: Callable[[], Iterator[Values]]) -> Levels:
    """The levels of a deep image, whose values `strips` gives anew each time, some rows at a time.

    16-bit values have a black of 0. Their white is what the file names, or else the least of 8, 10, 12, 14
    and 16 bits that holds 99.9 % of the values. Other values are stretched: black has 0.1 % of them below
    it, and white 0.1 % above it. Values that are not finite count as none, and so does the one that
    GDAL_NODATA names.
    """
    tags: Any = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == 0
    nodata = _nodata(tags)
    # Their readers have scaled it by the white or the depth that the file names.
    if image.format == "PPM" or (image.format == "HEIF" and image.mode == "I;16"):
        return Levels(0, 65535)
    ranked = _ranked(strips, nodata)
    if image.mode.startswith("I;16"):
        white = named_white(tags) or white_for(ranked.high)
        transparent = image.info.get("transparency")
        return Levels(0, white, inverted, nodata, transparent if isinstance(transparent, int) else None)
    # Where hardly any value differs from the rest, those few are the picture.
    if ranked.low == ranked.high:
        return Levels(ranked.least, ranked.greatest, inverted, nodata)
    return Levels(ranked.low, ranked.high, inverted, nodata)


def white_for(value: float) -> int:
    """The white of 16-bit values of which 99.9 % do not exceed `value`."""
    return next(white for white in _WHITES if white >= value)


def rank_of_high(count: int) -> int:
    """Of `count` values in order, the number of the one that 99.9 % do not exceed."""
    return count - 1 - int(count * _CLIPPED)


def named_white(tags: Any) -> int | None:
    """The white that a TIFF names: by fewer bits than 16, or as its greatest value."""
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if isinstance(bits, int) and bits < 16:
        return int((1 << bits) - 1)
    for tag in (_S_MAX_SAMPLE, _MAX_SAMPLE):
        named = tags.get(tag)
        value = named[0] if isinstance(named, tuple) and named else named
        if isinstance(value, int) and 0 < value < 65535:
            return value
    return None


def _nodata(tags: Any) -> float | None:
    try:
        return float(tags.get(_GDAL_NODATA, "").strip("\0 "))
    except (ValueError, AttributeError):
        return None


def _is_valid(values: Values, nodata: float | None) -> npt.NDArray[np.bool_]:
    valid = np.isfinite(values) & (np.abs(values) < _LARGEST_FLOAT)
    if nodata is not None and math.isfinite(nodata):
        with np.errstate(over="ignore"):
            valid &= values != (values.dtype.type(nodata) if values.dtype.kind == "f" else nodata)
    return valid


@dataclass(frozen=True)
class _Ranked:
    """The least and the greatest value, and those between which nearly all lie; zeros where there is none."""

    least: float = 0
    low: float = 0
    high: float = 0
    greatest: float = 0


def _ranked(strips: Callable[[], Iterator[Values]], nodata: float | None) -> _Ranked:
    # Exact, 16 bits at a time: no more is held than a strip and counts.
    def keys() -> Iterator[Keys]:
        for values in strips():
            yield _keys(values[_is_valid(values, nodata)])

    dtype = next(strips()).dtype
    top = 48 if _is_wide(dtype) else 16
    counts = np.zeros(1 << 16, np.int64)
    for part in keys():
        counts += _counted(part >> top)
    total = int(counts.sum())
    if not total:
        return _Ranked()
    high = rank_of_high(total)
    found = _at(keys, counts, top, [0, total - 1 - high, high, total - 1])
    return _Ranked(*(_value(key, dtype) for key in found))


def _at(
    keys: Callable[[], Iterator[Keys]], counts: npt.NDArray[np.int64], top: int, ranks: Sequence[int]
) -> list[int]:
    """The keys of `ranks`, from the counts of their bits from `top` on."""
    uppers, rests = [0] * len(ranks), list(ranks)
    counts_of = {0: counts}
    for shift in range(top, -1, -16):
        if shift < top:
            counts_of = {upper: np.zeros(1 << 16, np.int64) for upper in uppers}
            for part in keys():
                for upper, lowers in counts_of.items():
                    lowers += _counted(part[part >> (shift + 16) == upper] >> shift & 0xFFFF)
        for number, (upper, rest) in enumerate(zip(uppers, rests, strict=True)):
            ends = counts_of[upper].cumsum()
            lower = int(np.searchsorted(ends, rest, side="right"))
            uppers[number] = upper << 16 | lower
            rests[number] = rest - int(ends[lower] - counts_of[upper][lower])
    return uppers


def _counted(numbers: Values) -> npt.NDArray[np.int64]:
    return np.bincount(numbers.astype(np.int64), minlength=1 << 16)


def _is_wide(dtype: np.dtype[Any]) -> bool:
    """Whether keys of such values take 64 bits."""
    return dtype.itemsize == 8 or dtype == np.uint32


def _keys(values: Values) -> Keys:
    """Whole numbers in the order of `values`."""
    if values.dtype == np.float64:
        wide = values.view(np.uint64)
        return np.where(wide >> 63, ~wide, wide | np.uint64(1 << 63))
    if values.dtype.kind == "f":
        bits = values.astype(np.float32).view(np.uint32)
        return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    if values.dtype == np.int64:
        return values.view(np.uint64) ^ np.uint64(1 << 63)
    if _is_wide(values.dtype):
        return values.astype(np.uint64)
    return values.astype(np.int32).view(np.uint32) ^ np.uint32(1 << 31)


def _value(key: int, dtype: np.dtype[Any]) -> float:
    if dtype == np.float64:
        wide = key ^ (1 << 63) if key >> 63 else ~key & ((1 << 64) - 1)
        return float(np.array(wide, np.uint64).view(np.float64))
    if dtype.kind == "f":
        bits = key ^ (1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
        return float(np.array(bits, np.uint32).view(np.float32))
    if dtype.kind == "u" and _is_wide(dtype):
        return float(key)
    return float(key - (1 << (63 if _is_wide(dtype) else 31)))
