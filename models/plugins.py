"""HEIC and JPEG XL: formats that Pillow reads by plugins, which the extras `heif` and `jxl` install."""

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
# AVIF files may have these, too. Pillow tries them as AVIF first.
_ANY_BRANDS = (b"mif1", b"msf1")

_JXL_CODESTREAM, _JXL_CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"


@dataclass(frozen=True)
class Plugin:
    """A format, what reads it, and what installs that."""

    format: str  # Pillow's name of it
    name: str  # what people call it
    module: str
    extra: str
    extensions: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Whether this Python finds the plugin."""
        return importlib.util.find_spec(self.module) is not None


HEIF = Plugin("HEIF", "HEIC", "pillow_heif", "heif", (".heic", ".heif", ".hif"))
JXL = Plugin("JXL", "JPEG XL", "pillow_jxl", "jxl", (".jxl",))
PLUGINS = (HEIF, JXL)


def missing_extra(extension: str) -> str | None:
    """The extra of imgindex that reads files of this extension, where its plugin is not installed."""
    for plugin in PLUGINS:
        if extension.lower() in plugin.extensions and not plugin.is_installed:
            return plugin.extra
    return None


def plugin_of(data: bytes) -> Plugin | None:
    """The plugin that reads a file that begins as `data` does."""
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if brands[:1] and brands[0] in _HEIC_BRANDS:
            return HEIF
        if brands[:1] and brands[0] in _ANY_BRANDS and any(brand in _HEIC_BRANDS for brand in brands):
            return HEIF
    return JXL if data.startswith((_JXL_CODESTREAM, _JXL_CONTAINER)) else None


def _brands(data: bytes) -> list[bytes]:
    """The brands of an ISO base media file: the major one, then those that it is compatible with."""
    end = min(int.from_bytes(data[:4], "big"), len(data))
    return [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]


@functools.cache
def register() -> tuple[str, ...]:
    """Teaches Pillow the formats whose plugins are installed; returns Pillow's names of them."""
    if HEIF.is_installed:
        # One thread for each decoder; the picture itself, and not a thumbnail in the same file.
        importlib.import_module(HEIF.module).register_heif_opener(decode_threads=1, thumbnails=False)
    if JXL.is_installed:
        plugin: Any = importlib.import_module("pillow_jxl.JpegXLImagePlugin")
        plugin.DECODE_THREADS = 0
    return tuple(plugin.format for plugin in PLUGINS if plugin.is_installed)


def is_upright(image: Image.Image) -> bool:
    """Whether the decoder has turned `image` upright, so that its EXIF orientation no longer counts.

    The plugin turns a JPEG XL as the file's own orientation says. A JPEG that was packed without loss is
    given back as it was, and its EXIF counts. pillow-heif corrects the EXIF that it gives itself.
    """
    return image.format == JXL.format and not getattr(image, "jpeg", False)


def is_cut_off(data: bytes) -> bool:
    """Whether a HEIC, or a JPEG XL in a container, ends within one of its boxes."""
    plugin = plugin_of(data)
    if plugin is None or data.startswith(_JXL_CODESTREAM):
        return False
    position = 0
    for _, body, size in _boxes(data):
        position = body + size
    return position != len(data)


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height that a JPEG XL's header names. Raises ValueError where it names none.

    The plugin decodes all pixels when it opens a file: what is too large must be found out before.
    """
    codestream = data if data.startswith(_JXL_CODESTREAM) else b""
    for kind, body, size in () if codestream else _boxes(data):
        if kind in (b"jxlc", b"jxlp"):  # the parts that jxlp holds are numbered
            start = body + (4 if kind == b"jxlp" else 0)
            codestream += data[start : body + size][:16]
    if not codestream.startswith(_JXL_CODESTREAM) or len(codestream) < 12:
        raise ValueError("it holds no image, or is truncated")
    # ISO/IEC 18181-1, SizeHeader: bits from the lowest on.
    bits = _Bits(int.from_bytes(codestream[2:12], "little"))
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    if ratio == 0:
        return _side(bits, small), height
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * over // under, height


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of the body of each box of an ISO base media file."""
    position = 0
    while position + 8 <= len(data):
        size, start = int.from_bytes(data[position : position + 4], "big"), position + 8
        if size == 1:  # a length of 64 bits follows
            size, start = int.from_bytes(data[position + 8 : position + 16], "big"), position + 16
        elif size == 0:  # as far as the file goes
            size = len(data) - position
        end = position + size
        if end < start:
            return
        yield data[position + 4 : position + 8], start, end - start
        position = end


class _Bits:
    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        taken = self._value & (1 << count) - 1
        self._value >>= count
        return taken


def _side(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (bits.take(5) + 1)
    return bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


def is_panic(error: BaseException) -> bool:
    """Whether `error` is what Rust gives up with, which is no Exception for Python."""
    kind: Any = type(error)
    return bool(kind.__name__ == "PanicException")
