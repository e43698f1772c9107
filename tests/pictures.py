"""A picture, its parts, and a color profile, for tests of whatever decodes them."""

import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 48, 64

SMOOTH = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
RGB = Image.fromarray(SMOOTH).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
ALPHA = Image.fromarray(np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH))
DEEP = (np.asarray(RGB.convert("L"), np.uint16) * 257).astype(np.uint16)


def swapped_profile() -> bytes:
    """A profile of a display whose red is sRGB's green, and the other way round."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    places = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)
