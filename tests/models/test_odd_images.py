"""Images that are valid and that Pillow alone would read wrongly, and color profiles."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import swapped_profile
from PIL import Image, ImageCms, TiffImagePlugin, features
from test_preprocess import assert_pixels, encoded, noise, png, repeated

from imgindex.models.levels import levels_of
from imgindex.models.preprocess import DecodeError, decode, decoding, upright_rgb

MAX_SAMPLE, S_MAX_SAMPLE, BITS, PHOTOMETRIC, NODATA = 281, 341, 258, 262, 42113


def failure(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, (8, 8))
    return caught.value.reason


class TestRunLengthBmp:
    """Against pictures that are encoded here, in every way that Microsoft's definition allows."""

    PALETTE = np.random.default_rng(1).integers(0, 256, (16, 3), dtype=np.uint8)

    def bmp(self, width: int, height: int, bits: int, body: bytes) -> bytes:
        colors = b"".join(bytes([*color[::-1], 0]) for color in self.PALETTE)
        header = struct.pack(
            "<IiiHHIIiiII", 40, width, height, 1, bits, {8: 1, 4: 2}[bits], len(body), 0, 0, 16, 0
        )
        offset = 14 + len(header) + len(colors)
        return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + colors + body

    @staticmethod
    def packed(indices: list[int], bits: int) -> bytes:
        if bits == 8:
            return bytes(indices)
        padded = indices + [0] * (len(indices) % 2)
        return bytes(high << 4 | low for high, low in zip(padded[::2], padded[1::2], strict=True))

    @given(data=st.data(), bits=st.sampled_from([4, 8]))
    @settings(deadline=None, max_examples=60)
    def test_every_kind_of_run(self, data: st.DataObject, bits: int) -> None:
        width, height = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 6))
        picture, body, skipped = np.zeros((height, width), np.uint8), b"", False
        for row in range(height):
            if skipped or data.draw(st.booleans()):  # else an empty line, or the row below a step up
                x = 0
                while x < width:
                    count = data.draw(st.integers(1, width - x))
                    kind = data.draw(st.sampled_from(["run", "pixels", "step"]))
                    if kind == "run":
                        pair = data.draw(st.tuples(st.integers(0, 15), st.integers(0, 15)))
                        colors = pair if bits == 4 else pair[:1]
                        picture[row, x : x + count] = (colors * width)[:count]
                        body += bytes([count]) + self.packed(list(colors), bits)
                    elif kind == "pixels" and count > 2:
                        colors = data.draw(st.lists(st.integers(0, 15), min_size=count, max_size=count))
                        picture[row, x : x + count] = colors
                        stored = self.packed(colors, bits)
                        body += bytes([0, count]) + stored + bytes(len(stored) % 2)
                    else:
                        body += bytes([0, 2, count, 0])
                    x += count
            body += b"\0\0"
        body += b"\0\1"
        assert_pixels(self.bmp(width, height, bits, body), self.PALETTE[picture[::-1]])

    @pytest.mark.parametrize("bits", [4, 8])
    def test_steps_over_lines_and_an_early_end(self, bits: int) -> None:
        picture = np.zeros((5, 7), np.uint8)
        picture[1, 3:5], picture[3, 5:7] = 5, 9  # from the bottom up
        two = self.packed([5, 5], bits)[:1], self.packed([9, 9], bits)[:1]
        body = b"\0\2\3\1" + b"\2" + two[0] + b"\0\2\0\2" + b"\2" + two[1] + b"\0\1"
        assert_pixels(self.bmp(7, 5, bits, body), self.PALETTE[picture[::-1]])

    @pytest.mark.parametrize("bits", [4, 8])
    def test_cut_off(self, bits: int) -> None:
        body = (b"\x07" + b"\x11" + b"\0\0") * 4 + b"\0\7" + b"\x12" * (4 if bits == 4 else 8) + b"\0\1"
        decode(self.bmp(7, 5, bits, body), (8, 8))
        for length in range(14, len(body) - 3):
            assert failure(self.bmp(7, 5, bits, body[:length])) in ("truncated", "undecodable")


