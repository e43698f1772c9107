"""Generated images of the formats and modes that libvips reads, too: both decoders see the same picture.

Where they do not, docs/formats.md says which and why.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pictures import ALPHA, DEEP, HEIGHT, RGB, WIDTH, swapped_profile
from PIL import Image
from test_preprocess import encoded, png

from imgindex.models.preprocess import decode

pyvips = pytest.importorskip("pyvips")

# Of 255, on the mean of all pixels.
TOLERANCE = 3


def picture(mode: str) -> Image.Image:
    if mode == "RGBA":
        image = RGB.copy()
        image.putalpha(ALPHA)
        return image
    if mode == "LA":
        return Image.merge("LA", [RGB.convert("L"), ALPHA])
    if mode == "I;16":
        return Image.fromarray(DEEP)
    return RGB.convert(mode)


def by_pillow() -> Iterator[tuple[str, bytes]]:
    lossless: dict[str, Any] = {"lossless": True}
    kinds: list[tuple[str, str, list[dict[str, Any]]]] = [
        ("JPEG", "L RGB", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}]),
        ("PNG", "1 L LA P RGB RGBA I;16", [{}]),
        ("PNG", "P", [{"bits": 4}, {"transparency": 7}, {"transparency": bytes(range(0, 250, 10))}]),
        ("GIF", "L P RGB", [{}, {"interlace": 0}]),
        ("GIF", "P", [{"transparency": 7}]),
        ("WEBP", "L RGB RGBA", [{}, lossless]),
        ("AVIF", "L RGB RGBA", [{"quality": 90, "subsampling": "4:4:4"}]),
        ("TIFF", "1 L LA P RGB RGBA I;16", [{}]),
        ("TIFF", "1", [{"compression": name} for name in ("group3", "group4", "packbits")]),
        ("TIFF", "L RGB RGBA I;16", [{"compression": name} for name in ("tiff_lzw", "tiff_adobe_deflate")]),
        ("TIFF", "L RGB", [{"compression": "jpeg"}, {"compression": "packbits"}]),
        ("TIFF", "RGB", [{"big_tiff": True}]),
    ]
    for form, modes, options in kinds:
        for mode in modes.split():
            for each in options:
                yield f"{form} {mode} {each}", encoded(picture(mode), form, **each)
    for form in ("JPEG", "PNG", "TIFF", "WEBP"):
        exif = Image.Exif()
        for exif[0x0112] in range(1, 9):
            yield f"{form} turned {exif[0x0112]}", encoded(RGB, form, exif=exif)
        yield f"{form} profile", encoded(RGB, form, icc_profile=swapped_profile())


def by_hand() -> Iterator[tuple[str, bytes]]:
    wide = np.asarray(RGB, np.uint16).astype(">u2") * np.uint16(257)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    yield "PNG 16-bit RGB", png((HEIGHT, WIDTH), 16, 2, rows)
    gray = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    yield "PNG 16-bit gray with tRNS", png((HEIGHT, WIDTH), 16, 0, gray, struct.pack(">H", int(DEEP[5, 5])))
    few = np.asarray(RGB.convert("L")) >> 6
    packed = few.reshape(HEIGHT, WIDTH // 4, 4) @ np.array([64, 16, 4, 1])
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in packed)
    yield "PNG 2-bit gray", png((HEIGHT, WIDTH), 2, 0, rows)
    yield "PNG 2-bit gray with tRNS", png((HEIGHT, WIDTH), 2, 0, rows, b"\0\2")
    inverted = encoded(picture("I;16"), "TIFF")
    whites = [struct.pack("<HHII", 262, 3, 1, value) for value in (1, 0)]
    yield "TIFF 16-bit, white is zero", inverted.replace(*whites)
    for order in "<>":
        yield f"TIFF 16-bit RGB in planes {order}", planes_of_16_bits(order)


def planes_of_16_bits(order: str) -> bytes:
    """An uncompressed TIFF with a plane for each color, in byte order ``<`` or ``>``."""
    planes = np.moveaxis(np.asarray(RGB, np.uint16) * np.uint16(257), 2, 0).astype(f"{order}u2")
    count, start = 10, 8 + 2 + 10 * 12 + 4  # tags; where what is longer than they are begins
    at = [start + 6 + 12 + 12 + plane * planes[0].nbytes for plane in range(3)]
    tags = [
        (256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 3, 3, start), (259, 4, 1, 1), (262, 4, 1, 2),
        (273, 4, 3, start + 6), (277, 4, 1, 3), (278, 4, 1, HEIGHT), (279, 4, 3, start + 18), (284, 4, 1, 2),
    ]  # fmt: skip
    return b"".join([
        {"<": b"II", ">": b"MM"}[order],
        struct.pack(f"{order}HIH", 42, 8, count),
        *(struct.pack(f"{order}HHII", *tag) for tag in tags),
        struct.pack(f"{order}I3H6I", 0, 16, 16, 16, *at, *[planes[0].nbytes] * 3),
        planes.tobytes(),
    ])  # fmt: skip


def by_vips() -> Iterator[tuple[str, bytes]]:
    rgb = pyvips.Image.new_from_memory(np.asarray(RGB).tobytes(), WIDTH, HEIGHT, 3, "uchar")
    rgb = rgb.copy(interpretation="srgb")
    deep = pyvips.Image.new_from_memory(DEEP.tobytes(), WIDTH, HEIGHT, 1, "ushort")
    deep = deep.copy(interpretation="grey16")
    black_white = rgb.colourspace("b-w")
    for tiled in (False, True):
        tiles: dict[str, Any] = {"tile": True, "tile_width": 32, "tile_height": 16} if tiled else {}
        for compression in ("none", "lzw", "deflate", "jpeg", "packbits"):
            data = rgb.tiffsave_buffer(compression=compression, **tiles)
            yield f"TIFF by libvips {compression} {tiles}", data
        for compression in ("none", "lzw"):
            yield (
                f"TIFF by libvips 16-bit {compression} {tiles}",
                deep.tiffsave_buffer(compression=compression, **tiles),
            )
    yield "TIFF by libvips Group 4", black_white.tiffsave_buffer(compression="ccittfax4", bitdepth=1)
    for depth in (1, 2, 4):
        yield f"TIFF by libvips {depth}-bit", black_white.tiffsave_buffer(bitdepth=depth)
        yield f"PNG by libvips {depth}-bit palette", rgb.pngsave_buffer(palette=True, bitdepth=depth)
    yield "PNG by libvips interlaced", rgb.pngsave_buffer(interlace=True)
    yield "PNG by libvips 16-bit", rgb.colourspace("rgb16").pngsave_buffer(bitdepth=16)
    yield "TIFF by libvips 16-bit RGB", rgb.colourspace("rgb16").tiffsave_buffer()
    yield "GIF by libvips", rgb.gifsave_buffer()
    yield "WebP by libvips", rgb.webpsave_buffer(Q=90)
    yield "AVIF by libvips", rgb.heifsave_buffer(compression="av1", Q=90)
    yield "JPEG by libvips", rgb.jpegsave_buffer(Q=90, interlace=True)
    profile = bytes(pyvips.Operation.call("profile_load", "cmyk"))
    inks = rgb.icc_export(output_profile="cmyk")
    assert len(bytes(inks.get("icc-profile-data"))) == len(profile)
    yield "JPEG CMYK with a profile", inks.jpegsave_buffer(Q=95)
    yield "TIFF CMYK with a profile", inks.tiffsave_buffer()
    wide = rgb.icc_transform("p3")
    yield "JPEG Display P3", wide.jpegsave_buffer(Q=95)
    yield "PNG Display P3", wide.pngsave_buffer()


def cases(*makers: Callable[[], Iterator[tuple[str, bytes]]]) -> list[Any]:
    return [pytest.param(data, id=name) for make in makers for name, data in make()]


def seen_by_vips(data: bytes) -> np.ndarray:
    """RGB pixels [height, width, 3], upright, on white."""
    image = pyvips.Image.new_from_buffer(data, "").autorot()
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True, intent="relative", black_point_compensation=True)
    if image.hasalpha():
        white = 65535 if image.format == "ushort" else 255
        image = image.flatten(background=[white] * (image.bands - 1))
    pixels = image.colourspace("srgb").cast("uchar").numpy()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., np.newaxis], 3, axis=2)


@pytest.mark.parametrize("data", cases(by_pillow, by_hand, by_vips))
def test_libvips_sees_the_same_picture(data: bytes) -> None:
    expected = seen_by_vips(data)
    image = decode(data, expected.shape[:2])
    assert (image.height, image.width) == expected.shape[:2]
    assert np.abs(image.pixels - expected.astype(np.float64)).mean() <= TOLERANCE
