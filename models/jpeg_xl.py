"""JPEG XL by imagecodecs: what its header says (ISO/IEC 18181-1), and its pixels as an image of Pillow's.

imagecodecs gives pixels alone. What else counts, the size before anything is decoded and the colors, is read
from the header here.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"

# Bytes of a codestream in which its header must end. With many extra channels it may be longer.
_HEADER = 4096

# Pixels that become 8 bits a color at once.
_STRIP = 1 << 20

_ALPHA, _SPOT, _BLACK, _CFA = 0, 2, 4, 5
_D65 = (0.3127, 0.329)
_WHITES = {1: _D65, 10: (1 / 3, 1 / 3), 11: (0.314, 0.351)}
_PRIMARIES = {
    1: (0.639998686, 0.330010138, 0.300003784, 0.600003357, 0.150002046, 0.059997204),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_CUSTOM = 2
_SRGB = 13


def _bt709(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(signal < 0.081, signal / 4.5, ((signal + 0.099) / 1.099) ** (1 / 0.45))


def _srgb(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


# Signal to light, both from 0 to 1.
_CURVES: dict[int, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    1: _bt709,
    8: lambda signal: signal,
    _SRGB: _srgb,
    17: lambda signal: signal**2.6,
}


@dataclass(frozen=True)
class Colors:
    """A color space that the header names by numbers."""

    white: tuple[float, ...]  # x, y
    primaries: tuple[float, ...]  # x, y of red, green and blue; empty for gray
    transfer: int | float  # a code of the standard, or a gamma below 1

    def profile(self) -> bytes | None:
        """Its ICC profile; None for sRGB itself, and for the curves of high dynamic range."""
        if self.white == _D65 and self.primaries in ((), _PRIMARIES[1]) and self.transfer == _SRGB:
            return None
        signal = np.linspace(0, 1, 4096)
        if self.transfer in _CURVES:
            light = _CURVES[int(self.transfer)](signal)
        elif 0 < self.transfer < 1:
            light = signal ** (1 / self.transfer)
        else:
            return None
        curve = (light * 65535).round().astype(np.uint16)
        kind, more = ("rgb", {"primaries": self.primaries}) if self.primaries else ("gray", {})
        return bytes(_imagecodecs().cms_profile(kind, whitepoint=self.white, transferfunction=curve, **more))


@dataclass(frozen=True)
class Header:
    """The fields of a header that decide how pixels are read."""

    bits: int  # of a color
    # Of each channel that is no color: its kind, and whether the colors are multiplied with it.
    extras: tuple[tuple[int, bool], ...]
    colors: Colors | None  # None where it embeds a profile

    def has(self, kind: int) -> bool:
        """Whether there is a channel of this kind."""
        return any(each == kind for each, _ in self.extras)

    @property
    def is_premultiplied(self) -> bool:
        """Whether the colors are multiplied with the transparency."""
        return next((multiplied for kind, multiplied in self.extras if kind == _ALPHA), False)


def size(data: bytes) -> tuple[int, int]:
    """Width and height before it is turned upright. Raises ValueError where the header names none."""
    return _size(_Bits(_codestream(data)))


def header(data: bytes) -> Header:
    """Reads the header. Raises ValueError where it is damaged."""
    bits = _Bits(_codestream(data))
    _size(bits)
    standard = Colors(_D65, _PRIMARIES[1], _SRGB)
    if bits.take(1):
        return Header(8, (), standard)
    if bits.take(1):
        bits.take(3)  # the orientation, which the decoder applies
        if bits.take(1):
            _size(bits)  # to show it in
        if bits.take(1):
            _skip_preview(bits)
        if bits.take(1):
            _skip_animation(bits)
    depth = _depth(bits)
    bits.take(1)
    extras = tuple(_extra_channel(bits) for _ in range(bits.number(0, 1, (2, 4), (1, 12))))
    bits.take(1)  # whether its pixels are XYB inside
    return Header(depth, extras, standard if bits.take(1) else _colors(bits))


def open_image(data: bytes) -> Image.Image:
    """Decodes the first frame to an upright image of 8 bits a color, with its profile in `info`.

    Raises ValueError, or what imagecodecs does, where it cannot.
    """
    said = header(data)
    if said.has(_BLACK):
        raise ValueError("it is CMYK")
    if said.colors is None:
        raise ValueError("it embeds an ICC profile, which imagecodecs does not hand out")
    profile = said.colors.profile()
    values = _imagecodecs().jpegxl_decode(data, 0, numthreads=1)
    if not said.colors.primaries and said.extras and not said.has(_ALPHA):
        values = values[0]  # the other channels come after it
    image = Image.fromarray(_bytes(values, said))
    if said.is_premultiplied and image.mode == "LA":
        image = Image.merge("RGBA", (image.getchannel(0),) * 3 + (image.getchannel(1),))
    if said.is_premultiplied and image.mode == "RGBA":
        image = Image.frombytes("RGBa", image.size, image.tobytes()).convert("RGBA")
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def original_jpeg(data: bytes) -> bytes | None:
    """The JPEG that was packed into it without loss; None where it was made of pixels."""
    if data.startswith(CODESTREAM) or all(kind != b"jbrd" for kind, _, _ in boxes(data)):
        return None
    return bytes(_imagecodecs().jpegxl_decode_jpeg(data, numthreads=1))


def _imagecodecs() -> Any:
    return importlib.import_module("imagecodecs")  # an extra, which takes a while to load


def _bytes(values: npt.NDArray[Any], said: Header) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8 and said.bits == 8:
        return values
    white = 1.0 if values.dtype.kind == "f" else (1 << said.bits) - 1
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP // values.shape[1])
    for top in range(0, len(values), rows):
        strip = np.nan_to_num(values[top : top + rows].astype(np.float32)).clip(0, white)
        scaled[top : top + rows] = (strip * np.float32(255 / white)).round()
    return scaled


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of the body of each box of an ISO base media file."""
    position = 0
    while position + 8 <= len(data):
        length, start = int.from_bytes(data[position : position + 4], "big"), position + 8
        if length == 1:  # a length of 64 bits follows
            length, start = int.from_bytes(data[position + 8 : position + 16], "big"), position + 16
        elif length == 0:  # as far as the file goes
            length = len(data) - position
        end = position + length
        if end < start:
            return
        yield data[position + 4 : position + 8], start, end - start
        position = end


