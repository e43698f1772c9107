"""One preprocessing for indexing and for queries: encoded image bytes to RGB pixels of a fixed size."""

import contextlib
import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from imgindex.models import deep_colors, jpeg_xl, mending, other_tiffs, plugins, repair, tiff_samples
from imgindex.models.color import conversion_to_srgb
from imgindex.models.levels import Levels, is_deep, levels_of
from imgindex.models.resizing import Resizing

Pixels = npt.NDArray[np.uint8]

# What is made of an image; a bare (height, width), to which it is stretched; or the longer side, of which the
# other follows, where the image is not smaller anyway.
Size = Resizing | tuple[int, int] | int

# Names what `decode` does in the spec: a change of the pixels that it returns is a change of this name. How
# images are resized has names of its own there, and where these are other ones they count.
PREPROCESSING = "rgb-exif-white-draft2x-stretch-bilinear-2"

# Pillow refuses larger images by itself unless `Image.MAX_IMAGE_PIXELS` is raised, as decoder processes do.
DEFAULT_MAX_PIXELS = 178_956_970

# Width times height, which the store's arithmetic and Pillow's own hold for every image.
LARGEST_MAX_PIXELS = (1 << 31) - 1

# Bytes of a strip or tile of a TIFF, unpacked, for each of the most pixels: there are two copies of them, and
# the processes that decode have 24 bytes for each pixel.
_UNPACKED_BYTES = 12

# Pixels that are converted to RGB at once. Of a whole image at Pillow's limit, the intermediate values would
# take up to 6 GiB more than source and result.
_STRIP_PIXELS = 1 << 20


def decoding(color_profile: str) -> str:
    """Names in the spec what `decode` does with `color_profile`."""
    return PREPROCESSING if color_profile == "srgb" else f"{PREPROCESSING}-profiles-{color_profile}"


