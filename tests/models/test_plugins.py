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
from judged import difference, failure
from pictures import ALPHA, HEIGHT, RGB, WIDTH, swapped_profile
from PIL import Image
from test_independent_decoder import seen_by_vips
from test_preprocess import encoded, on_white

from imgindex.models import jpeg_xl, plugins
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodedImage, decode
from imgindex.models.resizing import Resizing

pillow_heif = pytest.importorskip("pillow_heif")
imagecodecs = pytest.importorskip("imagecodecs")
plugins.register()

PIXELS = np.asarray(RGB)
FORMS = ["HEIF", "JXL"]


def lossless(image: Image.Image, form: str, **options: Any) -> bytes:
    if form == "HEIF":
        return encoded(image, form, quality=-1, chroma=444, **options)
    return bytes(imagecodecs.jpegxl_encode(np.asarray(image), lossless=True, **options))


def whole(data: bytes) -> DecodedImage:
    return decode(data, (HEIGHT, WIDTH))


@pytest.mark.parametrize("form", FORMS)
class TestBoth:
    def test_rgb_and_gray(self, form: str) -> None:
        assert difference(whole(lossless(RGB, form)).pixels, PIXELS) < 1
        gray = RGB.convert("L")
        expected = np.asarray(gray.convert("RGB"))
        assert difference(whole(lossless(gray, form)).pixels, expected) < 1

    def test_transparency_is_laid_on_white(self, form: str) -> None:
        image = RGB.copy()
        image.putalpha(ALPHA)
        seen = whole(lossless(image, form)).pixels
        assert difference(seen, on_white(PIXELS, np.asarray(ALPHA))) < 1.5

    def test_gray_of_16_bits(self, form: str) -> None:
        """A dark picture stays dark: the file names its depth."""
        deep = (np.asarray(RGB.convert("L"), np.uint16) * 20).astype(np.uint16)
        data = lossless(Image.fromarray(deep), form)
        seen = decode(data, (HEIGHT, WIDTH), color_profile="ignore").pixels
        assert difference(seen[..., 0], deep / 257) < 1

    def test_a_child_decodes_as_this_process_does(self, form: str) -> None:
        data = lossless(RGB, form)
        with DecoderProcess() as decoder:
            assert np.array_equal(
                decoder.decode(data, Resizing((32, 32))).pixels, decode(data, (32, 32)).pixels
            )

    def test_max_pixels(self, form: str) -> None:
        data = lossless(RGB, form)
        assert decode(data, (8, 8), max_pixels=HEIGHT * WIDTH).width == WIDTH
        assert failure(data, max_pixels=HEIGHT * WIDTH - 1).reason == "too_many_pixels"

    def test_cut_off(self, form: str) -> None:
        data = lossless(RGB, form, **({"usecontainer": True} if form == "JXL" else {}))
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


