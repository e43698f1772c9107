"""HEIC and JPEG XL, which Pillow does not read by itself: the extras `heif` and `jxl` install what does."""

import functools
import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from imgindex.models import jpeg_xl

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_AVIF_BRANDS = (b"avif", b"avis")
# AVIF files may have these, too. Pillow tries them as AVIF first.
_ANY_BRANDS = (b"mif1", b"msf1")


@dataclass(frozen=True)
class Plugin:
    """A format, what reads it, and what installs that."""

    name: str
    module: str
    extra: str
    extensions: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Whether this Python finds the plugin."""
        return importlib.util.find_spec(self.module) is not None


HEIF = Plugin("HEIC", "pillow_heif", "heif", (".heic", ".heif", ".hif"))
JXL = Plugin("JPEG XL", "imagecodecs", "jxl", (".jxl",))
PLUGINS = (HEIF, JXL)


def missing_extra(extension: str) -> str | None:
    """The extra of imgindex that reads files of this extension, where its plugin is not installed."""
    for plugin in PLUGINS:
        if extension.lower() in plugin.extensions and not plugin.is_installed:
            return plugin.extra
    return None


def readable(extensions: Iterable[str]) -> tuple[str, ...]:
    """Those of `extensions` whose files this machine can read."""
    return tuple(extension for extension in extensions if missing_extra(extension) is None)


def plugin_of(data: bytes) -> Plugin | None:
    """The plugin that reads a file that begins as `data` does."""
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if brands[:1] and brands[0] in _HEIC_BRANDS:
            return HEIF
        if brands[:1] and brands[0] in _ANY_BRANDS and any(brand in _HEIC_BRANDS for brand in brands):
            return HEIF
    return JXL if data.startswith((jpeg_xl.CODESTREAM, jpeg_xl.CONTAINER)) else None


def _brands(data: bytes) -> list[bytes]:
    """The brands of an ISO base media file: the major one, then those that it is compatible with."""
    end = min(int.from_bytes(data[:4], "big"), len(data))
    return [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]


@functools.cache
def register() -> None:
    """Teaches Pillow to read HEIC, where that is installed. JPEG XL is decoded without Pillow."""
    if HEIF.is_installed:
        # One thread for each decoder; the picture itself, and not a thumbnail in the same file.
        importlib.import_module(HEIF.module).register_heif_opener(decode_threads=1, thumbnails=False)


def is_cut_off(data: bytes) -> bool:
    """Whether an AVIF, a HEIC, or a JPEG XL in a container, ends within one of its boxes."""
    is_avif = data[4:8] == b"ftyp" and data[8:12] in (*_AVIF_BRANDS, *_ANY_BRANDS)
    if not (is_avif or plugin_of(data)) or data.startswith(jpeg_xl.CODESTREAM):
        return False
    position = 0
    for _, body, size in jpeg_xl.boxes(data):
        position = body + size
    return position != len(data)
