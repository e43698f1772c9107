"""The gallery page: self-contained, nothing in it is markup that came from a name."""

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from pictures import RGB, swapped_profile
from PIL import Image

from imgindex.models import plugins
from imgindex.search.gallery import THUMBNAIL_SIDE, Row, Tile, render, thumbnail
from imgindex.search.page_frame import table

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>\n&amp; {title} \u202egpj.צילום"


def encoded(size: tuple[int, int] = (40, 30), mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 128 if mode == "L" else "teal").save(file, kind)
    return file.getvalue()


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


class Elements(HTMLParser):
    """Collects the elements of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_names_are_text_wherever_they_stand() -> None:
    tiles = [Tile(encoded(), HOSTILE, HOSTILE), Tile(None, HOSTILE, HOSTILE)]
    page = Elements(render(HOSTILE, [(HOSTILE, HOSTILE)], [Row(tiles[1], tiles)]))
    assert not page.named("script")
    allowed = {
        *("charset", "class", "content", "dir", "http-equiv", "lang", "name"),
        *("alt", "aria-hidden", "aria-label", "role", "src", "title"),
    }
    assert {name for _, attributes in page.found for name in attributes} <= allowed
    assert [image["alt"] for image in page.named("img")] == [HOSTILE]
    assert [figure["title"] for figure in page.named("figure")] == [HOSTILE] * 3
    # Title and heading, one fact, and caption and detail of three tiles.
    assert "".join(page.text).count(HOSTILE) == 2 + 2 + 6


def test_the_page_refers_to_nothing_outside_and_forbids_it() -> None:
    tile = Tile(encoded(), "a.png", "1  cosine 0.913")
    page = render("Title", [("Images", "3")], [Row(tile, [tile, tile])])
    assert not re.search(
        r"https?:|//|url\(|@import|<link|<script|<iframe", re.sub(r'src="data:[^"]*"', "", page)
    )
    elements = Elements(page)
    assert all((image["src"] or "").startswith("data:image/") for image in elements.named("img"))
    policies = [meta["content"] for meta in elements.named("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("image", [None, b"", b"junk", encoded()[:60]])
def test_an_unreadable_image_is_a_placeholder_with_its_caption(image: bytes | None) -> None:
    page = Elements(render("Title", [], [Row(Tile(image, "bad/x.jpg"), [])]))
    assert not page.named("img")
    labels = [element["aria-label"] for element in page.named("div") if "role" in element]
    assert labels == ["bad/x.jpg (cannot be shown)"]
    assert "bad/x.jpg" in "".join(page.text)


def test_a_name_that_is_not_utf8_can_be_written() -> None:
    assert render("\udcff", [], [Row(Tile(None, "\udcff.jpg"), [])]).encode("utf-8")


def test_a_name_is_cut_in_its_middle_so_that_label_and_number_stay() -> None:
    page = render("Title", [], [Row(Tile(None, "animals/of the sea/dolphin/image_of_one_0013.jpg"), [])])
    (name,) = re.findall(r'<span class="name">(.*?)</span></span>', page)
    folder, file = (re.findall("<bdi>(.*?)</bdi>", line) for line in name.split("</span>"))
    assert "".join(folder) == "animals/of the sea/dolphin/"
    assert (folder[-1], file) == ("a/dolphin/", ["image_of_on", "e_0013.jpg"])


@pytest.mark.parametrize("name", ["short.jpg", "עוד שם של תמונה ארוך מאוד.jpg", "e\u0301" * 20])
def test_a_name_that_is_short_or_not_ascii_is_never_cut(name: str) -> None:
    assert f"<bdi>{name}</bdi>" in render("Title", [], [Row(Tile(None, name), [])])


def test_a_column_of_text_stands_left_and_every_cell_says_its_column() -> None:
    page = table([["name", "P@4", "taken for"], ["a", "-", ""], ["b", "90.00 %", "a 10%"]])
    assert page.count('class="words"') == 4  # two headings, two cells
    assert re.findall(r'<td data-label="([^"]*)"( class="words")?>', page) == [
        ("P@4", ""), ("taken for", ' class="words"'),
    ] * 2  # fmt: skip


def test_an_empty_gallery_says_so() -> None:
    assert "Nothing to show." in render("Title", [], [])


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 500), (160, 80)), ((30, 900), (5, 160)), ((20, 10), (20, 10))]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_thumbnails_are_small_and_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int], kind: str
) -> None:
    small = decoded(thumbnail(encoded(size, kind=kind)))
    assert small.format == "JPEG"
    assert small.size == expected
    assert max(small.size) <= THUMBNAIL_SIDE


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("L", "JPEG"), ("P", "PNG"), ("CMYK", "TIFF")])
def test_every_mode_becomes_a_format_browsers_show(mode: str, kind: str) -> None:
    small = decoded(thumbnail(encoded(mode=mode, kind=kind)))
    assert (small.format, small.mode) == ("JPEG", "RGB")


def assert_shows(small: Image.Image, pixels: np.ndarray[Any, Any]) -> None:
    assert small.size == pixels.shape[1::-1]
    assert np.abs(np.asarray(small, float) - pixels).mean() < 10  # twice a JPEG


def test_transparency_is_laid_on_white_as_in_a_build() -> None:
    picture = Image.new("RGBA", (64, 48), (0, 0, 200, 255))
    picture.paste((0, 0, 200, 0), (0, 0, 64, 24))
    file = io.BytesIO()
    picture.save(file, "PNG")
    expected = np.full((48, 64, 3), (0, 0, 200))
    expected[:24] = 255
    assert_shows(decoded(thumbnail(file.getvalue())), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_color_profile_is_applied(kind: str) -> None:
    file = io.BytesIO()
    RGB.save(file, kind, icc_profile=swapped_profile(), **({"quality": 95} if kind == "JPEG" else {}))
    assert_shows(decoded(thumbnail(file.getvalue())), np.asarray(RGB)[..., [1, 0, 2]])


def test_what_only_a_plugin_or_the_second_decoder_reads_is_shown() -> None:
    pytest.importorskip("pillow_heif")
    plugins.register()
    heic, tiff = io.BytesIO(), io.BytesIO()
    RGB.save(heic, "HEIF", quality=90)
    assert_shows(decoded(thumbnail(heic.getvalue())), np.asarray(RGB))
    light = (np.asarray(RGB) / 255) ** 2.2
    pytest.importorskip("tifffile").imwrite(tiff, light.astype(np.float32), photometric="rgb")
    assert_shows(decoded(thumbnail(tiff.getvalue())), np.asarray(RGB))
    jxl = pytest.importorskip("imagecodecs").jpegxl_encode(np.asarray(RGB), lossless=True)
    assert_shows(decoded(thumbnail(bytes(jxl))), np.asarray(RGB))


def test_sixteen_bits_of_grey_are_scaled_not_clipped() -> None:
    file = io.BytesIO()
    Image.new("I;16", (20, 20), 30000).save(file, "PNG")
    assert decoded(thumbnail(file.getvalue())).getpixel((10, 10)) == (117, 117, 117)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.linspace(0, 4095, 400 * 200).astype(np.uint16), "PNG"),  # 12 bits
        (np.linspace(0, 1, 400 * 200).astype(np.float32), "TIFF"),
        (np.linspace(-9e4, 9e4, 400 * 200).astype(np.int32), "TIFF"),
    ],
)
def test_deep_grey_has_the_levels_that_a_build_gives_it(values: np.ndarray[Any, Any], kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(values.reshape(200, 400)).save(file, kind)
    small = decoded(thumbnail(file.getvalue()))
    assert small.size == (160, 80)
    rows = np.asarray(small.convert("L")).mean(axis=1)
    np.testing.assert_allclose(rows, np.linspace(0, 255, 80), atol=4)


def test_a_thumbnail_is_turned_as_exif_says() -> None:
    picture = Image.new("RGB", (400, 200), "blue")
    picture.paste("red", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown after a quarter turn clockwise: the left half comes to the top.
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    small = decoded(thumbnail(file.getvalue()))
    assert small.size == (80, 160)
    top, bottom = small.getpixel((40, 20)), small.getpixel((40, 140))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > 60 > top[2]
    assert bottom[2] > 200 > 60 > bottom[0]
