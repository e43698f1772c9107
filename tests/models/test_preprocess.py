"""Decoding: every mode and orientation that Pillow reads, and every kind of file that it does not."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, features

from imgindex.models.preprocess import DecodeError, decode

REASONS = {"empty", "not_an_image", "too_many_pixels", "truncated", "out_of_memory", "undecodable"}
ORIENTATION = 0x0112
HEIGHT, WIDTH = 24, 36


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(shape: tuple[int, int], depth: int, kind: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG by hand: (height, width), bits, color type, each row's filter byte and samples, tRNS chunk."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", shape[1], shape[0], depth, kind, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"tRNS", transparent) if transparent else b"",
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """RGB [h, w, 3] seen on white through `alpha` [h, w]."""
    share = alpha[..., np.newaxis] / 255
    return rgb * share + 255 * (1 - share)


def repeated(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., np.newaxis], 3, axis=2)


def assert_pixels(data: bytes, expected: np.ndarray, tolerance: float = 0) -> None:
    """Decodes at the image's own size, at which nothing is resized."""
    image = decode(data, expected.shape[:2])
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape == expected.shape
    assert image.pixels.flags.c_contiguous
    assert (image.height, image.width) == expected.shape[:2]
    assert np.abs(image.pixels - expected.astype(np.float64)).max() <= tolerance


GRAY, RGB, ALPHA = noise(HEIGHT, WIDTH), noise(HEIGHT, WIDTH, 3), noise(HEIGHT, WIDTH)[::-1]


