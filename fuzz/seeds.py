"""Writes what the fuzzer begins with: a small image of every format and mode that Pillow reads, and bad ones.

All are made here, or by the tests of bad inputs, so that no image need lie in the repository.
"""

import contextlib
import hashlib
import io
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import bad_inputs

from imgindex.models import plugins

# The fuzzer's mutations are of little use on longer inputs, and slow.
MAX_BYTES = 1 << 16

WIDTH, HEIGHT = 12, 9
MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
)

# Beside each format's defaults.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "AVIF": [{"quality": 100, "subsampling": "4:4:4"}],
    "BLP": [{"blp_version": "BLP1"}],
    "DDS": [{"pixel_format": form} for form in ("DXT1", "DXT3", "DXT5", "BC2", "BC3", "BC5")],
    "GIF": [{"interlace": 0}, {"transparency": 0}],
    "ICO": [{"sizes": [(8, 8), (12, 9)]}, {"bitmap_format": "bmp"}],
    "JPEG": [{"progressive": True}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_rows": 1}],
    "JPEG2000": [{"irreversible": True}, {"no_jp2": True}, {"tile_size": (8, 8)}],
    "PNG": [{"bits": 1}, {"bits": 2}, {"bits": 4}, {"compress_level": 0}],
    "TGA": [{"compression": "tga_rle"}, {"orientation": 1}],
    "TIFF": [{"big_tiff": True}],
    "WEBP": [{"lossless": True}, {"quality": 1, "method": 0}],
}

# Of each only what it takes: for others the writing may end the process.
TIFFS = {
    "1": ("group3", "group4", "tiff_ccitt", "packbits"),
    "L": ("jpeg", "tiff_lzw", "zstd"),
    "YCbCr": ("packbits",),
    "P": ("packbits", "lzma"),
    "RGB": ("jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits"),
    "RGBA": ("tiff_deflate",),
    "CMYK": ("tiff_lzw",),
    "F": ("tiff_lzw",),
}

# Not quite sRGB, whose white point is elsewhere: a profile that is sRGB would not be applied.
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"rXYZ", b"gXYZ", 1)

EXIF = Image.Exif()
EXIF[0x0112] = 6