class Header:
    """Writes the header of a codestream, bit by bit."""

    def __init__(self) -> None:
        self._value = self._length = 0

    def put(self, value: int, count: int) -> None:
        self._value |= value << self._length
        self._length += count

    def code(self, value: int) -> None:
        """One of the standard's codes."""
        if value < 2:
            self.put(value, 2)
        elif value < 18:
            self.put(2 | value - 2 << 2, 6)
        else:
            self.put(3 | value - 18 << 2, 8)

    def data(self) -> bytes:
        return b"\xff\x0a" + self._value.to_bytes(-(-self._length // 8), "little")


def header(
    extra: int | None = None, multiplied: bool = False, primaries: int = 1, transfer: float = 13
) -> bytes:
    """The header of a lossless RGB image with these codes, and with an extra channel of the kind `extra`."""
    out = Header()
    out.put(0, 1)
    out.put(2 | HEIGHT - 1 << 2, 20)
    out.put(0, 3)
    out.put(2 | WIDTH - 1 << 2, 20)
    out.put(0, 2)  # not the defaults, no orientation
    out.put(0, 3)  # 8 bits
    out.put(1, 1)
    out.put(0 if extra is None else 1, 2)
    if extra is not None:
        out.put(0, 1)
        out.code(extra)
        out.put(0, 7)  # 8 bits, full size, no name
        if extra == 0:
            out.put(int(multiplied), 1)
    out.put(0, 3)  # no XYB, not the default colors, no profile
    out.code(0)
    out.code(1)
    out.code(primaries)
    if transfer < 1:
        out.put(1 | round(transfer * 1e7) << 1, 25)
    else:
        out.put(0, 1)
        out.code(int(transfer))
    out.code(1)
    out.put(0, 2)  # no extensions
    out.put(1, 1)
    return out.data()


def with_header(pixels: np.ndarray, **fields: Any) -> bytes:
    """A file of these pixels whose header is one of `header`, before the frame that the encoder has made."""
    data = imagecodecs.jpegxl_encode(pixels, lossless=True)
    plain = header(0 if pixels.shape[2] == 4 else None)
    for length in range(4, 40):
        try:
            seen = imagecodecs.jpegxl_decode(plain + data[length:])
        except RuntimeError:
            continue
        if np.array_equal(seen, pixels):
            return header(**fields) + data[length:]
    raise AssertionError("no frame was found")


def in_light(share: np.ndarray) -> np.ndarray:
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def as_srgb(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


class TestJpegXl:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("reconstructs", [True, False])
    def test_orientation(self, orientation: int, reconstructs: bool) -> None:
        """Of a JPEG that was packed without loss, and of the same without what makes a JPEG of it again."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        jpeg = encoded(RGB, "JPEG", quality=95, exif=exif)
        data = imagecodecs.jpegxl_encode_jpeg(jpeg)
        if not reconstructs:
            at = data.index(b"jbrd") - 4
            data = data[:at] + data[at + int.from_bytes(data[at : at + 4], "big") :]
        expected = seen_by_vips(jpeg)
        image = decode(data, expected.shape[:2])
        assert (image.height, image.width) == expected.shape[:2]
        assert difference(image.pixels, expected) < 2

    def test_a_packed_jpeg_is_that_jpeg(self) -> None:
        for image, options in ((RGB, {"icc_profile": swapped_profile()}), (RGB.convert("L"), {})):
            jpeg = encoded(image, "JPEG", **options)
            assert np.array_equal(whole(imagecodecs.jpegxl_encode_jpeg(jpeg)).pixels, whole(jpeg).pixels)

    def test_an_embedded_profile_alone_is_a_failure(self) -> None:
        data = imagecodecs.jpegxl_encode_jpeg(encoded(RGB, "JPEG", icc_profile=swapped_profile()))
        at = data.index(b"jbrd") - 4
        error = failure(data[:at] + data[at + int.from_bytes(data[at : at + 4], "big") :])
        assert error.reason == "undecodable"
        assert "ICC profile" in str(error)

    def test_a_lossy_one(self) -> None:
        data = imagecodecs.jpegxl_encode(PIXELS, level=90)
        assert difference(whole(data).pixels, PIXELS) < 4

    @pytest.mark.parametrize("kind", [np.uint16, np.float16, np.float32])
    def test_more_bits_a_color(self, kind: type) -> None:
        values = PIXELS.astype(np.uint16) * 257 if kind is np.uint16 else PIXELS.astype(np.float32) / 255
        data = imagecodecs.jpegxl_encode(values.astype(kind), lossless=True)
        assert difference(decode(data, (HEIGHT, WIDTH), color_profile="ignore").pixels, PIXELS) < 1
        # The encoder has called these values linear in light.
        assert difference(whole(data).pixels, as_srgb(PIXELS / 255)) < 1

    @pytest.mark.parametrize("bits", [1, 5, 10, 12])
    def test_white_is_that_of_the_depth_in_the_header(self, bits: int) -> None:
        most = (1 << bits) - 1
        values = (PIXELS / 255 * most).round().astype(np.uint8 if bits <= 8 else np.uint16)
        data = imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=bits)
        seen = decode(data, (HEIGHT, WIDTH), color_profile="ignore").pixels
        assert difference(seen, values / most * 255) < 1

    def test_values_that_are_no_numbers(self) -> None:
        values = (PIXELS / 255).astype(np.float32)
        values[:4] = np.nan
        values[4:8] = np.inf
        data = imagecodecs.jpegxl_encode(values, lossless=True)
        seen = decode(data, (HEIGHT, WIDTH), color_profile="ignore").pixels
        assert (seen[:4] == 0).all()
        assert (seen[4:8] == 255).all()

    def test_the_first_frame_of_an_animation(self) -> None:
        data = imagecodecs.jpegxl_encode(np.stack([PIXELS, 255 - PIXELS]), lossless=True)
        assert np.array_equal(whole(data).pixels, PIXELS)

    def test_gray_with_channels_that_are_no_colors(self) -> None:
        gray = np.asarray(RGB.convert("L"))
        data = imagecodecs.jpegxl_encode(
            np.stack([gray, 255 - gray]), lossless=True, photometric="gray", planar=True
        )
        assert np.array_equal(whole(data).pixels, np.dstack([gray] * 3))

    def test_colors_that_are_multiplied_with_the_transparency(self) -> None:
        alpha = np.asarray(ALPHA)
        values = (PIXELS * (alpha[..., None] / 255)).round().astype(np.uint8)
        data = with_header(np.dstack([values, alpha]), extra=0, multiplied=True)
        assert difference(whole(data).pixels, on_white(PIXELS, alpha)) < 2

    def test_cmyk_is_a_failure(self) -> None:
        error = failure(with_header(np.dstack([PIXELS, PIXELS[..., 0]]), extra=4))
        assert error.reason == "undecodable"
        assert "CMYK" in str(error)

    def test_display_p3(self) -> None:
        """By the matrix between the two, from their primaries and D65."""
        to_srgb = np.array(
            [[1.22494, -0.22494, 0], [-0.042057, 1.042057, 0], [-0.019638, -0.078636, 1.098274]]
        )
        data = with_header(PIXELS, primaries=11)
        assert np.array_equal(decode(data, (HEIGHT, WIDTH), color_profile="ignore").pixels, PIXELS)
        expected = as_srgb(in_light(PIXELS / 255) @ to_srgb.T)
        assert difference(expected, PIXELS) > 3
        assert difference(whole(data).pixels, expected) < 1

    @pytest.mark.parametrize("transfer", [1, 8, 17, 1 / 2.2, 1 / 1.8])
    def test_curves(self, transfer: float) -> None:
        signal = PIXELS / 255
        if transfer == 1:
            light = np.where(signal < 0.081, signal / 4.5, ((signal + 0.099) / 1.099) ** (1 / 0.45))
        else:
            light = signal ** {8: 1.0, 17: 2.6}.get(transfer, 1 / transfer)
        assert difference(whole(with_header(PIXELS, transfer=transfer)).pixels, as_srgb(light)) < 1

    @pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
    def test_curves_of_high_dynamic_range_change_nothing(self, transfer: int) -> None:
        assert np.array_equal(whole(with_header(PIXELS, transfer=transfer)).pixels, PIXELS)

    @given(width=st.integers(1, 700), height=st.integers(1, 40), container=st.booleans())
    def test_the_size_in_the_header(self, width: int, height: int, container: bool) -> None:
        image = Image.new("L", (width, height), 7)
        data = lossless(image, "JXL", usecontainer=container, effort=1)
        assert jpeg_xl.size(data) == (width, height)

    def test_what_is_too_large_is_never_decoded(self) -> None:
        """A header of 2^30 x 2^30 pixels, and then nothing."""
        side = (1 << 30) - 1
        bits = 0 | 3 << 1 | side << 3 | 0 << 33 | 3 << 36 | side << 38
        data = b"\xff\x0a" + bits.to_bytes(10, "little")
        assert jpeg_xl.size(data) == (1 << 30, 1 << 30)
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
