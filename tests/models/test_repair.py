"""Files that other programs read and Pillow refuses. What is damaged where the picture lies still fails."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from bad_inputs import chunk
from hypothesis import given
from hypothesis import strategies as st
from pictures import HEIGHT, RGB, WIDTH
from test_independent_decoder import seen_by_vips
from test_preprocess import encoded

from imgindex.models.preprocess import DecodeError, decode

PIXELS = np.asarray(RGB)
PNG = encoded(RGB, "PNG")
HEADER, REST = PNG[:33], PNG[33:]
JPEG = encoded(RGB, "JPEG", quality=95)
PROGRESSIVE = encoded(RGB, "JPEG", quality=95, progressive=True)
HUGE = zlib.compress(bytes(3 << 20))


def whole(data: bytes) -> np.ndarray:
    return decode(data, (HEIGHT, WIDTH)).pixels


def failure(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, (HEIGHT, WIDTH))
    return caught.value.reason


def damaged(name: bytes, body: bytes) -> bytes:
    written = bytearray(chunk(name, body))
    written[-1] ^= 1
    return bytes(written)


SIDE_CHUNKS = {
    "damaged text": damaged(b"tEXt", b"a\0b"),
    "damaged gamma": damaged(b"gAMA", struct.pack(">I", 45455)),
    "damaged profile": damaged(b"iCCP", b"a\0\0" + zlib.compress(bytes(200))),
    "huge packed text": chunk(b"zTXt", b"a\0\0" + HUGE),
    "huge packed international text": chunk(b"iTXt", b"a\0\1\0\0\0" + HUGE),
    "many texts": 200 * chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 19))),
    "huge profile": chunk(b"iCCP", b"a\0\0" + HUGE),
}


@pytest.mark.parametrize("side", SIDE_CHUNKS.values(), ids=SIDE_CHUNKS)
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_png_with_a_bad_side_chunk(side: bytes, place: str) -> None:
    data = HEADER + side + REST if place == "before the pixels" else PNG[:-12] + side + PNG[-12:]
    assert np.array_equal(whole(data), PIXELS)


@pytest.mark.parametrize("side", [name for name in SIDE_CHUNKS if name.startswith("damaged")])
def test_libvips_reads_damaged_side_chunks_as_well(side: str) -> None:
    assert np.array_equal(seen_by_vips(HEADER + SIDE_CHUNKS[side] + REST), PIXELS)


def test_png_with_damage_in_the_picture() -> None:
    assert failure(PNG[:29] + bytes(4) + REST) in ("not_an_image", "undecodable")
    at = PNG.index(b"IDAT") + 40
    text = SIDE_CHUNKS["huge packed text"]
    assert failure(HEADER + text + PNG[33:at] + bytes(99) + PNG[at + 99 :]) in ("truncated", "undecodable")
    assert failure((HEADER + text + REST)[: -len(REST) // 2]) == "truncated"


@pytest.mark.parametrize("jpeg", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
class TestJpeg:
    @pytest.mark.parametrize(
        "change",
        [
            lambda jpeg: jpeg[:-2],
            lambda jpeg: jpeg[:-1],
            lambda jpeg: jpeg + b"x" * 1000,
            lambda jpeg: jpeg[:2] + b"\0\0" + jpeg[2:],
            lambda jpeg: jpeg[:20] + b"abc" + jpeg[20:],
            lambda jpeg: jpeg[:2] + b"\0" + jpeg[2:-2],
        ],
        ids=["no end", "half an end", "more after it", "stray bytes", "stray bytes later", "both"],
    )
    def test_what_leaves_the_picture_whole(self, jpeg: bytes, change: Callable[[bytes], bytes]) -> None:
        assert np.array_equal(whole(change(jpeg)), whole(jpeg))
        if change(jpeg)[2] == 0xFF:
            assert np.abs(whole(jpeg) - seen_by_vips(jpeg).astype(int)).mean() < 2

    @pytest.mark.parametrize("missing", [6, 20, 200, 1000])
    def test_cut_off(self, jpeg: bytes, missing: int) -> None:
        assert failure(jpeg[:-missing]) == "truncated"


def bmp(bits: int, masks: list[int], header: int, values: np.ndarray) -> bytes:
    body = b"".join(row.tobytes().ljust(-(-WIDTH * bits // 32) * 4, b"\0") for row in values[::-1])
    written = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, 3, len(body), 0, 0, 0, 0)
    written = struct.pack("<I", header) + written[4:] + struct.pack(f"<{len(masks)}I", *masks)
    start = 14 + max(header, len(written))
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + written.ljust(header, b"\0") + body


@given(data=st.data(), bits=st.sampled_from([16, 32]), header=st.sampled_from([40, 52, 56, 108, 124]))
def test_bmp_of_bit_fields_of_any_order_and_width(data: st.DataObject, bits: int, header: int) -> None:
    order = data.draw(st.permutations(range(3)))
    widths = [data.draw(st.integers(1, min(10, bits // 3))) for _ in range(3)]
    masks, seen, at = [0, 0, 0], np.zeros((HEIGHT, WIDTH, 3)), 0
    values = np.zeros((HEIGHT, WIDTH), np.uint32)
    for channel in order:
        most = (1 << widths[channel]) - 1
        level = (PIXELS[..., channel].astype(np.uint32) * most + 127) // 255
        values |= level << at
        seen[..., channel] = level * 255 / most
        masks[channel], at = most << at, at + widths[channel]
    found = whole(bmp(bits, masks, header, values.astype(f"<u{bits // 8}")))
    assert np.abs(found - seen).max() <= 8  # Pillow's own unpacking of 5 bits is not rounded


def test_bmp_of_bit_fields_that_are_bad() -> None:
    values = np.zeros((HEIGHT, WIDTH), "<u2")
    assert failure(bmp(16, [0xF01, 0xF0, 0xE], 40, values)) == "undecodable"
    assert failure(bmp(16, [0xF00, 0xF0, 0xF], 40, values)[:-9]) in ("truncated", "undecodable")
    with pytest.raises(DecodeError, match="max_pixels"):
        decode(bmp(16, [0xF00, 0xF0, 0xF], 40, values), (8, 8), max_pixels=HEIGHT * WIDTH - 1)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_bigtiff(byteorder: str, compression: str | None) -> None:
    file = io.BytesIO()
    tifffile.imwrite(
        file, PIXELS, photometric="rgb", bigtiff=True, byteorder=byteorder, compression=compression
    )
    assert np.array_equal(whole(file.getvalue()), PIXELS)
