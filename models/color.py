"""Color profiles: what an image's own colors are in sRGB."""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, features

Conversion = Callable[[Image.Image], Image.Image]

# What `images.color_profile` may be.
COLOR_PROFILES = ("srgb", "ignore")

# Bytes of a profile. Those of printing presses, the largest there are, have up to 3 MiB.
_MAX_PROFILE = 4 << 20

# The color space that a profile must be of, by Pillow's mode; others are converted without a profile.
_SPACES = {
    **dict.fromkeys(("RGB", "RGBA", "RGBX", "RGBa", "P", "PA"), "RGB"),
    **dict.fromkeys(("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N"), "GRAY"),
    "CMYK": "CMYK",
}

# Profiles of input devices, displays, printers and color spaces; not of abstract effects or named colors.
_CLASSES = ("scnr", "mntr", "prtr", "spac")

# A profile that moves no color by more than this, of 255, is sRGB itself; rounding alone moves some by that.
_SAME = 2


def can_convert() -> bool:
    """Whether this Pillow can convert colors: a build without LittleCMS cannot."""
    return bool(features.check("littlecms2"))


def conversion_to_srgb(profile: object, mode: str) -> Conversion | None:
    """The function that converts an image with an embedded `profile` to sRGB.

    It takes an RGB image; of an image of mode CMYK its CMYK pixels. It is None where nothing is to be done:
    where there is no profile, where it is sRGB, and where it is damaged or not for images of this mode.
    """
    found = _found(profile, mode)
    return found[0] if found is not None and found[1] else None


def is_readable(profile: object, mode: str) -> bool:
    """Whether an embedded `profile` says what the colors of an image of this mode are."""
    return _found(profile, mode) is not None


def _found(profile: object, mode: str) -> tuple[Conversion, bool] | None:
    space = _SPACES.get(mode)
    if not isinstance(profile, bytes) or not 0 < len(profile) <= _MAX_PROFILE or space is None:
        return None
    return _conversion(profile, space)


@functools.lru_cache(maxsize=16)
def _conversion(profile: bytes, space: str) -> tuple[Conversion, bool] | None:
    """The conversion to sRGB, and whether it changes anything; None for a profile that does not count."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != space or source.profile.device_class not in _CLASSES:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            "L" if space == "GRAY" else space,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        convert = functools.partial(_convert, transform, gray=space == "GRAY")
        changes = space == "CMYK" or not _is_identity(convert, space == "GRAY")
    except Exception:  # whatever a damaged profile makes LittleCMS trip over; the pixels are whole
        return None
    return convert, changes


def _convert(transform: ImageCms.ImageCmsTransform, image: Image.Image, *, gray: bool) -> Image.Image:
    return transform.apply(image.getchannel(0) if gray else image)


def _is_identity(convert: Conversion, gray: bool) -> bool:
    """Whether `convert` leaves all grays as they are and, unless only those count, a lattice of colors."""
    colors = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], 3, axis=1)
    if not gray:
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
        colors = np.concatenate([colors, lattice])
    converted = np.asarray(convert(Image.fromarray(colors[np.newaxis])), np.int16)
    return bool(np.abs(converted[0] - colors).max() <= _SAME)