class TestPng:
    def test_16_bit_gray_with_a_transparent_value(self) -> None:
        values = np.array([[0, 257, 0x1234], [0x1235, 40000, 65535]], ">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        expected = (values / 257).round()
        expected[0, 2] = 255
        assert_pixels(png((2, 3), 16, 0, rows, struct.pack(">H", 0x1234)), repeated(expected))

    @pytest.mark.parametrize(("bits", "scale"), [(1, 255), (2, 85), (4, 17)])
    def test_few_gray_levels_with_a_transparent_one(self, bits: int, scale: int) -> None:
        values = np.arange(8) % (1 << bits)
        row = np.packbits(
            np.array([[v >> b & 1 for b in range(bits)[::-1]] for v in values], np.uint8)
        ).tobytes()
        expected = values * scale
        expected[values == 1] = 255
        assert_pixels(png((1, 8), bits, 0, b"\0" + row, b"\0\1"), repeated(expected[np.newaxis]))

    def test_16_bit_rgb_with_a_transparent_color(self) -> None:
        values = np.array([[[0x1111, 0x2222, 0x3333], [0x1234, 0x5678, 0x9ABC]]], ">u2")
        data = png((1, 2), 16, 2, b"\0" + values.tobytes(), values[0, 1].tobytes())
        assert_pixels(data, np.array([[[0x11, 0x22, 0x33], [255, 255, 255]]]))

    INDICES = np.array([[0, 1, 2, 1]], np.uint8)
    COLORS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)

    def indexed(self, colors: bytes, transparent: bytes) -> bytes:
        data = png((1, 4), 8, 3, b"\0" + self.INDICES.tobytes(), transparent)
        at = data.index(b"tRNS" if transparent else b"IDAT") - 4
        chunk = struct.pack(">I", len(colors)) + b"PLTE" + colors
        return data[:at] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + data[at:]

    @pytest.mark.parametrize(
        "transparent", [b"\xff\x00\xff\xff", b"\x80" * 200, b"\0" * 256, b"\xff" * 4 + b"\0"]
    )
    def test_more_alphas_than_colors_are_none(self, transparent: bytes) -> None:
        assert_pixels(self.indexed(self.COLORS.tobytes(), transparent), self.COLORS[self.INDICES])

    def test_as_many_alphas_as_colors(self) -> None:
        expected = self.COLORS[self.INDICES]
        expected[0, 2] = 255
        assert_pixels(self.indexed(self.COLORS.tobytes(), b"\xff\xff\0"), expected)

    def test_no_colors(self) -> None:
        assert failure(self.indexed(b"", b"")) == "undecodable"


class TestOrientation:
    XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'

    @pytest.mark.parametrize(
        ("form", "options"),
        [
            ("JPEG", {"xmp": XMP, "quality": 100}),
            ("PNG", {}),
            ("WEBP", {"xmp": XMP, "lossless": True}),
            ("TIFF", {"tiffinfo": {700: XMP}}),
            ("TIFF", {"tiffinfo": {700: XMP}, "compression": "tiff_lzw"}),
        ],
    )
    def test_only_exif_turns_an_image(self, form: str, options: dict) -> None:
        if form == "PNG":
            from PIL.PngImagePlugin import PngInfo

            info = PngInfo()
            info.add_itxt("XML:com.adobe.xmp", self.XMP.decode())
            options = {"pnginfo": info}
        picture = Image.fromarray(noise(4, 6, 3)).resize((24, 16), Image.Resampling.NEAREST)
        image = decode(encoded(picture, form, **options), (16, 24))
        assert (image.width, image.height) == (24, 16)
        assert np.abs(image.pixels - np.asarray(picture, float)).mean() < 12

    def test_a_query_image_with_xmp_stays_as_it_is(self) -> None:
        picture = Image.open(io.BytesIO(encoded(Image.fromarray(noise(4, 6, 3)), "PNG")))
        picture.info["xmp"] = self.XMP
        np.testing.assert_array_equal(upright_rgb(picture, (4, 6)), noise(4, 6, 3))
        assert picture.info["xmp"] == self.XMP


def tiff(values: np.ndarray, **tags: object) -> bytes:
    """A TIFF of deep gray, with tags by the names above."""
    image = Image.fromarray(values)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        tag = globals()[name]
        info[tag] = value
        if tag == NODATA:
            info.tagtype[tag] = 2
        elif tag in (MAX_SAMPLE, S_MAX_SAMPLE):
            info.tagtype[tag] = 3
    return encoded(image, "TIFF", tiffinfo=info)


