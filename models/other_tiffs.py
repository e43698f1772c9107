"""TIFFs that Pillow does not read, as images of 8 bits a color; docs/formats.md says what samples mean."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgindex.models.color import is_readable
from imgindex.models.levels import Levels, levels_of
from imgindex.models.tiff_samples import (
    ASSOCIATED,
    CIELAB,
    ICCLAB,
    ORIENTATION,
    PROFILE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    Codec,
    Layout,
    Values,
    blocks,
    codec_of,
    number,
)


def open_image(data: bytes, layout: Layout) -> Image.Image:
    """Decodes a TIFF to 8-bit gray or RGB on white, with its profile and its orientation in `info`.

    Raises:
      ValueError: it is damaged, or cut off.
      UnsupportedError: its compression is not read here.
      MissingCodecError: it needs imagecodecs.
    """
    codec = codec_of(layout)
    convert = _conversion(data, layout, codec)
    channels = 1 if layout.colors == 1 and not layout.alpha else 3
    pixels = np.empty((layout.height, layout.width, channels), np.uint8)
    for top, left, values in blocks(data, layout, codec):
        colors, alpha = _apart(values, layout)
        shown = convert(colors)
        if alpha is not None:
            shown = (shown * alpha + 255 * (1 - alpha)).round()
        pixels[top : top + len(values), left : left + values.shape[1]] = shown
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    profile = layout.tags.get(PROFILE)
    if isinstance(profile, bytes):
        image.info["icc_profile"] = profile
    exif = Image.Exif()
    exif[ORIENTATION] = number(layout.tags, ORIENTATION, 1)
    image.info["exif"] = exif.tobytes()
    return image


def _conversion(data: bytes, layout: Layout, codec: Codec) -> Callable[[Values], Values]:
    """The function that turns colors from `_apart` into 8-bit gray or RGB [rows, columns, 1 or 3]."""
    if layout.photometric in (CIELAB, ICCLAB):
        return _lab_to_rgb
    if layout.dtype == np.uint8:
        return (lambda colors: 255 - colors) if layout.photometric == WHITE_IS_ZERO else lambda colors: colors
    if layout.dtype.kind == "f" and layout.photometric == RGB:
        return _byte if is_readable(layout.tags.get(PROFILE), "RGB") else lambda colors: _byte(_srgb(colors))
    return _levels(data, layout, codec).apply


def _apart(values: Values, layout: Layout) -> tuple[Values, npt.NDArray[np.float64] | None]:
    """Colors as if they were opaque, and from 0 to 1 how opaque they are; None where all are.

    Float transparency goes from 0 to 1, that of whole numbers to the greatest of their kind.
    """
    colors = values[..., : layout.colors]
    if layout.photometric in (CIELAB, ICCLAB):
        colors = _lab(layout, colors)
    elif layout.photometric == YCBCR:
        colors = _ycbcr(colors)
    else:  # float16 has no room for what is ranked
        colors = colors.astype(np.float32 if layout.dtype == np.float16 else layout.dtype)
    if not layout.alpha:
        return colors, None
    most = 1.0 if layout.dtype.kind == "f" else float(np.iinfo(layout.dtype).max)
    alpha = (np.nan_to_num(values[..., layout.colors, np.newaxis].astype(np.float64)) / most).clip(0, 1)
    if layout.alpha == ASSOCIATED:
        with np.errstate(over="ignore", invalid="ignore"):
            opaque = colors / np.where(alpha > 0, alpha, 1)
        if colors.dtype in (np.uint8, np.uint16):
            opaque = opaque.round().clip(0, np.iinfo(colors.dtype).max).astype(colors.dtype)
        colors = opaque
    return colors, alpha


def _ycbcr(values: Values) -> Values:
    image = Image.frombytes("YCbCr", values.shape[1::-1], values.tobytes())
    return np.asarray(image.convert("RGB"))


def _levels(data: bytes, layout: Layout, codec: Codec) -> Levels:
    """Black and white for all colors, found as for gray that Pillow reads. Invisible pixels do not count."""
    image: Any = Image.new("I;16" if layout.dtype == np.uint16 else "F", (1, 1))
    image.tag_v2 = layout.tags

    def strips() -> Iterator[Values]:
        for _, _, values in blocks(data, layout, codec):
            colors, alpha = _apart(values, layout)
            yield colors if alpha is None else colors[alpha[..., 0] > 0]

    return levels_of(image, strips)


def _byte(values: Values) -> npt.NDArray[np.uint8]:
    return (_unit(values) * np.float32(255)).round().astype(np.uint8)


def _unit(values: Values) -> npt.NDArray[np.float32]:
    return np.nan_to_num(values).clip(0, 1).astype(np.float32)


def _srgb(light: Values) -> npt.NDArray[np.float32]:
    """The signal of sRGB for linear light; both from 0 to 1."""
    light = _unit(light)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


# XYZ of D65, the white of CIELAB here, as in libvips.
_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)
_XYZ_TO_RGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.969266, 1.8760108, 0.041556],
        [0.0556434, -0.2040259, 1.0572252],
    ],
    np.float32,
)


def _lab(layout: Layout, values: Values) -> npt.NDArray[np.float32]:
    """Lightness from 0 to 100, and a and b."""
    lab = values.astype(np.float32)
    if layout.dtype.kind != "f":
        bits = 8 * layout.dtype.itemsize
        lab[lab < 0] += 1 << bits  # all as unsigned
        scale = np.float32(1 << bits - 8)
        lightness, colors = lab[..., :1] * (100 / ((1 << bits) - 1)), lab[..., 1:] / scale
        signed = np.where(colors >= 128, colors - 256, colors)
        colors = colors - 128 if layout.photometric == ICCLAB else signed
        lab = np.concatenate([lightness, colors], axis=-1)
    return np.nan_to_num(lab)


def _lab_to_rgb(lab: Values) -> npt.NDArray[np.uint8]:
    y = (lab[..., 0] + 16) / 116
    cubes = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(cubes > 6 / 29, cubes**3, (cubes - 16 / 116) * 3 * (6 / 29) ** 2) * _WHITE
    return _byte(_srgb(xyz.astype(np.float32) @ _XYZ_TO_RGB.T))