class DecodeError(Exception):
    """An image that cannot be decoded; `reason` is a stable code, the message says more.

    `pixels` are those that its header names, where that was read before it failed.
    """

    def __init__(self, reason: str, message: str, pixels: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.pixels = pixels


@dataclass(frozen=True)
class DecodedImage:
    """An image ready for a backbone, with the size of the original."""

    pixels: Pixels  # [height, width, 3] as asked for
    width: int  # of the upright original
    height: int


def decode(
    data: bytes,
    size: Size,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    color_profile: str = "srgb",
    truncated: str = "fail",
) -> DecodedImage:
    """Decodes an encoded image to upright RGB of `size`.

    Every mode that Pillow reads becomes 8-bit RGB: palettes, gray, CMYK and 16-bit values are converted,
    transparency in an alpha channel or a palette is laid on white, the first frame stands for an animation.
    JPEGs are decoded at a reduced size that still has twice the pixels asked for in each direction. With the
    `color_profile` srgb an embedded ICC profile is applied, with ignore it is not. A JPEG that was cut off
    fails, unless `truncated` is accept and it holds part of the picture: then the rest is gray.
    docs/formats.md says more.

    Raises:
      DecodeError: `empty`, `not_an_image`, `needs_extra`, `too_many_pixels`, `truncated`, `out_of_memory` or
        `undecodable`.
    """
    if not data:
        raise DecodeError("empty", "the file is empty")
    try:
        return _decode(data, size, max_pixels, color_profile)
    except DecodeError as error:
        if error.reason not in _REPAIRABLE:
            raise
        better = _decode_repaired(data, size, max_pixels, color_profile)
        if better is None and truncated == "accept" and error.reason == "truncated":
            better = _decode_part(data, size, max_pixels, color_profile)
        if better is None:
            raise
        return better


_REPAIRABLE = ("not_an_image", "truncated", "undecodable")


def _decode_repaired(data: bytes, size: Size, max_pixels: int, color_profile: str) -> DecodedImage | None:
    """Decodes what Pillow refuses though the picture is whole; None where it is not. Raises DecodeError."""
    bmp_size = repair.bit_fields_size(data)
    if bmp_size is not None:
        _check_pixels(*bmp_size, max_pixels)
    try:
        better = (
            repair.repaired_png(data)
            or repair.repaired_jpeg(data)
            or repair.repaired_bmp(data)
            or repair.repaired_bigtiff(data)
        )
    except ValueError:
        return None
    data = better or data
    if repair.is_cut_jpeg(data):
        return _decode_without_end(data, size, max_pixels, color_profile)
    return _decode(data, size, max_pixels, color_profile) if better else None


def _decode_without_end(data: bytes, size: Size, max_pixels: int, color_profile: str) -> DecodedImage | None:
    """Decodes a JPEG that lacks only the marker of its end.

    Whether pixels are missing, too, shows in what other bytes in their place would change.
    """
    data = data.rstrip(b"\xff")  # half a marker
    plain, filled = (
        _decode_ended(data + fill, size, max_pixels, color_profile) for fill in (b"", repair.JPEG_FILL)
    )
    return plain if plain and filled and np.array_equal(plain.pixels, filled.pixels) else None


def _decode_part(data: bytes, size: Size, max_pixels: int, color_profile: str) -> DecodedImage | None:
    """Decodes what there is of a JPEG that was cut off; None where it holds nothing of the picture."""
    start = repair.jpeg_pixels_start(data)
    if start is None:
        return None
    part, nothing = (
        _decode_ended(each, size, max_pixels, color_profile)
        for each in (data.rstrip(b"\xff"), data[:start])  # the first without half a marker
    )
    return part if part and nothing and not np.array_equal(part.pixels, nothing.pixels) else None


def _decode_ended(data: bytes, size: Size, max_pixels: int, color_profile: str) -> DecodedImage | None:
    """Decodes a JPEG with the marker of its end added; None where that fails."""
    with contextlib.suppress(DecodeError):
        return _decode(data + repair.JPEG_END, size, max_pixels, color_profile)
    return None


def _decode(data: bytes, size: Size, max_pixels: int, color_profile: str) -> DecodedImage:
    plugin = plugins.plugin_of(data)
    if plugin is not None and not plugin.is_installed:
        raise DecodeError(
            "needs_extra", f"{plugin.name} needs imgindex[{plugin.extra}], which is not installed"
        )
    pixels = 0
    try:
        if plugin is plugins.JXL:
            pixels = _check_pixels(*jpeg_xl.size(data), max_pixels)
            return _decode_jpeg_xl(data, size, max_pixels, color_profile)
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            pixels = _check_pixels(*image.size, max_pixels)
            if isinstance(image, TiffImagePlugin.TiffImageFile) and tiff_samples.is_other(image.tag_v2):
                return _decode_other_tiff(data, size, max_pixels, color_profile)
            mending.mend(image, data)
            original = image.size
            reduced = image.draft("RGB", _least(size, original)) if plugin is None else None
            deep_colors.load(image, data)
            if plugin is not None:  # its container may have named another size than the picture has
                original = image.size
                _check_pixels(*original, max_pixels)
            shown = upright_rgb(image, size, color_profile, reduced[1][2:] if reduced else None)
            width, height = original[::-1] if _orientation(image) in _QUARTER_TURNS else original
            return DecodedImage(shown, width, height)
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        if _is_cut_off(data):
            raise DecodeError("truncated", "the file ends before what its header names") from error
        if plugin is not None:
            raise DecodeError("undecodable", f"a damaged {plugin.name} file") from error
        if data.startswith(_TIFFS):
            return _decode_other_tiff(data, size, max_pixels, color_profile)
        raise DecodeError("not_an_image", "no image format that Pillow reads") from error
    except Exception as error:  # decoders of damaged files raise whatever their parsing trips over
        raise DecodeError(_reason(error, data), f"{type(error).__name__}: {error}", pixels) from error


def _decode_jpeg_xl(data: bytes, size: Size, max_pixels: int, color_profile: str) -> DecodedImage:
    jpeg = jpeg_xl.original_jpeg(data)
    if jpeg is not None:
        return _decode(jpeg, size, max_pixels, color_profile)
    image = jpeg_xl.open_image(data)
    return DecodedImage(upright_rgb(image, size, color_profile), image.width, image.height)


def _decode_other_tiff(data: bytes, size: Size, max_pixels: int, color_profile: str) -> DecodedImage:
    """Decodes a TIFF that Pillow does not read."""
    pixels = 0
    try:
        layout = tiff_samples.read_layout(data)
        pixels = _check_pixels(layout.width, layout.height, max_pixels)
        most = _UNPACKED_BYTES * max(DEFAULT_MAX_PIXELS, max_pixels)
        if layout.unpacked > most:
            raise DecodeError(
                "out_of_memory",
                f"a strip or tile of {layout.across} x {layout.down} pixels takes {layout.unpacked} bytes, "
                f"more than the {most} for which a decoder has room",
            )
        image = other_tiffs.open_image(data, layout)
        width, height = image.size[::-1] if _orientation(image) in _QUARTER_TURNS else image.size
        return DecodedImage(upright_rgb(image, size, color_profile), width, height)
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", f"a TIFF: {error}") from error
    except tiff_samples.MissingCodecError as error:
        raise DecodeError("needs_extra", f"{error} need imgindex[tiff], which is not installed") from error
    except tiff_samples.UnsupportedError as error:
        raise DecodeError("undecodable", f"a TIFF of a kind that imgindex does not read: {error}") from error
    except Exception as error:  # as above
        raise DecodeError(_reason(error, data), f"a TIFF: {type(error).__name__}: {error}", pixels) from error


# The beginnings of TIFF and BigTIFF.
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _check_pixels(width: int, height: int, max_pixels: int) -> int:
    """The number of pixels. Raises DecodeError where they are too many."""
    if width * height > max_pixels:
        raise DecodeError(
            "too_many_pixels",
            f"{width} x {height} pixels are more than images.max_pixels ({max_pixels})",
        )
    return width * height


def _reason(error: Exception, data: bytes) -> str:
    said = str(error).lower()
    # Pillow's code of its own for it is -9, which its TIFF reader does not translate.
    out_of_memory = isinstance(error, OSError) and ("out of memory" in said or said == "decoder error -9")
    if isinstance(error, MemoryError) or out_of_memory:
        return "out_of_memory"
    is_truncated = "truncated" in said or "need_more_input" in said or _is_cut_off(data)
    return "truncated" if is_truncated else "undecodable"


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow reads, but for EPS: it would run a program, Ghostscript, on the file."""
    Image.preinit()  # the common ones first, as Pillow itself has it
    Image.init()
    plugins.register()
    return tuple(name for name in Image.ID if name != "EPS")


def _is_cut_off(data: bytes) -> bool:
    """Whether a WebP, AVIF, HEIC or JPEG XL ends before its own length, or a TIFF before its directory.

    Pillow names none of these.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data[:4] in (b"II*\0", b"MM\0*"):
        return len(data) <= int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
    return plugins.is_cut_off(data)


def _least(size: Size, whole: tuple[int, int]) -> tuple[int, int]:
    """The least width and height at which an image of `whole` may be decoded."""
    if isinstance(size, int):
        return 2 * size, 2 * size
    return _resizing(size).draft(whole)


def _resizing(size: Resizing | tuple[int, int]) -> Resizing:
    return size if isinstance(size, Resizing) else Resizing(size)


def upright_rgb(
    image: Image.Image, size: Size, color_profile: str = "srgb", extent: tuple[float, float] | None = None
) -> Pixels:
    """Makes pixels [height, width, 3] of an opened image, as `decode` does. Raises what Pillow does.

    `extent` is the width and height that the picture takes of an image decoded at a reduced size.
    """
    # Loaded before the orientation is read: Pillow turns TIFFs itself while it loads them.
    image.load()
    profile = image.info.get("icc_profile") if color_profile == "srgb" else None
    convert = conversion_to_srgb(profile, image.mode)
    orientation = _orientation(image)
    # What has a profile keeps its colors until it is small: then the conversion costs little.
    colors = image if convert and image.mode == "CMYK" else _to_rgb(image)
    if isinstance(size, int):
        small = _thumbnail(colors, size)
    else:
        small = _resizing(size).resized(colors, extent or image.size, orientation in _QUARTER_TURNS)
    rgb = convert(small) if convert else small
    if orientation in _TRANSPOSITIONS:
        rgb = rgb.transpose(_TRANSPOSITIONS[orientation])
    return np.asarray(rgb if isinstance(size, int) else _resizing(size).framed(rgb))


def _thumbnail(image: Image.Image, side: int) -> Image.Image:
    scale = min(1, side / max(image.size))
    columns, rows = (max(1, round(scale * each)) for each in image.size)
    return image.resize((columns, rows), Image.Resampling.BILINEAR)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or the EXIF block is damaged."""
    bare = Image.Image()
    bare.info = {key: value for key, value in image.info.items() if key not in mending.XMP}
    try:
        orientation: int = bare.getexif().get(0x0112, 1)
    except Exception:  # whatever parsing trips over; the pixels are whole
        return 1
    return orientation


_QUARTER_TURNS = (5, 6, 7, 8)

# EXIF orientation (TIFF 6.0, tag 274) to what makes the image upright, as ImageOps.exif_transpose has it.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any of Pillow's modes to 8-bit RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    boxes = list(_strips(image))
    levels = None
    if is_deep(image):
        levels = levels_of(image, lambda: (np.asarray(image.crop(box)) for box in boxes))
    rgb = Image.new("RGB", image.size)
    for box in boxes:
        rgb.paste(_strip_to_rgb(image.crop(box), levels), box)
    return rgb


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes as wide as the image that cover it from the top down."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _strip_to_rgb(strip: Image.Image, levels: Levels | None) -> Image.Image:
    """`levels` are those of a deep image."""
    if levels is not None:
        strip = Image.fromarray(levels.apply(np.asarray(strip)))
    if "A" in strip.getbands() or "a" in strip.getbands() or "transparency" in strip.info:
        rgba = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return strip.convert("RGB")
