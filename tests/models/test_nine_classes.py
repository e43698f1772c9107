"""Nine classes of odd files, with libvips as the judge: what it reads is read, and looks the same.

The exceptions are in docs/formats.md, and in `SEEN_OTHERWISE` with what the pictures are instead.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import chunk
from pictures import DEEP, HEIGHT, RGB, WIDTH, swapped_profile
from PIL import Image
from test_independent_decoder import TOLERANCE, seen_by_vips
from test_other_tiffs import FLOATS, LAB_16, PIXELS, by_vips, linear, tiff
from test_preprocess import encoded, png

from imgindex.models.preprocess import decode

pyvips = pytest.importorskip("pyvips")

DOCS = Path(__file__).parents[2] / "docs" / "formats.md"


def bmps() -> Iterator[tuple[str, bytes]]:
    """By hand: Pillow writes none of these."""
    blue_first = PIXELS[..., ::-1]
    os2 = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24) + blue_first[::-1].tobytes()
    yield "OS/2", b"BM" + struct.pack("<IHHI", 14 + len(os2), 0, 0, 26) + os2
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, -HEIGHT, 1, 24, 0, 0, 0, 0, 0, 0) + blue_first.tobytes()
    yield "top down", b"BM" + struct.pack("<IHHI", 14 + len(info), 0, 0, 54) + info
    words = PIXELS.astype(np.uint32) @ np.array([1 << 20, 1 << 10, 1], np.uint32) * 4
    fields = struct.pack(
        "<IiiHHIIiiII3I", 40, WIDTH, HEIGHT, 1, 32, 3, 0, 0, 0, 0, 0, 0xFF << 22, 0xFF << 12, 0xFF << 2
    )
    yield (
        "bit fields",
        b"BM" + struct.pack("<IHHI", 0, 0, 0, 66) + fields + words[::-1].astype("<u4").tobytes(),
    )


def big_tiffs() -> Iterator[tuple[str, bytes]]:
    for order in "<>":
        for compression in (None, "lzw", "deflate"):
            yield (
                f"{order} {compression}",
                tiff(PIXELS, bigtiff=True, byteorder=order, compression=compression),
            )
        yield f"{order} floating point", tiff(linear(PIXELS), bigtiff=True, byteorder=order)


def compressed_tiffs() -> Iterator[tuple[str, bytes]]:
    yield "WebP without loss", by_vips("srgb", compression="webp", lossless=True)
    yield "WebP", by_vips("srgb", compression="webp", Q=90)
    yield "WebP in tiles", tiff(PIXELS, compression="webp", tile=(16, 16))
    for name in ("zstd", "lzma", "jpeg2000", "jpegxl", "jpegxr", "png", "lerc"):
        yield name, tiff(PIXELS, compression=name)


def deep_tiffs() -> Iterator[tuple[str, bytes]]:
    yield "float32", FLOATS
    yield "float16", tiff(linear(PIXELS, np.float16))
    yield "float32 by libvips", by_vips("scrgb", compression="deflate")
    yield "uint32", tiff(PIXELS.astype(np.uint32))
    yield "uint32, the whole range", tiff(PIXELS.astype(np.uint32) * 0x01010101)
    yield "rgb16", by_vips("rgb16")


def lab_tiffs() -> Iterator[tuple[str, bytes]]:
    yield "float32", by_vips("lab")
    yield "16 bits", LAB_16
    yield "16 bits, LZW in tiles", by_vips("labs", compression="lzw", tile=True)


def pngs() -> Iterator[tuple[str, bytes]]:
    good = encoded(RGB, "PNG")
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20)))
    wrong = bytearray(chunk(b"tEXt", b"a\0b"))
    wrong[-1] ^= 1
    for name, side in (("huge text", text), ("wrong checksum", bytes(wrong))):
        yield name, good[:33] + side + good[33:]
    yield "profile", encoded(RGB, "PNG", icc_profile=swapped_profile())
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    yield "16 bits", png((HEIGHT, WIDTH), 16, 0, rows)


def jpegs() -> Iterator[tuple[str, bytes]]:
    good = encoded(RGB, "JPEG", quality=95)
    yield "no end marker", good[:-2]
    yield "bytes after its end", good + bytes(1000)
    yield "fill bytes before a marker", good[:2] + b"\xff\xff" + good[2:]
    yield "stray bytes before a marker", good[:2] + b"\0\0" + good[2:]
    yield "restart markers", encoded(RGB, "JPEG", quality=95, restart_marker_rows=1)


def inks() -> Iterator[tuple[str, bytes]]:
    rgb = pyvips.Image.new_from_memory(PIXELS.tobytes(), WIDTH, HEIGHT, 3, "uchar").copy(
        interpretation="srgb"
    )
    cmyk = rgb.icc_export(output_profile="cmyk")
    yield "JPEG with a profile", cmyk.jpegsave_buffer(Q=95)
    yield "TIFF with a profile", cmyk.tiffsave_buffer()
    yield "JPEG without a profile", encoded(RGB.convert("CMYK"), "JPEG", quality=95)


def animations() -> Iterator[tuple[str, bytes]]:
    frames = [Image.new("RGB", RGB.size, color) for color in ("red", "green")]
    for form, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        file = io.BytesIO()
        RGB.quantize(64).convert("RGB").save(file, form, save_all=True, append_images=frames, **options)
        yield form, file.getvalue()


CLASSES = {
    "BMP": bmps, "BigTIFF": big_tiffs, "TIFF compressions": compressed_tiffs, "deep TIFF": deep_tiffs,
    "CIELAB TIFF": lab_tiffs, "PNG": pngs, "JPEG": jpegs, "CMYK": inks, "animation": animations,
}  # fmt: skip

# Where libvips, or its wheel, reads nothing or another picture: what the docs say of it.
SEEN_OTHERWISE = {
    **dict.fromkeys(["BMP OS/2", "BMP top down", "BMP bit fields"], "libvips' wheel reads none"),
    **dict.fromkeys(
        [f"TIFF compressions {name}" for name in ("jpeg2000", "jpegxl", "jpegxr", "png", "lerc")],
        "gives black pictures",
    ),
    **dict.fromkeys(
        [f"TIFF compressions {name}" for name in ("zstd", "lzma")], "either library may be built without it"
    ),
    "deep TIFF uint32, the whole range": "libvips clips values to 0 to 255",
    "JPEG stray bytes before a marker": "bytes may stray before its first marker",
    "CMYK JPEG without a profile": "libvips assumes a printing press",
}

FILES = {f"{kind} {name}": data for kind, make in CLASSES.items() for name, data in make()}


@pytest.mark.parametrize("name", FILES)
def test_libvips_sees_the_same_picture_or_the_docs_say_why_not(name: str) -> None:
    data = FILES[name]
    seen = decode(data, (HEIGHT, WIDTH)).pixels.astype(float)
    if name in SEEN_OTHERWISE:
        assert SEEN_OTHERWISE[name] in DOCS.read_text()
        expected: Any = PIXELS
    else:
        expected = seen_by_vips(data)
    assert np.abs(seen - expected).mean() <= TOLERANCE