class TestModes:
    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    def test_black_and_white(self, form):
        image = Image.fromarray(GRAY).convert("1")
        assert_pixels(encoded(image, form), repeated(np.where(np.asarray(image), 255, 0)))

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF"])
    def test_gray(self, form):
        assert_pixels(encoded(Image.fromarray(GRAY), form), repeated(GRAY))

    @pytest.mark.parametrize(
        ("form", "options"),
        [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PPM", {})],
    )
    def test_rgb(self, form, options):
        assert_pixels(encoded(Image.fromarray(RGB), form, **options), RGB)

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_gray_with_alpha_is_laid_on_white(self, form):
        image = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])
        assert_pixels(encoded(image, form), on_white(repeated(GRAY), ALPHA), tolerance=1)

    @pytest.mark.parametrize(
        ("form", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})]
    )
    def test_rgb_with_alpha_is_laid_on_white(self, form, options):
        image = Image.fromarray(RGB).convert("RGBA")
        image.putalpha(Image.fromarray(ALPHA))
        assert_pixels(encoded(image, form, **options), on_white(RGB, ALPHA), tolerance=1)

    def test_wholly_transparent_is_white(self):
        image = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
        assert_pixels(encoded(image, "PNG"), np.full((HEIGHT, WIDTH, 3), 255))

    # Three colors, each in one third of the width.
    COLOURS = np.array([[250, 0, 10], [0, 200, 30], [20, 40, 240]], np.uint8)
    INDICES = np.repeat(np.arange(3, dtype=np.uint8), WIDTH // 3)[np.newaxis].repeat(HEIGHT, axis=0)

    def palette_image(self) -> Image.Image:
        image = Image.frombytes("P", (WIDTH, HEIGHT), self.INDICES.tobytes())
        image.putpalette(self.COLOURS.tobytes())
        return image

    @pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF", "BMP"])
    def test_palette(self, form):
        assert_pixels(encoded(self.palette_image(), form), self.COLOURS[self.INDICES])

    @pytest.mark.parametrize("form", ["PNG", "GIF"])
    def test_palette_with_a_transparent_color(self, form):
        colors = self.COLOURS.copy()
        colors[1] = 255
        assert_pixels(encoded(self.palette_image(), form, transparency=1), colors[self.INDICES])

    def test_palette_with_an_alpha_of_each_color(self):
        alphas = np.array([0, 128, 255], np.uint8)
        expected = on_white(self.COLOURS[self.INDICES], alphas[self.INDICES])
        data = encoded(self.palette_image(), "PNG", transparency=alphas.tobytes())
        assert_pixels(data, expected, tolerance=1)

    def test_transparent_gray_and_transparent_rgb(self):
        gray = Image.fromarray(np.array([[10, 20], [20, 30]], np.uint8))
        assert_pixels(encoded(gray, "PNG", transparency=20), repeated(np.array([[10, 255], [255, 30]])))
        colors = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
        data = encoded(Image.fromarray(colors), "PNG", transparency=(4, 5, 6))
        assert_pixels(data, np.array([[[1, 2, 3], [255, 255, 255]]]))

    @pytest.mark.parametrize(
        ("inks", "color"),
        [
            ((0, 0, 0, 0), (255, 255, 255)),
            ((0, 255, 255, 0), (255, 0, 0)),
            ((255, 0, 0, 0), (0, 255, 255)),
            ((0, 0, 0, 255), (0, 0, 0)),
        ],
    )
    @pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 100}), ("TIFF", {})])
    def test_cmyk(self, inks, color, form, options):
        data = encoded(Image.new("CMYK", (16, 16), inks), form, **options)
        assert_pixels(data, np.full((16, 16, 3), color), tolerance=3)

    def test_ycbcr_and_gray_jpeg(self):
        image = Image.new("RGB", (16, 16), (200, 30, 60))
        expected = np.full((16, 16, 3), (200, 30, 60))
        assert_pixels(encoded(image.convert("YCbCr"), "JPEG", quality=100), expected, tolerance=3)
        gray = Image.new("L", (16, 16), 77)
        assert_pixels(encoded(gray, "JPEG", quality=100), np.full((16, 16, 3), 77), tolerance=1)

    @pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow reads no CIELAB")
    def test_cielab(self):
        image = Image.new("RGB", (16, 16), (200, 30, 60))
        profiles = [ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")]
        lab = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
        assert_pixels(encoded(lab, "TIFF"), np.full((16, 16, 3), (200, 30, 60)), tolerance=3)

    @pytest.mark.parametrize(("form", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
    def test_16_bit_gray_is_scaled_from_white_to_white(self, form, order):
        values = np.array([[0, 128, 257, 25700], [32768, 40000, 65000, 65535]])
        expected = np.array([[0, 0, 1, 100], [128, 156, 253, 255]])
        image = Image.frombytes(
            "I;16B" if order[0] == ">" else "I;16", (4, 2), values.astype(order).tobytes()
        )
        assert_pixels(encoded(image, form), repeated(expected))

    def test_16_bit_rgb(self):
        values = np.array([[[0, 257, 65535], [0x8000, 0x1234, 0xFEDC]]], ">u2")
        data = png((1, 2), 16, 2, b"\0" + values.tobytes())
        assert_pixels(data, values / 257, tolerance=1)

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_wide_values_are_stretched_from_their_least_to_their_greatest(self, dtype):
        values = np.array([[-1000, 0, 1000], [4000, -500, 1400]], dtype)
        expected = ((values.astype(np.float64) + 1000) / 5000 * 255).round()
        assert_pixels(encoded(Image.fromarray(values), "TIFF"), repeated(expected))

    @pytest.mark.parametrize("value", [0, 7, -3])
    def test_constant_wide_values_are_black(self, value):
        assert_pixels(encoded(Image.new("F", (5, 4), value), "TIFF"), np.zeros((4, 5, 3)))

    def test_values_that_are_no_numbers(self):
        values = np.array([[np.nan, np.inf, -np.inf, 0, 60, 100]], np.float32)
        expected = np.array([[0, 0, 0, 0, 153, 255]])
        assert_pixels(encoded(Image.fromarray(values), "TIFF"), repeated(expected))

    @pytest.mark.parametrize(
        ("form", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
    )
    def test_first_of_several_frames(self, form, options):
        frames = [Image.new("RGB", (20, 10), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 3
        assert_pixels(data, np.full((10, 20, 3), (255, 0, 0)))

    # Converted in several strips, the last of which is not whole.
    @pytest.mark.parametrize("shape", [(1500, 1999), (2, 1_100_000), (1_100_000, 2)])
    def test_large_images_as_small_ones(self, shape):
        gray, alpha = noise(*shape), noise(*shape)[::-1]
        with_alpha = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])
        assert_pixels(encoded(with_alpha, "PNG", compress_level=1), on_white(repeated(gray), alpha), 1)
        wide = gray.astype(np.int32) * 1000
        wide[0, 0], wide[-1, -1] = -255_000, 510_000
        expected = wide.clip(0, 255_000) / 1000  # two values of so many are neither black nor white
        assert_pixels(encoded(Image.fromarray(wide), "TIFF"), repeated(expected))
        deep = Image.frombytes("I;16", shape[::-1], (gray.astype("<u2") * 257).tobytes())
        assert_pixels(encoded(deep, "TIFF"), repeated(gray))

    @pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 65_000), (65_000, 1)])
    def test_the_smallest_and_the_narrowest(self, form, shape):
        if form == "WEBP" and max(shape) > 16_383:
            pytest.skip("WebP has no such images")
        image = decode(encoded(Image.new("RGB", shape, (200, 30, 60)), form), (8, 9))
        assert (image.width, image.height) == shape
        assert image.pixels.shape == (8, 9, 3)
        assert np.abs(image.pixels - np.array([200.0, 30, 60])).max() <= 30  # a GIF's colors are few

    def test_decoded_images_stack(self):
        images = [Image.fromarray(GRAY), Image.fromarray(RGB), Image.new("RGBA", (5, 70))]
        stacked = np.stack([decode(encoded(image, "PNG"), (8, 9)).pixels for image in images])
        assert (stacked.shape, stacked.dtype) == ((3, 8, 9, 3), np.uint8)


class TestResize:
    # A JPEG keeps twice the pixels of the longer side in each direction: of these few, all.
    @pytest.mark.parametrize("size", [(8, 8), (12, 7), (7, 12), (60, 90)])
    @pytest.mark.parametrize("form", ["PNG", "JPEG"])
    def test_bilinear_and_antialiased(self, size, form):
        data = encoded(Image.fromarray(RGB), form)
        with Image.open(io.BytesIO(data)) as stored:
            expected = stored.resize(size[::-1], Image.Resampling.BILINEAR)
        image = decode(data, size)
        np.testing.assert_array_equal(image.pixels, np.asarray(expected), strict=True)
        assert (image.width, image.height) == (WIDTH, HEIGHT)

    def test_halves_by_hand(self):
        # Halved, a pixel is the triangle of 4 pixels around it: weights 1, 3, 3, 1 but 3, 3, 1 at the edge.
        row = np.array([[[0, 70, 140, 210]]], np.uint8).reshape(1, 4).repeat(4, axis=0)
        image = decode(encoded(Image.fromarray(row), "PNG"), (2, 2))
        edge = round((3 * 0 + 3 * 70 + 140) / 7)
        assert image.pixels[..., 0].tolist() == [[edge, 210 - edge]] * 2

    @pytest.mark.parametrize("scene", [(1200, 1600), (1600, 1200), (997, 2003)])
    @pytest.mark.parametrize("size", [(224, 224), (100, 300), (299, 150)])
    def test_reduced_jpeg_is_close_to_the_whole(self, scene, size):
        down, across = np.mgrid[: scene[0], : scene[1]]
        waves = [np.sin(down / 37 + across / 91), np.sin(down / 11), np.sin(across * down / 40000)]
        photo = (127 + 90 * np.stack(waves, axis=2) + noise(*scene, 3) / 16).clip(0, 255).astype(np.uint8)
        data = encoded(Image.fromarray(photo), "JPEG", quality=90)
        image = decode(data, size)
        assert (image.height, image.width) == scene
        with Image.open(io.BytesIO(data)) as whole:
            expected = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR), np.float64)
        assert np.abs(image.pixels - expected).mean() < 2


