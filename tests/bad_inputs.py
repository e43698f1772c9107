"""Files that are no images, or broken or strange ones, each with what becomes of it in a build.

None is from elsewhere: all are made here, byte by byte or by Pillow.
"""

import gzip
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

# The limits that these outcomes are for.
MAX_PIXELS = 1_000_000
MAX_BYTES = 1_000_000

WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class Kind:
    """A file of one kind."""

    file: str  # its name
    write: Callable[[Path], object]
    stage: str  # that it fails in; nothing for a file that is indexed
    reason: str


KINDS: list[Kind] = []

Bytes = Callable[[], bytes]


def add(file: str, make: Bytes, stage: str = "", reason: str = "") -> None:
    """Adds the kind of file whose bytes `make` gives."""
    KINDS.append(Kind(file, lambda path: path.write_bytes(make()), stage, reason))


def kind(file: str, stage: str = "", reason: str = "") -> Callable[[Bytes], Bytes]:
    """Adds the kind of file whose bytes the decorated function gives."""

    def decorate(make: Bytes) -> Bytes:
        add(file, make, stage, reason)
        return make

    return decorate


def good(file: str) -> Callable[[Bytes], Bytes]:
    return kind(file)


def bad(file: str, reason: str) -> Callable[[Bytes], Bytes]:
    return kind(file, "decode", reason)


def noise(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "green", "blue")]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


# Truncated: to so many bytes, or by the last so many, or to a share of the whole.


def cut(data: bytes, at: float) -> bytes:
    return data[: int(len(data) * at)] if 0 < at < 1 else data[: int(at)]


TRUNCATED = "truncated"
# Of a few bytes Pillow cannot tell what they begin; the last bytes of some formats say nothing more.
CUTS: dict[str, tuple[Bytes, dict[float, str]]] = {
    "baseline.jpg": (
        lambda: encoded(noise(), "JPEG"),
        {3: "not_an_image", 100: TRUNCATED, 0.5: TRUNCATED, 0.9: TRUNCATED, -1: ""},
    ),
    "progressive.jpg": (
        lambda: encoded(noise(), "JPEG", progressive=True),
        {0.3: TRUNCATED, 0.7: TRUNCATED, -1: ""},
    ),
    "rgb.png": (
        lambda: encoded(noise(), "PNG"),
        {8: "not_an_image", 24: TRUNCATED, 0.5: TRUNCATED, -40: TRUNCATED, -1: ""},
    ),
    "palette.png": (lambda: encoded(noise().convert("P"), "PNG"), {0.5: TRUNCATED}),
    "palette.gif": (
        lambda: encoded(noise().convert("P"), "GIF"),
        {6: "not_an_image", 0.5: TRUNCATED, -10: TRUNCATED, -1: ""},
    ),
    "lossy.webp": (lambda: encoded(noise(), "WEBP"), {12: TRUNCATED, 0.5: TRUNCATED, -1: TRUNCATED}),
    "lossless.webp": (lambda: encoded(noise(), "WEBP", lossless=True), {0.5: TRUNCATED}),
    "raw.tif": (
        lambda: encoded(noise(), "TIFF"),
        {8: TRUNCATED, 200: TRUNCATED, 0.5: TRUNCATED, -1: TRUNCATED},
    ),
    "lzw.tif": (lambda: encoded(noise(), "TIFF", compression="tiff_lzw"), {0.5: TRUNCATED}),
    "rgb.bmp": (
        lambda: encoded(noise(), "BMP"),
        {2: "not_an_image", 54: TRUNCATED, 0.5: TRUNCATED, -1: TRUNCATED},
    ),
    # Of an animation only the first frame counts, where the format lets it be read alone.
    "animated.webp": (lambda: animation("WEBP"), {0.7: TRUNCATED}),
    "animated.gif": (lambda: animation("GIF"), {0.7: ""}),
    "animated.png": (lambda: animation("PNG"), {0.7: ""}),
    "animated.tif": (lambda: animation("TIFF"), {0.7: ""}),
}


