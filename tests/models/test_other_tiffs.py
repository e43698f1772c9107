"""TIFFs that Pillow does not read, judged by libvips, or by the values that were written."""

import io
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import difference, failure
from pictures import ALPHA, HEIGHT, RGB, WIDTH, swapped_profile
from PIL import Image, ImageCms
from test_independent_decoder import TOLERANCE, seen_by_vips
from test_preprocess import on_white, repeated

from imgindex.models import preprocess, tiff_samples
from imgindex.models.decoder import DecoderProcess
from imgindex.models.levels import levels_of
from imgindex.models.preprocess import DecodedImage, decode
from imgindex.models.resizing import Resizing

pyvips = pytest.importorskip("pyvips")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

PIXELS = np.asarray(RGB)
GRAY = np.asarray(RGB.convert("L"))


def linear(pixels: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """The light of sRGB pixels, from 0 to 1."""
    signal = pixels / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4).astype(dtype)


def tiff(values: np.ndarray, photometric: str = "rgb", **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, **options)
    return file.getvalue()


def by_vips(space: str, **options: Any) -> bytes:
    rgb = pyvips.Image.new_from_memory(PIXELS.tobytes(), WIDTH, HEIGHT, 3, "uchar")
    return bytes(rgb.copy(interpretation="srgb").colourspace(space).tiffsave_buffer(**options))


def whole(data: bytes, **options: Any) -> DecodedImage:
    return decode(data, (HEIGHT, WIDTH), **options)


FLOATS = tiff(linear(PIXELS))
LAB_16 = by_vips("labs")

