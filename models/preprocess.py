"""One preprocessing for indexing and for queries: encoded image bytes to RGB pixels of a fixed size."""

import functools
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

# Names what `decode` does in the spec: a change of the pixels that it returns is a change of this name.
PREPROCESSING = "rgb-exif-white-draft2x-stretch-bilinear-1"

# Pillow refuses larger images by itself, whatever is asked for here.
LARGEST_MAX_PIXELS = 178_956_970


class DecodeError(Exception):
    """An image that cannot be decoded; `reason` is a stable code, the message says more."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class DecodedImage:
    """An image ready for a backbone, with the size of the original."""

    pixels: Pixels  # [height, width, 3] as asked for
    width: int  # of the upright original
    height: int


def decode(data: bytes, size: tuple[int, int], max_pixels: int = LARGEST_MAX_PIXELS) -> DecodedImage:
    """Decodes an encoded image to upright RGB and stretches it to `size` (height, width).

    Every mode that Pillow reads becomes 8-bit RGB: palettes, grey, CMYK and 16-bit values are converted,
    transparency in an alpha channel or a palette is laid on white, the first frame stands for an animation.
    JPEGs are decoded at a reduced size that still has twice the pixels asked for in each direction. The
    resize is bilinear and antialiased.

    Raises:
      DecodeError: `empty`, `not_an_image`, `too_many_pixels`, `truncated` or `undecodable`.
    """
    if not data:
        raise DecodeError("empty", "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if image.width * image.height > max_pixels:
                raise DecodeError(
                    "too_many_pixels",
                    f"{image.width} x {image.height} pixels are more than images.max_pixels ({max_pixels})",
                )
            original = image.size
            # The longer side both ways, for EXIF may turn the image by 90 degrees.
            image.draft("RGB", (2 * max(size), 2 * max(size)))
            pixels = upright_rgb(image, size)
            width, height = original[::-1] if _orientation(image) in _QUARTER_TURNS else original
            return DecodedImage(pixels, width, height)
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        if _is_cut_off(data):
            raise DecodeError("truncated", "the file ends before what its header names") from error
        raise DecodeError("not_an_image", "no image format that Pillow reads") from error
    except Exception as error:  # decoders of damaged files raise whatever their parsing trips over
        message = f"{type(error).__name__}: {error}"
        truncated = "truncated" in message.lower() or _is_cut_off(data)
        raise DecodeError("truncated" if truncated else "undecodable", message) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow reads, but for EPS: it would run a program, Ghostscript, on the file."""
    Image.preinit()  # the common ones first, as Pillow itself has it
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def _is_cut_off(data: bytes) -> bool:
    """Whether a WebP ends before its own length, or a TIFF before its directory: Pillow names neither."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data[:4] in (b"II*\0", b"MM\0*"):
        return len(data) <= int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
    return False


def upright_rgb(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """Makes pixels [height, width, 3] of an opened image, as `decode` does. Raises what Pillow does."""
    height, width = size
    # Loaded before the orientation is read: Pillow turns TIFFs itself while it loads them.
    image.load()
    orientation = _orientation(image)
    turned = orientation in _QUARTER_TURNS
    rgb = _to_rgb(image).resize((height, width) if turned else (width, height), Image.Resampling.BILINEAR)
    if orientation in _TRANSPOSITIONS:
        rgb = rgb.transpose(_TRANSPOSITIONS[orientation])
    return np.asarray(rgb)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or the EXIF block is damaged."""
    try:
        orientation: int = image.getexif().get(0x0112, 1)
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
    """Converts any of Pillow's modes to 8-bit RGB. Raises ValueError where a palette is missing."""
    if image.mode == "P" and image.palette is None:
        raise ValueError("the file holds no palette")  # Pillow would make it black
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit, 32-bit and float grey values to 8 bits."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16"):
        return Image.fromarray((values / 257).round().astype(np.uint8))
    # Wider integers and floats have no fixed white: their own range becomes black to white.
    finite = np.nan_to_num(values, posinf=0, neginf=0)
    low, high = float(finite.min()), float(finite.max())
    scaled = (finite - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(scaled.round().astype(np.uint8))
