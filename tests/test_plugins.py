"""HEIC and JPEG XL: the rules of other formats hold, and without its extra a file says what it needs."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_independent_decoder import ALPHA, HEIGHT, RGB, WIDTH, seen_by_vips
from test_odd_images import swapped_profile
from test_preprocess import encoded, on_white

from imgindex.models import plugins
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodedImage, DecodeError, decode

pillow_heif = pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")
imagecodecs = pytest.importorskip("imagecodecs")
plugins.register()

PIXELS = np.asarray(RGB)
LOSSLESS: dict[str, dict[str, Any]] = {"HEIF": {"quality": -1, "chroma": 444}, "JXL": {"lossless": True}}
FORMS = sorted(LOSSLESS)


def lossless(image: Image.Image, form: str, **options: Any) -> bytes:
    return encoded(image, form, **LOSSLESS[form], **options)


def whole(data: bytes) -> DecodedImage:
    return decode(data, (HEIGHT, WIDTH))


def failure(data: bytes, **options: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, (8, 8), **options)
    return caught.value


def difference(seen: np.ndarray, expected: np.ndarray) -> float:
    assert seen.shape == expected.shape
    return float(np.abs(seen - expected.astype(np.float64)).mean())


@pytest.mark.parametrize("form", FORMS)
class TestBoth:
    def test_rgb_and_grey(self, form: str) -> None:
        assert difference(whole(lossless(RGB, form)).pixels, PIXELS) < 1
        grey = RGB.convert("L")
        expected = np.asarray(grey.convert("RGB"))
        assert difference(whole(lossless(grey, form)).pixels, expected) < 1

    def test_transparency_is_laid_on_white(self, form: str) -> None:
        image = RGB.copy()
        image.putalpha(ALPHA)
        seen = whole(lossless(image, form)).pixels
        assert difference(seen, on_white(PIXELS, np.asarray(ALPHA))) < 1.5

    def test_grey_of_16_bits(self, form: str) -> None:
        """A dark picture stays dark: the file names its depth."""
        deep = (np.asarray(RGB.convert("L"), np.uint16) * 20).astype(np.uint16)
        data = lossless(Image.fromarray(deep), form)
        seen = decode(data, (HEIGHT, WIDTH), color_profile="ignore").pixels
        assert difference(seen[..., 0], deep / 257) < 1

    def test_a_child_decodes_as_this_process_does(self, form: str) -> None:
        data = lossless(RGB, form)
        with DecoderProcess() as decoder:
            assert np.array_equal(decoder.decode(data, (32, 32)).pixels, decode(data, (32, 32)).pixels)

    def test_max_pixels(self, form: str) -> None:
        data = lossless(RGB, form)
        assert decode(data, (8, 8), max_pixels=HEIGHT * WIDTH).width == WIDTH
        assert failure(data, max_pixels=HEIGHT * WIDTH - 1).reason == "too_many_pixels"

    def test_cut_off(self, form: str) -> None:
        data = lossless(RGB, form, **({"use_container": True} if form == "JXL" else {}))
        for length in (60, 200, len(data) // 2, len(data) - 1):
            assert failure(data[:length]).reason == "truncated"

    @pytest.mark.parametrize("without", ["missing", "there"])
    def test_without_its_plugin_a_file_names_the_extra(
        self, form: str, without: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plugin = {"HEIF": plugins.HEIF, "JXL": plugins.JXL}[form]
        extra = {"HEIF": "heif", "JXL": "jxl"}[form]
        if without == "missing":
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
            error = failure(lossless(RGB, form))
            assert error.reason == "needs_extra"
            assert f"imgindex[{extra}]" in str(error)
        expected = extra if without == "missing" else None
        assert {plugins.missing_extra(each.upper()) for each in plugin.extensions} == {expected}
        assert plugins.missing_extra(".jpg") is None


class TestHeic:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_rotation_of_the_container_counts(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = lossless(RGB, "HEIF", exif=exif.tobytes())
        expected = seen_by_vips(encoded(RGB, "PNG", exif=exif))
        image = decode(data, expected.shape[:2])
        assert (image.height, image.width) == expected.shape[:2]
        assert difference(image.pixels, expected) < 1

    @pytest.mark.parametrize("options", [{}, {"quality": 90}, {"chroma": 444}], ids=str)
    def test_lossy_ones(self, options: dict[str, Any]) -> None:
        assert difference(whole(encoded(RGB, "HEIF", **options)).pixels, PIXELS) < 8

    def test_a_profile_is_applied_unless_told_not_to(self) -> None:
        data = lossless(RGB, "HEIF", icc_profile=swapped_profile())
        ignored = decode(data, (HEIGHT, WIDTH), color_profile="ignore").pixels
        assert difference(ignored, PIXELS) < 1
        expected = seen_by_vips(encoded(RGB, "PNG", icc_profile=swapped_profile()))
        assert difference(expected, PIXELS) > 10
        assert difference(whole(data).pixels, expected) < 3

    def test_10_bits_a_color(self) -> None:
        values = PIXELS.astype(np.uint16) * np.uint16(257)
        file = pillow_heif.from_bytes(mode="RGB;16", size=(WIDTH, HEIGHT), data=values.tobytes())
        buffer = io.BytesIO()
        file.save(buffer, quality=-1, chroma=444)
        assert difference(whole(buffer.getvalue()).pixels, PIXELS) < 1

    def test_an_embedded_thumbnail_is_not_taken_for_the_picture(self) -> None:
        big = RGB.resize((640, 480))
        data = encoded(big, "HEIF", thumbnails=[320])
        assert difference(decode(data, (48, 64)).pixels, np.asarray(big.resize((64, 48), 2))) < 3

    def test_generic_brands_with_heic_among_them(self) -> None:
        data = encoded(RGB, "HEIF")
        assert data[8:12] == b"heic"
        generic = data[:8] + b"mif1" + data[12:]
        assert np.array_equal(whole(generic).pixels, whole(data).pixels)

    def test_an_avif_is_none(self) -> None:
        assert plugins.plugin_of(encoded(RGB, "AVIF")) is None


class TestJpegXl:
    @staticmethod
    def packed(orientation: int, tmp_path: Path) -> tuple[bytes, bytes]:
        """A JPEG, and the JPEG XL that holds it without loss."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "photo.jpg"
        path.write_bytes(encoded(RGB, "JPEG", quality=95, exif=exif))
        with Image.open(path) as image:
            return path.read_bytes(), encoded(image, "JXL", lossless_jpeg=True)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("reconstructs", [True, False])
    def test_orientation(self, orientation: int, reconstructs: bool, tmp_path: Path) -> None:
        jpeg, data = self.packed(orientation, tmp_path)
        if not reconstructs:  # without the box from which a JPEG is made again
            at = data.index(b"jbrd") - 4
            data = data[:at] + data[at + int.from_bytes(data[at : at + 4], "big") :]
        expected = seen_by_vips(jpeg)
        image = decode(data, expected.shape[:2])
        assert (image.height, image.width) == expected.shape[:2]
        assert difference(image.pixels, expected) < 2

    @pytest.mark.parametrize("container", [False, True])
    def test_exif_does_not_turn_it(self, container: bool) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = lossless(RGB, "JXL", exif=exif.tobytes(), use_container=container)
        assert np.array_equal(whole(data).pixels, PIXELS)
        assert np.array_equal(imagecodecs.jpegxl_decode(data), PIXELS)

    def test_a_lossy_one(self) -> None:
        data = encoded(RGB, "JXL", quality=90)
        assert difference(whole(data).pixels, imagecodecs.jpegxl_decode(data)) < 1

    @pytest.mark.parametrize("kind", [np.uint16, np.float32])
    def test_more_bits_a_color(self, kind: type) -> None:
        values = PIXELS.astype(np.uint16) * 257 if kind is np.uint16 else PIXELS.astype(np.float32) / 255
        data = imagecodecs.jpegxl_encode(values.astype(kind), lossless=True)
        assert difference(decode(data, (HEIGHT, WIDTH), color_profile="ignore").pixels, PIXELS) < 1
        # The encoder has called these values linear in light.
        share = PIXELS / 255
        expected = np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)
        assert difference(whole(data).pixels, 255 * expected) < 1

    @given(width=st.integers(1, 700), height=st.integers(1, 40), container=st.booleans())
    def test_the_size_in_the_header(self, width: int, height: int, container: bool) -> None:
        image = Image.new("L", (width, height), 7)
        data = lossless(image, "JXL", use_container=container, effort=1)
        assert plugins.jxl_size(data) == (width, height)

    def test_what_is_too_large_is_never_decoded(self) -> None:
        """A header of 2^30 x 2^30 pixels, and then nothing."""
        side = (1 << 30) - 1
        bits = 0 | 3 << 1 | side << 3 | 0 << 33 | 3 << 36 | side << 38
        data = b"\xff\x0a" + bits.to_bytes(10, "little")
        assert plugins.jxl_size(data) == (1 << 30, 1 << 30)
        assert failure(data).reason == "too_many_pixels"

    def test_damaged(self) -> None:
        data = bytearray(lossless(RGB, "JXL"))
        data[40:80] = bytes(40)
        assert failure(bytes(data)).reason == "undecodable"


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    """A HEIC that is called a JPEG, in a process in which nobody has told Pillow of the plugin."""
    code = (
        "import pathlib, sys; from imgindex.models.preprocess import decode;"
        "print(decode(pathlib.Path(sys.argv[1]).read_bytes(), (48, 64)).pixels.mean())"
    )
    path = tmp_path / "photo.jpg"
    path.write_bytes(lossless(RGB, "HEIF"))
    seen = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert abs(float(seen.stdout) - PIXELS.mean()) < 1