# Where the stored image's corners lie when it is upright, by the EXIF orientation: TIFF 6.0, tag 274.
UPRIGHT = {
    1: {"red": "top left", "green": "top right"},
    2: {"red": "top right", "green": "top left"},
    3: {"red": "bottom right", "green": "bottom left"},
    4: {"red": "bottom left", "green": "bottom right"},
    5: {"red": "top left", "green": "bottom left"},
    6: {"red": "top right", "green": "bottom right"},
    7: {"red": "bottom right", "green": "top right"},
    8: {"red": "bottom left", "green": "top left"},
}
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}
CORNERS = {"top left": (0, 0), "top right": (0, -1), "bottom left": (-1, 0), "bottom right": (-1, -1)}
FORMS = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
}


def oriented(orientation: int, form: str, scale: int = 1) -> bytes:
    """A gray image, wider than high, its top left corner red and its top right corner green."""
    stored = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    stored[:8, :8] = COLOURS["red"]
    stored[:8, -8:] = COLOURS["green"]
    stored = stored.repeat(scale, axis=0).repeat(scale, axis=1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(Image.fromarray(stored), form, exif=exif, **FORMS[form])


class TestOrientation:
    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("size", [(16, 16), (10, 20), (36, 12)])
    def test_image_is_turned_upright(self, orientation, form, size):
        data = oriented(orientation, form)
        image = decode(data, size)
        assert image.pixels.shape == (*size, 3)
        assert (image.width, image.height) == ((HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT))
        for color, corner in UPRIGHT[orientation].items():
            assert np.abs(image.pixels[CORNERS[corner]] - np.array(COLOURS[color], float)).max() < 40
        with Image.open(io.BytesIO(data)) as stored:
            upright = ImageOps.exif_transpose(stored).convert("RGB")
        expected = np.asarray(upright.resize(size[::-1], Image.Resampling.BILINEAR), np.float64)
        # Resizing rounds between its two passes, whose order a turn changes.
        assert np.abs(image.pixels - expected).max() <= 2

    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_large_jpeg_is_reduced_and_turned(self, orientation):
        image = decode(oriented(orientation, "JPEG", scale=40), (10, 20))
        assert (image.width, image.height) == ((960, 1440) if orientation > 4 else (1440, 960))
        for color, corner in UPRIGHT[orientation].items():
            assert np.abs(image.pixels[CORNERS[corner]] - np.array(COLOURS[color], float)).max() < 40

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    @pytest.mark.parametrize("form", FORMS)
    def test_unknown_orientations_are_upright(self, orientation, form):
        unknown, upright = decode(oriented(orientation, form), (16, 16)), decode(oriented(1, form), (16, 16))
        np.testing.assert_array_equal(unknown.pixels, upright.pixels)
        assert (unknown.width, unknown.height) == (WIDTH, HEIGHT)

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0no TIFF header at all", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"]
    )
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_damaged_exif_does_not_spoil_the_pixels(self, form, exif):
        image = Image.fromarray(RGB)
        damaged = decode(encoded(image, form, exif=exif, **FORMS[form]), (16, 16))
        np.testing.assert_array_equal(
            damaged.pixels, decode(encoded(image, form, **FORMS[form]), (16, 16)).pixels
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 200, b"\xff" * 70_000])
def test_damaged_color_profile_does_not_spoil_the_pixels(form, profile):
    damaged, whole = (
        decode(encoded(Image.fromarray(RGB), form, **FORMS[form], **options), (16, 16))
        for options in ({"icc_profile": profile}, {})
    )
    np.testing.assert_array_equal(damaged.pixels, whole.pixels)


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b"\0", "not_an_image"),
            (b"no image\n", "not_an_image"),
            (b"<html><body>404</body></html>", "not_an_image"),
            (b"%PDF-1.4 and so on", "not_an_image"),
            (b"\xff\xd8\xff", "not_an_image"),
            (b"\x89PNG\r\n\x1a\n", "not_an_image"),
        ],
    )
    def test_no_image(self, data, reason):
        with pytest.raises(DecodeError) as caught:
            decode(data, (8, 8))
        assert caught.value.reason == reason
        assert str(caught.value)

    def test_max_pixels(self):
        data = encoded(Image.new("RGB", (30, 10)), "PNG")
        assert decode(data, (8, 8), max_pixels=300).width == 30
        with pytest.raises(DecodeError, match=r"30 x 10 pixels are more than .* \(299\)") as caught:
            decode(data, (8, 8), max_pixels=299)
        assert caught.value.reason == "too_many_pixels"

    def test_max_pixels_counts_a_jpeg_before_it_is_reduced(self):
        data = encoded(Image.new("RGB", (800, 800)), "JPEG")
        with pytest.raises(DecodeError, match="800 x 800"):
            decode(data, (8, 8), max_pixels=800 * 800 - 1)

    def test_more_pixels_than_pillow_takes(self):
        bomb = png((60000, 60000), 8, 2, b"")
        for max_pixels in (1000, 10**12):
            with pytest.raises(DecodeError) as caught:
                decode(bomb, (8, 8), max_pixels=max_pixels)
            assert caught.value.reason == "too_many_pixels"

    # Each with the reason for the first half of it.
    @pytest.mark.parametrize(
        ("form", "options", "reason"),
        [
            ("JPEG", {}, "truncated"),
            ("JPEG", {"progressive": True}, "truncated"),
            ("PNG", {}, "truncated"),
            ("GIF", {}, "truncated"),
            ("BMP", {}, "truncated"),
            ("TIFF", {}, "truncated"),
            ("TIFF", {"compression": "tiff_lzw"}, "truncated"),
            ("WEBP", {}, "truncated"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_truncated(self, form, options, reason):
        data = encoded(Image.fromarray(noise(48, 64, 3)), form, **options)
        assert decode(data, (8, 8)).width == 64
        for length in range(1, len(data), max(1, len(data) // 150)):
            self.assert_refused_or_whole(data[:length])
        for cut in range(1, 30):
            self.assert_refused_or_whole(data[:-cut])
        with pytest.raises(DecodeError) as caught:
            decode(data[: len(data) // 2], (8, 8))
        assert caught.value.reason == reason

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
    @given(data=st.data())
    @settings(deadline=None, max_examples=60)
    def test_damaged(self, form, data):
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        options = {} if form in ("BMP", "GIF") else {"exif": exif}
        damaged = bytearray(encoded(Image.fromarray(noise(12, 16, 3)), form, **options))
        positions = st.integers(0, len(damaged) - 1)
        for position in data.draw(st.lists(positions, min_size=1, max_size=4)):
            damaged[position] ^= data.draw(st.integers(1, 255))
        self.assert_refused_or_whole(bytes(damaged))

    @given(st.binary(min_size=1, max_size=100))
    @settings(deadline=None, max_examples=100)
    def test_any_bytes(self, data):
        self.assert_refused_or_whole(data)
        for start in (b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"RIFF\x20\0\0\0WEBPVP8 "):
            self.assert_refused_or_whole(start + data)

    @staticmethod
    def assert_refused_or_whole(data: bytes) -> None:
        """`decode` returns pixels, or raises DecodeError with one of the reasons; nothing else."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = decode(data, (8, 9), max_pixels=100_000)
            except DecodeError as error:
                reason, image = error.reason, None
        if image is None:
            assert reason in REASONS
        else:
            assert (image.pixels.shape, image.pixels.dtype) == ((8, 9, 3), np.uint8)


def test_same_bytes_give_the_same_pixels():
    data = encoded(Image.fromarray(noise(300, 500, 3)), "JPEG")
    one, two = decode(data, (20, 30)), decode(data, (20, 30))
    np.testing.assert_array_equal(one.pixels, two.pixels, strict=True)
