"""TIFFs whose damage libtiff does not report: a failure, or the same pixels whatever memory held before."""

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from test_preprocess import assert_pixels, encoded, repeated

from imgindex.models.preprocess import DecodeError, decode

WIDTH, HEIGHT = 160, 120
RANDOM = np.random.default_rng(3)
COLORS = Image.fromarray(RANDOM.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
PAGE = COLORS.convert("1")

# Decodes the files of a folder and prints, for each, a digest of its pixels or why there are none.
CHILD = """
import hashlib, sys
from pathlib import Path
from imgindex.models.preprocess import DecodeError, decode
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(hashlib.sha256(decode(path.read_bytes(), (120, 160)).pixels).hexdigest())
    except DecodeError as error:
        print(error.reason)
"""


def strips_of(data: bytes) -> list[tuple[int, int]]:
    """Where each strip or tile begins, and its length."""
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        tiled = TiffImagePlugin.TILEOFFSETS in image.tag_v2
        tags = (324, 325) if tiled else (273, 279)
        return list(zip(*(image.tag_v2[tag] for tag in tags), strict=True))


def group4(**options: object) -> bytes:
    return encoded(PAGE, "TIFF", compression="group4", **options)


def reversed_bits(data: bytes) -> bytes:
    return data.translate(bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256)))


def of_reversed_bits() -> bytes:
    """Group 4 with the least bit of each byte first."""
    whole = group4(tiffinfo={266: 1}, strip_size=1 << 20)
    ((offset, count),) = strips_of(whole)
    entry = struct.pack("<HHI", 266, 3, 1)
    turned = whole.replace(entry + b"\1\0", entry + b"\2\0")
    assert turned != whole
    return turned[:offset] + reversed_bits(whole[offset : offset + count]) + turned[offset + count :]


def tiled_group4() -> bytes:
    """Group 4 in tiles of 64 x 64, of which those at the right and at the bottom reach beyond the image."""
    padded = Image.new("1", (192, 128), 255)
    padded.paste(PAGE)
    tiles = []
    for top in range(0, 128, 64):
        for left in range(0, 192, 64):
            tile = encoded(padded.crop((left, top, left + 64, top + 64)), "TIFF", compression="group4")
            ((offset, count),) = strips_of(tile)
            tiles.append(tile[offset : offset + count])
    tags = {256: WIDTH, 257: HEIGHT, 258: 1, 259: 4, 262: 1, 277: 1, 322: 64, 323: 64}
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    body = start + 8 * len(tiles)
    offsets = [body + sum(map(len, tiles[:n])) for n in range(len(tiles))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory += struct.pack("<HHII", 324, 4, len(tiles), start)
    directory += struct.pack("<HHII", 325, 4, len(tiles), start + 4 * len(tiles))
    arrays = struct.pack(f"<{2 * len(tiles)}I", *offsets, *map(len, tiles))
    count = struct.pack("<H", len(tags) + 2)
    return b"II*\0" + struct.pack("<I", 8) + count + directory + bytes(4) + arrays + b"".join(tiles)


GROUP4 = {
    "one strip": group4(strip_size=1 << 20),
    "strips": group4(strip_size=WIDTH // 8 * 32),
    "reversed bits": of_reversed_bits(),
    "tiles": tiled_group4(),
}
JPEG = {
    "one strip": encoded(COLORS, "TIFF", compression="jpeg"),
    "strips": encoded(COLORS, "TIFF", compression="jpeg", strip_size=WIDTH * 3 * 32),
    "gray": encoded(COLORS.convert("L"), "TIFF", compression="jpeg"),
}


def damaged_group4(whole: bytes, seed: int) -> bytes:
    """With some bytes of a strip changed, or zeros from a byte on."""
    random, damaged = np.random.default_rng(seed), bytearray(whole)
    strips = strips_of(whole)
    offset, count = strips[random.integers(len(strips))]
    at = offset + int(random.integers(count))
    if seed % 2:
        damaged[at : offset + count] = bytes(offset + count - at)
    else:
        damaged[at] ^= int(random.integers(1, 256))
    return bytes(damaged)


def resized_jpeg(whole: bytes, width: int, height: int, last: bool) -> bytes:
    """With another size in the header of its first or last JPEG."""
    damaged = bytearray(whole)
    at = whole.rfind(b"\xff\xc0\0") if last else whole.find(b"\xff\xc0\0")
    struct.pack_into(">HH", damaged, at + 5, height, width)
    return bytes(damaged)


@pytest.mark.parametrize("kind", GROUP4)
def test_whole_group4(kind: str) -> None:
    assert_pixels(GROUP4[kind], repeated(np.where(np.asarray(PAGE), 255, 0)))


@pytest.mark.parametrize("kind", JPEG)
def test_whole_jpeg(kind: str) -> None:
    expected = np.asarray(COLORS.convert("L").convert("RGB") if kind == "gray" else COLORS, float)
    assert np.abs(decode(JPEG[kind], (HEIGHT, WIDTH)).pixels - expected).mean() < 5


@pytest.mark.parametrize("kind", GROUP4)
def test_group4_that_ends_early(kind: str) -> None:
    whole = GROUP4[kind]
    offset, count = strips_of(whole)[-1]
    for kept in (1, count // 3, count // 2):
        damaged = whole[: offset + kept] + bytes(count - kept) + whole[offset + count :]
        with pytest.raises(DecodeError) as caught:
            decode(damaged, (8, 8))
        assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("kind", JPEG)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("change", [(0, -1), (-1, 0), (-8, 0), (0, -8), (-150, -10)])
def test_jpeg_that_is_smaller_than_its_strip(kind: str, last: bool, change: tuple[int, int]) -> None:
    at = JPEG[kind].rfind(b"\xff\xc0\0") if last else JPEG[kind].find(b"\xff\xc0\0")
    height, width = struct.unpack_from(">HH", JPEG[kind], at + 5)
    damaged = resized_jpeg(JPEG[kind], max(1, width + change[0]), max(1, height + change[1]), last)
    with pytest.raises(DecodeError) as caught:
        decode(damaged, (8, 8))
    assert caught.value.reason == "undecodable"


def test_what_libtiff_only_warns_of_stays_good() -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[65000] = 7
    info.tagtype[65000] = 4
    assert_pixels(group4(tiffinfo=info), repeated(np.where(np.asarray(PAGE), 255, 0)))


def test_same_pixels_or_a_failure_whatever_memory_held_before(tmp_path: Path) -> None:
    samples = [*GROUP4.values(), *JPEG.values()]
    samples += [damaged_group4(whole, seed) for whole in GROUP4.values() for seed in range(40)]
    for whole in JPEG.values():
        sizes = [(WIDTH, 8), (8, HEIGHT), (WIDTH - 1, HEIGHT), (WIDTH, HEIGHT - 1), (WIDTH, 4000), (1, 1)]
        samples += [resized_jpeg(whole, *size, last=True) for size in sizes]
        samples += [whole[:-cut] for cut in range(1, len(whole) // 2, 97)]
    for number, sample in enumerate(samples):
        (tmp_path / f"{number:03}").write_bytes(sample)
    results = []
    for fill in ("85", "170"):
        # With a cache of small blocks glibc fills only large ones.
        filled = {"MALLOC_PERTURB_": fill, "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            env={**os.environ, **filled},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            text=True,
        )
        results.append(child.stdout.split())
    assert len(results[0]) == len(samples)
    assert results[0] == results[1]
    assert len(set(results[0])) > 7