def add_cut(name: str, make: Bytes, at: float, reason: str) -> None:
    add(f"cut-{at}-{name}", lambda: cut(make(), at), "decode" if reason else "", reason)


for name, (make, cuts) in CUTS.items():
    for at, reason in cuts.items():
        add_cut(name, make, at, reason)


# No images at all, under the names of images.


@bad("empty.jpg", "empty")
def empty() -> bytes:
    return b""


@bad("text.jpg", "not_an_image")
def text() -> bytes:
    return b"Once upon a time\n" * 100


@bad("not-found.jpg", "not_an_image")
def html() -> bytes:
    return b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>\n"


@bad("document.png", "not_an_image")
def pdf() -> bytes:
    return encoded(noise(), "PDF")


@bad("archive.png", "not_an_image")
def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("image.png", encoded(noise(), "PNG"))
    return buffer.getvalue()


@bad("compressed.bmp", "not_an_image")
def gzipped_image() -> bytes:
    return gzip.compress(encoded(noise(), "BMP"))


@bad("drawing.png", "not_an_image")
def svg() -> bytes:
    return b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><circle r="1"/></svg>'


@bad("video.jpg", "not_an_image")
def mp4_header() -> bytes:
    return b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(200)


@bad("photo.heic.jpg", "undecodable")
def heic_header() -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


@bad("sound.webp", "not_an_image")
def wave() -> bytes:
    return b"RIFF\x24\0\0\0WAVEfmt " + bytes(40)


@bad("postscript.jpg", "not_an_image")
def eps() -> bytes:
    """Pillow would run Ghostscript on it."""
    return encoded(noise(), "EPS")


@bad("program.gif", "not_an_image")
def elf() -> bytes:
    return b"\x7fELF\2\1\1" + bytes(100)


@bad("zeros.jpg", "not_an_image")
def zeros() -> bytes:
    return bytes(10_000)


@bad("random.png", "not_an_image")
def random_bytes() -> bytes:
    return np.random.default_rng(1).bytes(5000)


# More than it is worth to look at.


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *before: bytes, data: bytes | None = None, depth: int = 8) -> bytes:
    """An RGB PNG with the chunks `before` its compressed `data`, by default the right number of gray rows."""
    rows = (b"\0" + b"\x80" * 3 * width) * height if data is None else b""
    body = zlib.compress(rows) if data is None else data
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@bad("bomb.png", "too_many_pixels")
def png_bomb() -> bytes:
    return png(50_000, 50_000, data=b"")


@bad("compressed-well.png", "too_many_pixels")
def png_of_one_color() -> bytes:
    """25 million pixels in 75 KB, and nothing wrong with them."""
    return encoded(Image.new("RGB", (5000, 5000)), "PNG")


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
        + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00;"
    )  # fmt: skip


@bad("bomb.gif", "too_many_pixels")
def gif_bomb() -> bytes:
    return gif((65535, 65535), (65535, 65535))


@bad("bomb-in-a-frame.gif", "too_many_pixels")
def gif_whose_frame_is_larger_than_its_screen() -> bytes:
    return gif((1, 1), (65535, 65535))