def image(mode: str) -> Image.Image:
    """An image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    if mode.startswith("I;16"):
        return Image.frombytes(mode, rgb.size, pixels[..., :2].tobytes())
    if mode == "LAB":
        return Image.frombytes(mode, rgb.size, pixels.tobytes())
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    if mode == "RGBa":
        return rgb.convert("RGBA").convert(mode)
    return rgb.convert("L").convert(mode) if mode in ("LA", "I", "F") else rgb.convert(mode)


def encodings() -> Iterator[bytes]:
    """Each format that Pillow writes, in each of the modes and with each of the options that it takes."""
    warnings.simplefilter("ignore")  # of modes that Pillow is going to drop
    Image.init()
    plugins.register()
    for form in sorted(Image.SAVE):
        extra = [{}, *OPTIONS.get(form, []), {"exif": EXIF}, {"icc_profile": PROFILE}]
        for mode in MODES:
            for options in extra:
                # A format that does not take this mode or this option.
                with contextlib.suppress(
                    OSError,
                    ValueError,
                    KeyError,
                    TypeError,
                    AttributeError,
                    NotImplementedError,
                    struct.error,
                ):
                    yield bad_inputs.encoded(image(mode), form, **options)
    for form in ("AVIF", "GIF", "MPO", "PNG", "TIFF", "WEBP"):
        frames = [image("L").convert("RGB"), image("P").convert("RGB")]
        yield bad_inputs.encoded(image("RGB"), form, save_all=True, append_images=frames)


def unwritten() -> Iterator[bytes]:
    """Formats that Pillow only reads, and what of others it does not write."""
    rgb = image("RGB").tobytes()
    gray = image("L").tobytes()
    area = WIDTH * HEIGHT
    for mode in ("L", "LA", "RGB", "RGBA"):
        for container in (False, True):
            pixels = np.asarray(image(mode))
            yield imagecodecs.jpegxl_encode(pixels, lossless=container, usecontainer=container)
    yield imagecodecs.jpegxl_encode(np.asarray(image("RGB"), np.uint16), lossless=True)
    # libjxl refuses the profile, which is damaged on purpose.
    yield imagecodecs.jpegxl_encode_jpeg(bad_inputs.encoded(image("RGB"), "JPEG", exif=EXIF))
    # Sun raster: depth 24, uncompressed and run-length encoded.
    for kind, body in ((1, rgb), (2, rgb.replace(b"\x80", b"\x80\x00"))):
        yield struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 24, len(body), kind, 0, 0) + body
    yield (
        b"SIMPLE  =                    T".ljust(80)
        + b"".join(
            f"{key:<8}= {value:>20}".encode().ljust(80)
            for key, value in (("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", WIDTH), ("NAXIS2", HEIGHT))
        ).ljust(2880 - 80 - 80)
        + b"END".ljust(80)
        + gray
    )
    yield (b'/* XPM */\nstatic char *x[] = {\n"4 2 2 1",\n"a c #ff0000",\n"b c None",\n"abab",\n"baba"\n};\n')
    # Photoshop: raw and PackBits.
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, HEIGHT, WIDTH, 8, 3) + bytes(12)
    yield header + struct.pack(">H", 0) + rgb
    line = bytes([256 - WIDTH + 1, 0x80])
    yield header + struct.pack(">H", 1) + struct.pack(">H", len(line)) * 3 * HEIGHT + line * 3 * HEIGHT
    # FLI: one frame of a palette and literal runs.
    pixels = struct.pack("<IH", 6 + area, 16) + gray
    palette = struct.pack("<IHHBB", 10 + 768, 4, 1, 0, 0) + bytes(range(256)) * 3
    frame = struct.pack("<IHH8x", 16 + len(palette) + len(pixels), 0xF1FA, 2) + palette + pixels
    start = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF12, 1, WIDTH, HEIGHT, 8, 0, 70)
    yield start.ljust(128, b"\0") + frame
    yield struct.pack(">7I", 29, 2, WIDTH, HEIGHT, 4, 0x47494D50, 10) + b"\0" + image("RGBA").tobytes()
    yield struct.pack(">6I", 25, 1, WIDTH, HEIGHT, 1, 0)[:20] + b"brush\0" + gray
    yield b"P7 332\n#END_OF_COMMENTS\n" + b"12 9 255\n" + gray
    yield b"\x80\xe8\x00\x00".ljust(416, b"\0") + struct.pack("<HH", HEIGHT, WIDTH).ljust(608, b"\x03") + rgb
    yield b"FTEX" + struct.pack("<5I", 1, WIDTH, HEIGHT, 1, 1) + struct.pack("<II", 0, 32) + bytes(area)
    for mode, compressions in TIFFS.items():
        for compression in compressions:
            yield bad_inputs.encoded(image(mode), "TIFF", compression=compression)
    # A cursor is an icon of another kind with BMPs, and DCX a list of PCX files.
    icon = bad_inputs.encoded(image("RGBA"), "ICO", bitmap_format="bmp")
    yield icon[:2] + b"\2" + icon[3:]
    yield struct.pack("<III", 987654321, 12, 0) + bad_inputs.encoded(image("RGB"), "PCX")
    # PNG's seven passes; a zlib stream of one of them is as long as all.
    body = zlib.compress(bytes(4 * HEIGHT * WIDTH))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1)
    yield b"\x89PNG\r\n\x1a\n" + b"".join(
        bad_inputs.chunk(*part) for part in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


def oddities() -> Iterator[bytes]:
    """What `decode` reads otherwise than Pillow does."""
    # Run-length encoded BMPs: runs, pixels one by one, a step and an early end.
    for bits, kind, pixels in ((8, 1, b"\0\3\1\2\3\0"), (4, 2, b"\0\5\x12\x34\x50\0")):
        body = pixels + b"\4\x21\0\0\0\2\3\1\5\x43\0\1"
        colors = bytes(range(64))
        header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, kind, len(body), 0, 0, 16, 0)
        yield b"BM" + struct.pack("<IHHI", 118 + len(body), 0, 0, 118) + header + colors + body
    # PNGs with a transparent color, or with more alphas than colors, and one without colors.
    for depth, kind, colors, transparent in (
        (16, 0, None, b"\1\2"),
        (16, 2, None, b"\1\2\3\4\5\6"),
        (2, 0, None, b"\0\1"),
        (8, 3, bytes(9), b"\0\1\2\3"),
        (8, 3, b"", b""),
    ):
        row = b"\0" + bytes(-(-WIDTH * depth * (3 if kind == 2 else 1) // 8))
        parts = [(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, kind, 0, 0, 0))]
        parts += [] if colors is None else [(b"PLTE", colors)]
        parts += [(b"tRNS", transparent), (b"IDAT", zlib.compress(row * HEIGHT)), (b"IEND", b"")]
        yield b"\x89PNG\r\n\x1a\n" + b"".join(bad_inputs.chunk(*part) for part in parts)
    # Deep TIFFs that name a white, a value for holes, and a least value that is white.
    for mode in ("I;16", "I", "F"):
        for tag, value in ((281, 4095), (42113, "-9999"), (262, 0)):
            yield bad_inputs.encoded(image(mode), "TIFF", tiffinfo={tag: value})
    # Of more than one strip, each of 8 or 24 rows: JPEG takes multiples of 8.
    for mode in ("L", "RGB"):
        tall = image(mode).resize((WIDTH, 32))
        yield bad_inputs.encoded(tall, "TIFF", compression="jpeg", strip_size=288)
    for fill_order in (1, 2):
        yield bad_inputs.encoded(image("1"), "TIFF", compression="group4", tiffinfo={266: fill_order})


def other_tiffs() -> Iterator[bytes]:
    """TIFFs that `decode` reads and Pillow does not."""
    rgb = np.asarray(image("RGB"))
    light, lab = (rgb / 255).astype(np.float32), rgb.astype(np.int16)
    clear = np.dstack([light, light[..., :1]])
    kinds: list[tuple[Any, str, dict[str, Any]]] = [
        *(
            (light, "rgb", {"compression": name})
            for name in (None, "lzw", "packbits", "zstd", "lzma", "lerc")
        ),
        *((rgb, "rgb", {"compression": name}) for name in ("webp", "jpeg2000", "jpegxl", "jpegxr", "png")),
        (light, "rgb", {"compression": "deflate", "predictor": True, "tile": (16, 16)}),
        (light, "rgb", {"bigtiff": True, "byteorder": ">"}),
        (np.moveaxis(light, 2, 0).copy(), "rgb", {"planarconfig": "separate"}),
        *((clear, "rgb", {"extrasamples": [name]}) for name in ("unassalpha", "assocalpha")),
        (lab, "cielab", {"compression": "lzw", "predictor": True}),
        (light, "cielab", {}),
        (rgb, "icclab", {}),
        (rgb, "ycbcr", {}),
        (rgb.astype(np.uint32), "rgb", {}),
        (light[..., 0].astype(np.float64), "miniswhite", {}),
    ]
    for values, photometric, options in kinds:
        file = io.BytesIO()
        tifffile.imwrite(file, values, photometric=photometric, **options)
        yield file.getvalue()


def of_the_tests() -> Iterator[bytes]:
    """What the tests of bad inputs try, but for what fails before it is decoded."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in bad_inputs.KINDS:
            if kind.stage in ("", "decode"):
                path = Path(folder, "file")
                kind.write(path)
                yield path.read_bytes()


def write(folder: Path) -> int:
    """Writes the seeds to `folder`, named by their digests; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {
        data
        for make in (encodings, unwritten, oddities, other_tiffs, of_the_tests)
        for data in make()
        if len(data) <= MAX_BYTES
    }
    for data in seeds:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return len(seeds)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])), "seeds in", sys.argv[1])