def _codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, without its signature."""
    found = data[:_HEADER] if data.startswith(CODESTREAM) else b""
    for kind, body, length in () if found else boxes(data):
        if kind in (b"jxlc", b"jxlp"):  # the parts that jxlp holds are numbered
            start = body + (4 if kind == b"jxlp" else 0)
            found += data[start : body + length][:_HEADER]
    if not found.startswith(CODESTREAM):
        raise ValueError("it holds no image, or is truncated")
    return found[2:]


class _Bits:
    """Numbers of a header, from the lowest bit on."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[:_HEADER], "little")
        self._left = 8 * min(len(data), _HEADER)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("its header is truncated, or too long")
        taken = self._value & (1 << count) - 1
        self._value >>= count
        return taken

    def number(self, *choices: int | tuple[int, int]) -> int:
        """One of four numbers, or of a least number and the bits of what is added to it."""
        choice = choices[self.take(2)]
        return choice if isinstance(choice, int) else choice[0] + self.take(choice[1])

    def code(self) -> int:
        return self.number(0, 1, (2, 4), (18, 6))


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if is_small else bits.number((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    return _width(bits, height, side), height


def _width(bits: _Bits, height: int, side: Callable[[], int]) -> int:
    ratio = bits.take(3)
    if ratio == 0:
        return side()
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * over // under


def _skip_preview(bits: _Bits) -> None:
    in_eights = bits.take(1)

    def side() -> int:
        if in_eights:
            return 8 * bits.number(16, 32, (1, 5), (33, 9))
        return bits.number((1, 6), (65, 8), (321, 10), (1345, 12))

    _width(bits, side(), side)


def _skip_animation(bits: _Bits) -> None:
    bits.number(100, 1000, (1, 10), (1, 30))
    bits.number(1, 1001, (1, 8), (1, 10))
    bits.number(0, (0, 3), (0, 16), (0, 32))
    bits.take(1)


def _depth(bits: _Bits) -> int:
    if bits.take(1):
        depth = bits.number(32, 16, 24, (1, 6))
        bits.take(4)  # the bits of its exponent
        return depth
    return bits.number(8, 10, 12, (1, 6))


def _extra_channel(bits: _Bits) -> tuple[int, bool]:
    """Its kind, and whether the colors are multiplied with it."""
    if bits.take(1):
        return _ALPHA, False
    kind = bits.code()
    _depth(bits)
    bits.number(0, 3, 4, (1, 3))
    bits.take(8 * bits.number(0, (0, 4), (16, 5), (48, 10)))
    if kind == _SPOT:
        bits.take(64)
    if kind == _CFA:
        bits.number(1, (0, 2), (3, 4), (19, 8))
    return kind, bool(kind == _ALPHA and bits.take(1))


def _colors(bits: _Bits) -> Colors | None:
    has_profile, space = bits.take(1), bits.code()
    if has_profile:
        return None
    if space > 1:
        raise ValueError("its color space is none of red, green and blue, nor gray")
    white = bits.code()
    whites = _point(bits) if white == _CUSTOM else _known(_WHITES, white)
    primaries: tuple[float, ...] = ()
    if space == 0:
        code = bits.code()
        if code == _CUSTOM:
            primaries = (*_point(bits), *_point(bits), *_point(bits))
        else:
            primaries = _known(_PRIMARIES, code)
    transfer = bits.take(24) / 1e7 if bits.take(1) else bits.code()
    return Colors(whites, primaries, transfer)


def _known(table: Mapping[int, tuple[float, ...]], code: int) -> tuple[float, ...]:
    if code not in table:
        raise ValueError(f"its header names colors by the unknown code {code}")
    return table[code]


def _point(bits: _Bits) -> tuple[float, float]:
    """x and y, whose signs are the lowest bits."""
    both = [bits.number((0, 19), (524288, 19), (1048576, 20), (2097152, 21)) for _ in range(2)]
    x, y = (-(value + 1 >> 1) if value & 1 else value >> 1 for value in both)
    return x / 1e6, y / 1e6