def tiff(width: int, height: int, *, compression: int = 1, strip: int = 122) -> bytes:
    """A gray TIFF of one strip, which begins at the byte `strip`."""
    count = min(width * height, 10_000)
    tags = [
        (256, width), (257, height), (258, 8), (259, compression), (262, 1), (273, strip), (277, 1),
        (278, height), (279, count),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + b"\x80" * count


@bad("bomb.tif", "too_many_pixels")
def tiff_bomb() -> bytes:
    return tiff(100_000, 100_000)


@bad("large.webp", "too_many_pixels")
def large_webp() -> bytes:
    return encoded(Image.new("RGB", (1001, 1000)), "WEBP")


@bad("bomb.webp", "undecodable")
def webp_bomb() -> bytes:
    """Its canvas is 16,384 times as wide and high as the image on it, which libwebp refuses."""
    image = encoded(noise(), "WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\x00" * 2
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(image)) + b"WEBP" + canvas + image


@bad("bomb.bmp", "too_many_pixels")
def bmp_bomb() -> bytes:
    return bmp(2**31 - 1, 2**31 - 1)


@bad("bomb.jpg", "too_many_pixels")
def jpeg_bomb() -> bytes:
    return sized_jpeg(65_500, 65_500)


def sized_jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header names another size."""
    data = encoded(noise(), "JPEG")
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


@good("bomb-in-a-comment.png")
def png_text_bomb() -> bytes:
    comment = b"Comment\0\0" + zlib.compress(bytes(2**26))
    return png(WIDTH, HEIGHT, chunk(b"zTXt", comment))


@good("bomb-in-a-profile.png")
def png_profile_bomb() -> bytes:
    profile = b"Profile\0\0" + zlib.compress(bytes(2**26))
    return png(WIDTH, HEIGHT, chunk(b"iCCP", profile))


@kind("heavy.png", "read", "too_many_bytes")
def heavy() -> bytes:
    return encoded(noise(), "PNG") + bytes(MAX_BYTES)


# Images with something wrong in them.


@bad("no-data.png", TRUNCATED)
def png_without_data() -> bytes:
    return png(WIDTH, HEIGHT, data=b"")


@bad("no-zlib.png", "undecodable")
def png_with_garbage_for_data() -> bytes:
    return png(WIDTH, HEIGHT, data=b"garbage" * 20)


@bad("no-filter.png", "undecodable")
def png_with_an_unknown_filter() -> bytes:
    return png(WIDTH, HEIGHT, data=zlib.compress((b"\x09" + bytes(3 * WIDTH)) * HEIGHT))


@bad("no-depth.png", "not_an_image")
def png_of_an_unknown_depth() -> bytes:
    return png(WIDTH, HEIGHT, depth=5)


@bad("no-width.png", "not_an_image")
def png_of_no_width() -> bytes:
    return png(0, HEIGHT, data=b"")


@bad("no-checksum.png", "not_an_image")
def png_whose_header_has_a_wrong_checksum() -> bytes:
    data = png(WIDTH, HEIGHT)
    return data[:29] + bytes(4) + data[33:]


@bad("no-palette.png", "undecodable")
def palette_image_without_a_palette() -> bytes:
    data = encoded(noise().convert("P"), "PNG")
    start = data.index(b"PLTE") - 4
    (length,) = struct.unpack(">I", data[start : start + 4])
    return data[:start] + data[start + 12 + length :]


@bad("no-height.jpg", "not_an_image")
def jpeg_of_no_height() -> bytes:
    return sized_jpeg(WIDTH, 0)


@bad("no-scan.jpg", "not_an_image")
def jpeg_without_a_scan() -> bytes:
    data = encoded(noise(), "JPEG")
    return data[: data.index(b"\xff\xda")] + b"\xff\xd9"


@bad("nothing.jpg", "not_an_image")
def jpeg_of_a_start_and_an_end() -> bytes:
    return b"\xff\xd8\xff\xd9"


@bad("unknown-compression.tif", "undecodable")
def tiff_of_an_unknown_compression() -> bytes:
    return tiff(WIDTH, HEIGHT, compression=777)


@bad("strip-elsewhere.tif", TRUNCATED)
def tiff_whose_strip_lies_beyond_its_end() -> bytes:
    return tiff(WIDTH, HEIGHT, strip=1_000_000)


def bmp(width: int, height: int, bits: int = 24, compression: int = 0) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(3 * 8 * 8)


@bad("unknown-compression.bmp", "undecodable")
def bmp_of_an_unknown_compression() -> bytes:
    return bmp(8, 8, compression=99)


@bad("unknown-depth.bmp", "undecodable")
def bmp_of_an_unknown_depth() -> bytes:
    return bmp(8, 8, bits=7)


@kind("black.png", "embed", "no_direction")
def black() -> bytes:
    """Nothing wrong with it; the tests' engine makes zeros of it, as a backbone might."""
    return encoded(Image.new("RGB", (WIDTH, HEIGHT)), "PNG")


# What is no file to read.


def placed(file: str, stage: str = "", reason: str = "") -> Callable[[Callable[[Path], object]], object]:
    """Adds the kind of file that the decorated function puts at a path."""

    def decorate(put: Callable[[Path], object]) -> object:
        KINDS.append(Kind(file, put, stage, reason))
        return put

    return decorate


@placed("dangling.jpg", "list", "unreadable")
def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere.jpg")


@placed("loop.jpg", "list", "unreadable")
def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@placed("pipe.jpg", "list", "not_a_file")
def fifo(path: Path) -> None:
    os.mkfifo(path)


@placed("socket.jpg", "list", "not_a_file")
def socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@placed("endless.jpg", "list", "not_a_file")
def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@placed("unreadable.jpg", "read", "unreadable")
def file_whose_first_byte_cannot_be_read(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


@placed("sparse.jpg", "read", "too_many_bytes")
def sparse_file_of_a_terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


if os.geteuid() != 0:  # who may read everything

    @placed("locked.jpg", "read", "permission_denied")
    def file_that_may_not_be_read(path: Path) -> None:
        path.write_bytes(encoded(noise(), "JPEG"))
        path.chmod(0)


# Strange, but images.


@good("png-inside.jpg")
def png_with_another_extension() -> bytes:
    return encoded(noise(), "PNG")


@good("jpeg-inside.png")
def jpeg_with_another_extension() -> bytes:
    return encoded(noise(), "JPEG")


@good("CAPITALS.JPG")
def extension_in_capitals() -> bytes:
    return encoded(noise(), "JPEG", quality=60)


@good("one-pixel.png")
def one_pixel() -> bytes:
    return encoded(Image.new("RGB", (1, 1), "red"), "PNG")


@good("one-line.png")
def one_line() -> bytes:
    return encoded(noise(65_000, 1), "PNG")


@good("one-column.jpg")
def one_column() -> bytes:
    return encoded(noise(1, 65_000), "JPEG")


@good("cmyk.jpg")
def cmyk() -> bytes:
    return encoded(noise().convert("CMYK"), "JPEG")


@good("16-bit.png")
def sixteen_bits() -> bytes:
    values = np.arange(WIDTH * HEIGHT, dtype="<u2") * 20
    return encoded(Image.frombytes("I;16", (WIDTH, HEIGHT), values.tobytes()), "PNG")


@good("float.tif")
def float_values() -> bytes:
    return encoded(Image.fromarray(np.linspace(-1, 1, 300, dtype=np.float32).reshape(15, 20)), "TIFF")


@good("black-and-white.png")
def one_bit() -> bytes:
    return encoded(noise().convert("1"), "PNG")


@good("transparent.gif")
def transparent_palette_color() -> bytes:
    return encoded(noise().convert("P"), "GIF", transparency=3)


@good("broken-exif.jpg")
def broken_exif() -> bytes:
    return encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0\0")


@good("broken-profile.png")
def broken_icc_profile() -> bytes:
    return png(WIDTH, HEIGHT, chunk(b"iCCP", b"Profile\0\0broken"))


@good("profile-of-nothing.jpg")
def icc_profile_of_nothing() -> bytes:
    return encoded(noise(), "JPEG", icc_profile=b"nothing", quality=50)


@good("no-tables.jpg")
def jpeg_without_huffman_tables() -> bytes:
    """As motion JPEG has it: the decoder takes the standard's."""
    data = encoded(noise(), "JPEG")
    return data[: data.index(b"\xff\xc4")] + data[data.index(b"\xff\xda") :]


@good("something-behind.jpg")
def garbage_behind_the_end() -> bytes:
    return encoded(noise(), "JPEG", quality=40) + b"garbage" * 100


if features.check("avif"):

    @good("photo.avif")
    def avif() -> bytes:
        return encoded(noise(), "AVIF")

    @bad("cut.avif", TRUNCATED)
    def truncated_avif() -> bytes:
        return avif()[:-1]


GOOD = [kind for kind in KINDS if not kind.reason]
BAD = [kind for kind in KINDS if kind.reason]
