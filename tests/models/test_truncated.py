"""`images.truncated`: a photo that was cut off fails, or is taken for what there is of it."""

import functools
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from manifests import manifest_of
from pictures import HEIGHT, RGB, WIDTH
from PIL import Image, ImageFile
from test_preprocess import encoded

from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DEFAULT_MAX_PIXELS, DecodedImage, DecodeError, decode
from imgindex.models.resizing import Resizing
from imgindex.records import WrittenFile
from imgindex.search.queries import Recipe, load
from imgindex.search.results import QueryError

SIZE = (HEIGHT, WIDTH)
accepting = functools.partial(decode, truncated="accept")

JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {"quality": 95},
    "progressive": {"quality": 95, "progressive": True},
    "4:4:4 with restarts": {"quality": 95, "subsampling": 0, "restart_marker_rows": 1},
}


def photo(**options: Any) -> bytes:
    return encoded(RGB, "JPEG", **options)


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, SIZE, **options)
    return caught.value.reason


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_cut_jpeg_is_what_pillow_makes_of_it(
    options: dict[str, Any], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photo(**options)
    data = data[: int(share * len(data))]
    assert reason(data) == "truncated"
    image = accepting(data, SIZE)
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(io.BytesIO(data)) as cut:
        assert np.array_equal(image.pixels, np.asarray(cut.convert("RGB")))


def test_the_upper_part_is_kept_and_the_rest_is_gray() -> None:
    data = photo(quality=95, subsampling=0)
    image = accepting(data[: len(data) // 2], SIZE)
    whole = decode(data, SIZE)
    assert np.array_equal(image.pixels[:8], whole.pixels[:8])
    assert (image.pixels[-8:] == 128).all()


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_two_decodes_give_the_same_bytes(options: dict[str, Any]) -> None:
    """Also in another process, after another image, and at a reduced size."""
    data = photo(**options)
    data = data[: 2 * len(data) // 3]
    with DecoderProcess() as decoder:
        for size in (SIZE, (5, 7)):
            expected = accepting(data, size).pixels
            for noise in (0, 255):
                decode(encoded(Image.new("RGB", RGB.size, (noise,) * 3), "JPEG"), size)
                decoder.decode(encoded(Image.new("RGB", RGB.size, (noise,) * 3), "JPEG"), Resizing(size))
                assert np.array_equal(accepting(data, size).pixels, expected)
                assert np.array_equal(
                    decoder.decode(data, Resizing(size), truncated="accept").pixels, expected
                )


def test_what_holds_nothing_of_the_picture_fails_all_the_same() -> None:
    data = photo()
    start = data.index(b"\xff\xda") + 2 + 12
    for length in (3, 30, start - 20, start):
        assert reason(data[:length], truncated="accept") == reason(data[:length])


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_other_formats_fail_all_the_same(form: str) -> None:
    data = encoded(RGB, form)
    data = data[: len(data) * 2 // 3]
    assert reason(data, truncated="accept") == reason(data)


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.95])
def test_files_that_name_their_lengths_fail_as_truncated_wherever_they_end(form: str, part: float) -> None:
    data = encoded(RGB, form)
    assert reason(data[: int(len(data) * part)]) == "truncated"


def test_a_film_is_not_truncated() -> None:
    assert reason(b"\0\0\0\x18ftypisom" + bytes(8) + b"isom\0\0\1\0moov") == "not_an_image"


def test_whole_ones_and_other_failures_are_as_before() -> None:
    assert np.array_equal(accepting(photo(), SIZE).pixels, decode(photo(), SIZE).pixels)
    data = photo()[:-40]
    assert reason(data, truncated="accept", max_pixels=100) == "too_many_pixels"
    assert reason(b"", truncated="accept") == "empty"


def recipe_of(images: dict[str, Any]) -> Recipe:
    """The recipe of an index with this section of its config."""
    manifest = manifest_of("", [], WrittenFile("pca/basis.npz", 0, ""))
    spec = replace(manifest.spec, image_size=SIZE)
    return Recipe.of(replace(manifest, config={**manifest.config, "images": images}, spec=spec))


def test_a_query_follows_its_index() -> None:
    data = photo()[:-400]
    images = {"max_bytes": 1 << 20, "max_pixels": 1000}
    failed = load(data, recipe_of(images), decode).value
    assert isinstance(failed, QueryError)
    assert failed.reason == "truncated"
    accepted = load(data, recipe_of({**images, "truncated": "accept"}), decode).value
    assert np.array_equal(accepted, accepting(data, SIZE).pixels)


@pytest.mark.parametrize(("of_index", "of_query"), [(1000, DEFAULT_MAX_PIXELS), (1 << 30, 1 << 30)])
def test_a_query_may_be_as_large_as_the_images_of_its_index(of_index: int, of_query: int) -> None:
    """And as large as by default, for what an index leaves out may still be searched for."""
    images = {"max_bytes": 1 << 20, "max_pixels": of_index}
    recipe = recipe_of(images)
    asked: list[int] = []

    def noting(data: bytes, size: tuple[int, int], max_pixels: int, *how: str) -> DecodedImage:
        asked.append(max_pixels)
        return decode(data, size, max_pixels, *how)

    assert np.array_equal(load(photo(), recipe, noting).value, decode(photo(), SIZE).pixels)
    assert asked == [of_query]