READ_BY_BOTH = {
    "floating point of 32 bits": FLOATS,
    "floating point of 16 bits": tiff(linear(PIXELS, np.float16)),
    "floating point beyond 0 to 1": tiff(linear(PIXELS) * 3 - 1),
    "floating point by libvips, LZW in tiles": by_vips("scrgb", compression="lzw", tile=True, tile_width=32),
    "floating point by libvips, deflate": by_vips("scrgb", compression="deflate", predictor="float"),
    "floating point in planes": tiff(np.moveaxis(linear(PIXELS), 2, 0).copy(), planarconfig="separate"),
    "big-endian BigTIFF of floating point": tiff(linear(PIXELS), bigtiff=True, byteorder=">"),
    "CIELAB of floating point": by_vips("lab"),
    "CIELAB of 16 bits": LAB_16,
    "CIELAB of 16 bits, LZW": by_vips("labs", compression="lzw"),
    "whole numbers of 32 bits": tiff(PIXELS.astype(np.uint32)),
    "WebP": by_vips("srgb", compression="webp", lossless=True),
    "WebP in tiles": tiff(PIXELS, compression="webp", tile=(16, 32)),
    "gray of 16 bits with transparency": tiff(
        np.dstack([GRAY, np.asarray(ALPHA)]).astype(np.uint16) * 257, "minisblack",
        planarconfig="contig", extrasamples=["unassalpha"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", READ_BY_BOTH.values(), ids=READ_BY_BOTH)
def test_libvips_sees_the_same_picture(data: bytes) -> None:
    assert difference(whole(data).pixels, seen_by_vips(data)) <= TOLERANCE


IN_8_BITS = {
    "JPEG 2000": tiff(PIXELS, compression="jpeg2000"),
    "JPEG XL": tiff(PIXELS, compression="jpegxl"),
    "JPEG XR": tiff(PIXELS, compression="jpegxr"),
    "PNG": tiff(PIXELS, compression="png"),
    "LERC": tiff(PIXELS, compression="lerc"),
    "floating point of 64 bits": tiff(linear(PIXELS, np.float64)),
    "the whole range of 32 bits": tiff(PIXELS.astype(np.uint32) * 0x01010101),
    "signed 16 bits": tiff(PIXELS.astype(np.int16) * 128),
}


@pytest.mark.parametrize("data", IN_8_BITS.values(), ids=IN_8_BITS)
def test_what_libvips_does_not_read_has_the_pixels_that_were_written(data: bytes) -> None:
    assert difference(whole(data).pixels, PIXELS) < 1


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint64, np.int64])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_gray_of_other_depths_is_stretched_as_that_of_32_bits(dtype: type, photometric: str) -> None:
    values = GRAY.astype(dtype)
    low, high = np.sort(GRAY.ravel())[[3, -4]].astype(float)  # all but a thousandth at each end
    expected = ((GRAY - low) / (high - low) * 255).clip(0, 255)
    expected = expected if photometric == "minisblack" else 255 - expected
    assert difference(whole(tiff(values, photometric)).pixels, repeated(expected)) < 1


@given(
    byteorder=st.sampled_from("<>"),
    bigtiff=st.booleans(),
    tile=st.sampled_from([None, (16, 16), (32, 16), (64, 80)]),
    rows=st.integers(1, HEIGHT),
    separate=st.booleans(),
    compression=st.sampled_from([None, "lzw", "deflate", "packbits", "zstd", "lzma"]),
    predictor=st.sampled_from([False, True]),
    samples=st.sampled_from([3, 4]),
)
@settings(deadline=None, max_examples=60)
def test_every_way_to_lay_out_the_same_samples(
    byteorder: str, bigtiff: bool, tile: tuple[int, int] | None, rows: int, separate: bool,
    compression: str | None, predictor: bool, samples: int,
) -> None:  # fmt: skip
    values = np.dstack([linear(PIXELS), np.ones((HEIGHT, WIDTH, 1), np.float32)])[..., :samples]
    options: dict[str, Any] = {"extrasamples": ["unassalpha"]} if samples == 4 else {}
    options |= {"tile": tile} if tile else {"rowsperstrip": rows}
    options |= {"predictor": True} if predictor and compression not in (None, "packbits") else {}
    if separate:
        values = np.moveaxis(values, 2, 0).copy()
    data = tiff(
        values, byteorder=byteorder, bigtiff=bigtiff, compression=compression,
        planarconfig="separate" if separate else "contig", **options,
    )  # fmt: skip
    assert difference(whole(data).pixels, PIXELS) < 0.01


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_transparency_is_laid_on_white(kind: str, dtype: type) -> None:
    alpha = np.asarray(ALPHA)[..., np.newaxis] / 255
    colors = linear(PIXELS, float) if dtype == np.float32 else PIXELS / 255
    both = np.concatenate([colors * (alpha if kind == "assocalpha" else 1), alpha], axis=-1)
    values = both.astype(dtype) if dtype == np.float32 else (both * 65535).round().astype(dtype)
    data = tiff(values, extrasamples=[kind], compression="lzw")
    assert difference(whole(data).pixels, on_white(PIXELS, np.asarray(ALPHA))) < 1


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64, np.float64])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_the_greatest_values_stay_white_where_they_are_transparent(dtype: type, extra: str) -> None:
    values = np.zeros((8, 8, 4), dtype)
    values[:, 4:, :3] = values[..., 3] = 1 if dtype is np.float64 else np.iinfo(dtype).max
    seen = decode(tiff(values, extrasamples=[extra]), (8, 8)).pixels
    assert (seen[:, :4] == 0).all()
    assert (seen[:, 4:] == 255).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_associated_gray_looks_like_the_same_picture_unassociated(dtype: type) -> None:
    alpha = np.full(GRAY.shape, 0.1)
    gray = GRAY / 255 * 0.6 + 0.1
    scale = 65535 if dtype is np.uint16 else 1
    plain, multiplied = (
        tiff(
            (np.dstack([colors, alpha]) * scale).round(0 if scale > 1 else 9).astype(dtype),
            "minisblack", planarconfig="contig", extrasamples=[extra],
        )
        for colors, extra in ((gray, "unassalpha"), (gray * alpha, "assocalpha"))
    )  # fmt: skip
    seen, expected = whole(multiplied).pixels, whole(plain).pixels
    assert np.ptp(expected) > 10
    assert np.abs(seen.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_invisible_pixels_do_not_count_for_black_and_white(extra: str) -> None:
    values = np.zeros((16, 24, 2), np.float32)
    values[..., 0], values[..., 1] = np.arange(24) // 8, 1
    values[0, 0] = 1000, 0
    data = tiff(values, "minisblack", planarconfig="contig", extrasamples=[extra])
    seen = decode(data, (16, 24)).pixels[8, ::8, 0]
    assert seen.tolist() == [0, 128, 255]
    assert (decode(data, (16, 24)).pixels[0, 0] == 255).all()


@pytest.mark.parametrize(
    ("dtype", "least"),
    [(np.uint32, 4_000_000_000), (np.int64, -(1 << 50)), (np.uint64, 1 << 52), (np.float64, 1e12)],
)
@pytest.mark.parametrize("outlier", [False, True])
def test_values_that_lie_close_together_keep_their_levels(dtype: type, least: float, outlier: bool) -> None:
    steps = (np.arange(64 * 80) % 121).reshape(64, 80)
    if dtype is not np.float64:  # RGB of floating point is light
        steps = np.dstack([steps, steps[::-1], 120 - steps])
    values = steps.astype(dtype) + dtype(least)
    expected = (steps if steps.ndim == 3 else repeated(steps)) * (255 / 120)
    if outlier:
        values[0, 0] = 0
        expected[0, 0] = 255 if least < 0 else 0
    seen = decode(tiff(values, "rgb" if steps.ndim == 3 else "minisblack"), (64, 80)).pixels
    assert np.abs(seen - expected).max() <= 0.5001


@given(
    values=st.lists(st.integers(-(1 << 20), 1 << 20), min_size=1, max_size=40),
    dtype=st.sampled_from(["u1", "u2", "i2", "i4", "u4", "i8", "u8", "f4", "f8"]),
)
def test_black_and_white_are_exact_for_every_kind_of_value(values: list[int], dtype: str) -> None:
    """Of so few values the least is black and the greatest white."""
    found = np.array(values, np.int64).astype(dtype) * np.dtype(dtype).type(101)
    image = Image.new("F", (1, 1))
    levels = levels_of(image, lambda: iter([found[:1], found[1:]]))
    assert (levels.black, levels.white) == (float(found.min()), float(found.max()))


def test_a_profile_says_what_floating_point_means() -> None:
    data = tiff((PIXELS / 255).astype(np.float32), iccprofile=swapped_profile())
    assert difference(whole(data, color_profile="ignore").pixels, PIXELS) < 1
    assert difference(whole(data).pixels, PIXELS[..., [1, 0, 2]]) < 3


@pytest.mark.parametrize(
    "profile", [b"damaged", bytes(200), ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_a_profile_that_does_not_count_leaves_floating_point_to_be_light(profile: bytes) -> None:
    data = tiff(linear(PIXELS), iccprofile=profile)
    assert np.array_equal(whole(data).pixels, whole(FLOATS).pixels)


def test_a_profile_of_srgb_says_that_floating_point_is_no_light() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = tiff((PIXELS / 255).astype(np.float32), iccprofile=profile)
    assert difference(whole(data).pixels, PIXELS) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_as_its_orientation_says(orientation: int) -> None:
    data = tiff(linear(PIXELS), extratags=[(274, 3, 1, orientation, True)])
    expected = seen_by_vips(data)
    image = decode(data, expected.shape[:2])
    assert (image.height, image.width) == expected.shape[:2]
    assert difference(image.pixels, expected) <= TOLERANCE


@pytest.mark.parametrize(("across", "down"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_ycbcr_without_compression(across: int, down: int) -> None:
    """libvips shows it as if it were RGB. The sides are no multiples of what shares a color."""
    height, width = HEIGHT - 1, WIDTH - 1
    full = np.asarray(Image.fromarray(PIXELS).convert("YCbCr"))
    coarse = full[::down, ::across, 1:]
    padded = np.pad(full[:height, :width, 0], ((0, -height % down), (0, -width % across)))
    units = padded.reshape(len(padded) // down, down, -1, across).swapaxes(1, 2)
    units = units.reshape(*units.shape[:2], down * across)
    body = np.concatenate([units, coarse[: units.shape[0], : units.shape[1]]], axis=-1).tobytes()
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 150), (259, 3, 1, 1), (262, 3, 1, 6),
        (273, 4, 1, 156), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(body)),
        (530, 3, 2, down << 16 | across),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    data = (b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory).ljust(150, b"\0")
    data += struct.pack("<3H", 8, 8, 8) + body
    shared = coarse.repeat(down, axis=0).repeat(across, axis=1)
    expected = np.dstack([full[..., 0], shared[:HEIGHT, :WIDTH]])[:height, :width]
    seen = decode(data, (height, width)).pixels
    image = Image.frombytes("YCbCr", (width, height), expected.tobytes())
    assert difference(seen, np.asarray(image.convert("RGB"))) == 0
    assert failure(data[:-1]).reason == "truncated"


@pytest.mark.parametrize(
    "compression", [None, "lzw", "deflate", "packbits", "zstd", "lzma", "webp", "jpegxl", "lerc"]
)
def test_damage_and_missing_ends_are_failures(compression: str | None) -> None:
    pictures = compression in ("webp", "jpegxl")
    data = bytearray(tiff(PIXELS if pictures else linear(PIXELS), compression=compression, rowsperstrip=8))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start, count = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
    assert failure(bytes(data[: start + count - 1])).reason == "truncated"
    if compression is not None:
        data[start : start + count] = bytes(count)
        assert failure(bytes(data)).reason in ("truncated", "undecodable")


@pytest.mark.parametrize(
    "data",
    [FLOATS, LAB_16, IN_8_BITS["JPEG XL"], READ_BY_BOTH["WebP"]],
    ids=["floats", "Lab", "JPEG XL", "WebP"],
)
class TestLimits:
    def test_a_child_decodes_as_this_process_does(self, data: bytes) -> None:
        with DecoderProcess() as decoder:
            decoded = decoder.decode(data, Resizing((32, 32)))
            assert np.array_equal(decoded.pixels, decode(data, (32, 32)).pixels)

    def test_max_pixels(self, data: bytes) -> None:
        assert decode(data, (8, 8), max_pixels=HEIGHT * WIDTH).width == WIDTH
        assert failure(data, max_pixels=HEIGHT * WIDTH - 1).reason == "too_many_pixels"


@pytest.mark.parametrize(("tag", "value"), [(256, 1 << 30), (257, 1 << 30), (322, 1 << 30), (323, 1 << 30)])
def test_sizes_that_lie_fail_before_memory_is_taken(tag: int, value: int) -> None:
    data = tiff(linear(PIXELS), compression="zlib", tile=(64, 64))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags[tag].offset
    lying = data[:at] + struct.pack("<HHII", tag, 4, 1, value) + data[at + 12 :]
    assert failure(lying).reason in ("too_many_pixels", "undecodable", "truncated")


@pytest.mark.parametrize("name", ["JPEG XL", "JPEG XR", "LERC"])
def test_without_imagecodecs_a_file_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = failure(IN_8_BITS[name])
    assert error.reason == "needs_extra"
    assert "imgindex[tiff]" in str(error)
    assert difference(whole(FLOATS).pixels, PIXELS) < 1


UNREAD: dict[str, Callable[[], bytes]] = {
    "CMYK of floating point": lambda: tiff(np.ones((8, 8, 4), np.float32), "separated"),
    "LERC that is compressed once more": lambda: tiff(
        linear(PIXELS), compression="lerc", compressionargs={"compression": "deflate"}
    ),
    "complex numbers": lambda: tiff(np.ones((8, 8), np.complex64), "minisblack"),
}


@pytest.mark.parametrize("make", UNREAD.values(), ids=UNREAD)
def test_what_is_not_read_here_either_says_so(make: Callable[[], bytes]) -> None:
    error = failure(make())
    assert error.reason == "undecodable"
    assert "of a kind that imgindex does not read" in str(error)


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A TIFF of tifffile's with another value of a tag that it has."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags[tag].offset
    return data[:at] + struct.pack("<HHII", tag, 4, 1, value) + data[at + 12 :]


@pytest.mark.parametrize("compression", ["lzw", "deflate", "packbits", "zstd", "lzma"])
def test_a_strip_may_have_more_bytes_than_an_image_may_have_pixels(
    compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = HEIGHT * WIDTH
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 2 + 1)  # as decoder processes have it
    monkeypatch.setattr(tiff_samples, "_BLOCK", 2 * WIDTH)  # so that a strip is of several
    for predictor in (False, True) if compression != "packbits" else (False,):
        data = tiff(linear(PIXELS), compression=compression, predictor=predictor, rowsperstrip=HEIGHT)
        assert difference(whole(data, max_pixels=pixels).pixels, PIXELS) < 0.01
        assert failure(data, max_pixels=pixels - 1).reason == "too_many_pixels"


def test_the_bytes_of_a_strip_are_bounded_by_the_most_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(linear(PIXELS, np.float64), compression="deflate", rowsperstrip=HEIGHT)
    pixels = HEIGHT * WIDTH
    monkeypatch.setattr(preprocess, "DEFAULT_MAX_PIXELS", 2 * pixels)
    assert difference(whole(data, max_pixels=pixels).pixels, PIXELS) < 0.01
    monkeypatch.setattr(preprocess, "DEFAULT_MAX_PIXELS", 2 * pixels - 1)
    assert failure(data, max_pixels=pixels).reason == "out_of_memory"
    assert difference(whole(data, max_pixels=2 * pixels).pixels, PIXELS) < 0.01
    in_strips = tiff(linear(PIXELS, np.float64), compression="deflate", rowsperstrip=HEIGHT // 2)
    assert difference(whole(in_strips, max_pixels=pixels).pixels, PIXELS) < 0.01


@pytest.mark.parametrize("compression", [None, "packbits"])
@pytest.mark.parametrize("predictor", [2, 3])
def test_a_predictor_counts_only_where_the_codec_has_one(compression: str | None, predictor: int) -> None:
    plain = tiff(
        linear(PIXELS), compression=compression, rowsperstrip=HEIGHT, extratags=[(316, 3, 1, predictor, True)]
    )
    data = plain.replace(struct.pack("<HHI", 316, 3, 1), struct.pack("<HHI", 317, 3, 1))
    assert difference(whole(data).pixels, PIXELS) < 0.01
    assert difference(whole(data).pixels, seen_by_vips(data)) <= TOLERANCE


def test_whole_numbers_have_no_predictor_of_floating_point() -> None:
    """libvips makes it black."""
    data = tiff(PIXELS.astype(np.uint32), compression="deflate", predictor=True)
    assert difference(whole(data).pixels, PIXELS) < 1
    assert "the predictor of floating point" in str(failure(with_tag(data, 317, 3)))


@pytest.mark.parametrize("compression", ["png", "jpeg2000", "aperio_jp2000_rgb"])
class TestPicturesOf16Bits:
    def test_rgb_has_the_values_that_were_written(self, compression: str) -> None:
        values = PIXELS.astype(np.uint16) * 256 + np.arange(WIDTH, dtype=np.uint16)[:, np.newaxis]
        data = tiff(values, compression=compression, rowsperstrip=8)
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            assert np.array_equal(file.pages[0].asarray(), values)
        assert difference(whole(data).pixels, values / 257) <= 0.5

    def test_gray_needs_no_extra_and_rgb_names_it(
        self, compression: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gray = tiff(GRAY.astype(np.uint16) * 257, "minisblack", compression=compression)
        rgb = tiff(PIXELS.astype(np.uint16) * 257, compression=compression)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert difference(whole(gray).pixels, repeated(GRAY)) < 1
        assert failure(rgb).reason == "needs_extra"


def test_jpeg_2000_of_aperio_in_rgb_is_read_and_in_ycbcr_refused() -> None:
    data = tiff(PIXELS, compression="aperio_jp2000_rgb", tile=(32, 32))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert np.array_equal(file.pages[0].asarray(), PIXELS)
    assert np.array_equal(whole(data).pixels, PIXELS)
    error = failure(with_tag(data, 259, 33003))
    assert error.reason == "undecodable"
    assert "compression 33003" in str(error)


@pytest.mark.parametrize("compression", ["lerc", "jpegxr", "jpegxl", "jpeg2000", "png"])
class TestPicturesOfAnotherSize:
    def test_no_memory_is_taken_for_them(self, compression: str) -> None:
        large = tiff(np.zeros((3000, 3000, 3), np.uint8), compression=compression, rowsperstrip=3000)
        strip = large[slice(*strip_of(large))]
        data = tiff(np.zeros((1, 1, 3), np.uint8), compression=compression)
        lying = with_tag(with_tag(data, 273, len(data)), 279, len(strip)) + strip
        tracemalloc.start()
        try:
            assert failure(lying).reason == "undecodable"
            assert tracemalloc.get_traced_memory()[1] < 1 << 22
        finally:
            tracemalloc.stop()

    def test_the_sides_may_not_be_exchanged(self, compression: str) -> None:
        data = tiff(PIXELS, compression=compression, rowsperstrip=HEIGHT)
        turned = with_tag(with_tag(with_tag(data, 256, HEIGHT), 257, WIDTH), 278, WIDTH)
        assert HEIGHT != WIDTH
        assert failure(turned).reason == "undecodable"


def strip_of(data: bytes) -> tuple[int, int]:
    """Where the first strip of a TIFF begins and ends."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        return page.dataoffsets[0], page.dataoffsets[0] + page.databytecounts[0]