def ramp(greatest: int) -> np.ndarray:
    return np.linspace(0, greatest, 64 * 64).round().astype(np.uint16).reshape(64, 64)


class TestSixteenBits:
    @pytest.mark.parametrize(("bits", "white"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
    @pytest.mark.parametrize("form", ["TIFF", "PNG"])
    def test_white_is_the_least_depth_that_holds_the_values(self, bits: int, white: int, form: str) -> None:
        values = ramp(white)
        assert_pixels(encoded(Image.fromarray(values), form), repeated((values / white * 255).round()))

    def test_a_few_brighter_values_do_not_count(self) -> None:
        values = ramp(4095)
        values[5, 7] = 65535
        expected = (values / 4095 * 255).clip(0, 255).round()
        assert_pixels(encoded(Image.fromarray(values), "TIFF"), repeated(expected))

    @pytest.mark.parametrize("tag", ["MAX_SAMPLE", "S_MAX_SAMPLE"])
    def test_a_white_that_the_file_names(self, tag: str) -> None:
        values = ramp(900)
        assert_pixels(tiff(values, **{tag: 4095}), repeated((values / 4095 * 255).round()))

    def test_12_bits_a_sample(self) -> None:
        values = np.array([[0, 1, 16, 100], [800, 2047, 2048, 900]], np.uint16)
        packed = b"".join(struct.pack(">I", int(a) << 12 | int(b))[1:] for a, b in values.reshape(-1, 2))
        tags = [(256, 4, 4), (257, 4, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1),
                (278, 4, 2), (279, 4, len(packed))]  # fmt: skip
        directory = struct.pack("<H", len(tags))
        directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        data = (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(200, b"\0") + packed
        assert_pixels(data, repeated((values / 4095 * 255).round()))

    @pytest.mark.parametrize("dtype", ["<u2", ">u2"])
    def test_white_is_zero(self, dtype: str) -> None:
        values = ramp(65535)
        data = encoded(Image.fromarray(values), "TIFF")
        data = data.replace(
            struct.pack("<HHII", PHOTOMETRIC, 3, 1, 1), struct.pack("<HHII", PHOTOMETRIC, 3, 1, 0)
        )
        assert_pixels(data, repeated(255 - (values / 257).round()), tolerance=1)

    def test_gray_of_a_pgm_is_what_its_white_says(self) -> None:
        values = np.array([[0, 100, 1000]], ">u2")
        data = b"P5 3 1 1000\n" + values.tobytes()
        assert_pixels(data, repeated((values / 1000 * 255).round()), tolerance=1)


class TestSixteenBitColors:
    VALUES = np.stack([ramp(65535), ramp(65535).T, ramp(65535)[::-1]], axis=-1)

    @staticmethod
    def tiff(values: np.ndarray, order: str, **options: object) -> bytes:
        """A TIFF of 16-bit RGB in one strip, written by hand."""
        body = values.astype(f"{order}u2").tobytes()
        height, width = values.shape[:2]
        tags = {256: width, 257: height, 258: 16, 259: 1, 262: 2, 273: 0, 277: 3, 278: height, 279: len(body)}
        tags |= options.get("tags", {})
        start = 8 + 2 + 12 * len(tags) + 4
        directory = struct.pack(f"{order}H", len(tags))
        for tag, value in sorted(tags.items()):
            if tag == 258:
                directory += struct.pack(f"{order}HHII", tag, 3, 3, start)
            else:
                directory += struct.pack(f"{order}HHII", tag, 4, 1, start + 6 if tag == 273 else value)
        magic = b"II*\0" if order == "<" else b"MM\0*"
        depths = struct.pack(f"{order}3H", 16, 16, 16)
        return magic + struct.pack(f"{order}I", 8) + directory + bytes(4) + depths + body

    @staticmethod
    def png(values: np.ndarray) -> bytes:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        return png(values.shape[:2], 16, 2, rows)

    @pytest.mark.parametrize(("bits", "white"), [(8, 255), (10, 1023), (12, 4095), (14, 16383)])
    @pytest.mark.parametrize("form", ["<", ">", "PNG"])
    def test_white_is_the_least_depth_that_holds_the_values(self, bits: int, white: int, form: str) -> None:
        values = self.VALUES >> (16 - bits)
        values[0, 0] = 65535  # a few brighter ones do not count
        data = self.png(values) if form == "PNG" else self.tiff(values, form)
        assert_pixels(data, (values / white * 255).clip(0, 255).round())

    def test_compressed(self) -> None:
        pyvips = pytest.importorskip("pyvips")
        values = self.VALUES >> 4
        image = pyvips.Image.new_from_memory(values.tobytes(), 64, 64, 3, "ushort").copy(
            interpretation="rgb16"
        )
        for options in ({}, {"tile": True, "tile_width": 32, "tile_height": 32}):
            data = image.tiffsave_buffer(compression="lzw", **options)
            assert_pixels(data, (values / 4095 * 255).round())

    def test_the_whole_range_keeps_its_upper_bytes(self) -> None:
        assert_pixels(self.png(self.VALUES), self.VALUES >> 8)
        assert_pixels(self.tiff(self.VALUES, "<"), self.VALUES >> 8)

    def test_a_white_that_the_file_names(self) -> None:
        values = self.VALUES >> 6
        data = self.tiff(values, "<", tags={MAX_SAMPLE: 4095})
        assert_pixels(data, (values / 4095 * 255).round())


class TestStretchedValues:
    VALUES = np.random.default_rng(2).normal(1000, 10, (60, 70)).astype(np.float32)

    def expected(self, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
        ordered = np.sort(counted.astype(np.float64))
        clipped = int(len(ordered) * 0.001)
        low, high = ordered[clipped], ordered[-1 - clipped]
        return ((values.astype(np.float64) - low) / (high - low) * 255).clip(0, 255).round()

    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_all_but_a_thousandth_at_each_end(self, dtype: type) -> None:
        values = ((self.VALUES - 1000) * 1e5).astype(dtype)
        assert_pixels(
            encoded(Image.fromarray(values), "TIFF"), repeated(self.expected(values, values.ravel()))
        )

    @pytest.mark.parametrize("mark", [-3.4028234663852886e38, np.inf, -np.inf, np.nan])
    def test_values_that_mark_holes_do_not_count(self, mark: float) -> None:
        values = self.VALUES.copy()
        values[:20] = mark
        expected = self.expected(self.VALUES, self.VALUES[20:].ravel())
        expected[:20] = 0
        assert len(np.unique(expected)) > 100
        assert_pixels(encoded(Image.fromarray(values), "TIFF"), repeated(expected))

    @pytest.mark.parametrize(
        ("dtype", "nodata"), [(np.float32, "-9999"), (np.float32, "-9.1e9"), (np.int32, "-9999")]
    )
    def test_the_value_that_gdal_names_does_not_count(self, dtype: type, nodata: str) -> None:
        values = self.VALUES.astype(dtype)
        values[:20] = dtype(float(nodata))
        expected = self.expected(values, values[20:].ravel())
        expected[:20] = 0
        assert_pixels(tiff(values, NODATA=nodata), repeated(expected))

    def test_a_few_values_alone(self) -> None:
        values = np.zeros((100, 100), np.float32)
        values[3, 4], values[5, 6] = 7, 14
        assert_pixels(encoded(Image.fromarray(values), "TIFF"), repeated((values / 14 * 255).round()))

    @given(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3), min_size=1, max_size=50))
    @settings(deadline=None)
    def test_ranks_are_exact(self, numbers: list[int]) -> None:
        for values in (np.array([numbers], np.int32), np.array([numbers], np.float32)):
            parts = np.array_split(values, 3, axis=1)
            levels = levels_of(
                Image.new("I", (1, 1)), lambda parts=parts: (part for part in parts if part.size)
            )
            assert (levels.black, levels.white) == (values.min(), values.max())


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow converts no colors")
class TestColorProfiles:
    """Against what LittleCMS makes of the whole image, before it is resized."""

    SIZE = (24, 36)
    RGB = Image.fromarray(noise(6, 9, 3)).resize(SIZE[::-1], Image.Resampling.BICUBIC)

    @staticmethod
    def gray(gamma: float) -> bytes:
        """A profile of gray."""
        white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
        start = 128 + 4 + 24
        tags = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", start, 20)
        tags += b"kTRC" + struct.pack(">II", start + 20, 14)
        body = tags + white + curve
        header = struct.pack(">I4sI", 128 + len(body), b"lcms", 0x02100000) + b"mntrGRAYXYZ "
        header = header.ljust(36, b"\0") + b"acsp"
        header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
        return header.ljust(128, b"\0") + body

    @pytest.mark.parametrize(
        ("form", "options"),
        [
            ("JPEG", {"quality": 100, "subsampling": 0}),
            ("PNG", {}),
            ("TIFF", {}),
            ("WEBP", {"lossless": True}),
            ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ],
    )
    def test_rgb(self, form: str, options: dict) -> None:
        data = encoded(self.RGB, form, icc_profile=swapped_profile(), **options)
        plain = decode(data, self.SIZE, color_profile="ignore").pixels
        found = decode(data, self.SIZE).pixels
        assert np.abs(found - plain[..., [1, 0, 2]].astype(float)).mean() < 2
        assert np.abs(plain - np.asarray(self.RGB, float)).mean() < 3

    def test_palette_alpha_and_turned(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        palette = self.RGB.quantize(16)
        data = encoded(palette, "PNG", icc_profile=swapped_profile(), exif=exif)
        expected = np.rot90(np.asarray(palette.convert("RGB")), -1)[..., [1, 0, 2]]
        found = decode(data, expected.shape[:2]).pixels
        assert np.abs(found - expected.astype(float)).max() <= 3
        clear = self.RGB.convert("RGBA")
        clear.putalpha(0)
        assert (decode(encoded(clear, "PNG", icc_profile=swapped_profile()), (8, 8)).pixels >= 254).all()

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
    def test_gray(self, form: str) -> None:
        values = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(8, 0).repeat(8, 1)
        options = {"quality": 100} if form == "JPEG" else {}
        data = encoded(Image.fromarray(values), form, icc_profile=self.gray(1.8), **options)
        linear = (np.arange(256) / 255) ** 1.8
        srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        assert_pixels(data, repeated((srgb * 255)[values]), tolerance=5 if form == "JPEG" else 2)

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_srgb_itself_changes_nothing(self, form: str) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        with_profile, without = (decode(encoded(self.RGB, form, **each), (9, 7)).pixels
                                 for each in ({"icc_profile": profile}, {}))  # fmt: skip
        np.testing.assert_array_equal(with_profile, without)

    @pytest.mark.parametrize("change", [
        lambda profile: profile[:200],
        lambda profile: profile[:16] + b"CMYK" + profile[20:],
        lambda profile: profile[:12] + b"nmcl" + profile[16:],
        lambda profile: profile[:12] + b"link" + profile[16:],
        lambda profile: profile[:300] + b"\xff" * 300 + profile[600:],
        lambda profile: profile + bytes(5 << 20),
    ])  # fmt: skip
    def test_what_is_no_profile_of_the_image_is_ignored(self, change: Callable[[bytes], bytes]) -> None:
        plain = decode(encoded(self.RGB, "TIFF"), self.SIZE).pixels
        found = decode(encoded(self.RGB, "TIFF", icc_profile=change(swapped_profile())), self.SIZE).pixels
        np.testing.assert_array_equal(found, plain)
        gray = decode(encoded(self.RGB.convert("L"), "TIFF", icc_profile=swapped_profile()), self.SIZE).pixels
        np.testing.assert_array_equal(gray, decode(encoded(self.RGB.convert("L"), "TIFF"), self.SIZE).pixels)

    def test_the_spec_tells_them_apart(self) -> None:
        assert decoding("srgb") != decoding("ignore")

    def test_query_images(self) -> None:
        picture = self.RGB.copy()
        picture.info["icc_profile"] = swapped_profile()
        np.testing.assert_array_equal(upright_rgb(picture, self.SIZE, "ignore"), np.asarray(self.RGB))
        found = upright_rgb(picture, self.SIZE)
        assert np.abs(found - np.asarray(self.RGB, float)[..., [1, 0, 2]]).max() <= 3
