"""Resizing: the geometry of stretch, pad and crop, upright whatever the EXIF orientation."""

import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imgindex.models.applications import APPLICATIONS
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import decode
from imgindex.models.resizing import RESIZES, Resizing

ORIENTATION = 0x0112
FILL = (1, 200, 90)
SIDES = st.integers(1, 700)
SIZES = st.tuples(st.integers(1, 64), st.integers(1, 64))  # height, width


def encoded(image: Image.Image, form: str, orientation: int = 1, **options: object) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    image.save(file, form, exif=exif, **options)
    return file.getvalue()


def scene(height: int, width: int) -> Image.Image:
    """A picture whose every place has another color."""
    down, across = np.mgrid[:height, :width]
    waves = [np.sin(down / 37 + across / 91), down / height * 2 - 1, across / width * 2 - 1]
    return Image.fromarray((127 + 120 * np.stack(waves, axis=2)).astype(np.uint8))


def expected(upright: Image.Image, resizing: Resizing) -> np.ndarray:
    """What Pillow itself makes of an image."""
    size, filtering = resizing.size[::-1], Image.Resampling[resizing.interpolation.upper()]
    if resizing.mode == "pad":
        return np.asarray(ImageOps.pad(upright, size, filtering, resizing.fill, (0.5, 0.5)), float)
    if resizing.mode == "crop":
        return np.asarray(ImageOps.fit(upright, size, filtering), float)
    return np.asarray(upright.resize(size, filtering), float)


@pytest.mark.parametrize("size", [(32, 32), (24, 36), (36, 24)])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50), (33, 200), (8, 16)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", RESIZES)
def test_pixels_are_those_of_pillows_own_functions(mode, interpolation, shape, size):
    image = scene(*shape)
    resizing = Resizing(size, mode, interpolation, FILL if mode == "pad" else None)
    found = decode(encoded(image, "PNG"), resizing)
    assert found.pixels.shape == (*size, 3)
    assert (found.height, found.width) == shape
    assert np.abs(found.pixels - expected(image, resizing)).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(20, 20), (12, 30), (30, 12)])
@pytest.mark.parametrize("mode", RESIZES)
def test_images_on_their_sides_are_resized_upright(mode, size, orientation):
    data = encoded(scene(40, 62), "PNG", orientation)
    resizing = Resizing(size, mode, fill=FILL if mode == "pad" else None)
    with Image.open(io.BytesIO(data)) as stored:
        upright = ImageOps.exif_transpose(stored)
    # Resizing rounds between its two passes, whose order a turn changes.
    turned, straight = decode(data, resizing), decode(encoded(upright, "PNG"), resizing)
    assert (turned.width, turned.height) == upright.size
    assert np.abs(turned.pixels.astype(float) - straight.pixels).max() <= 2


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("shape", [(1203, 1601), (1601, 1203), (997, 2003), (300, 2400)])
@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_a_jpeg_decoded_at_a_reduced_size_looks_like_the_whole(mode, shape, orientation):
    resizing = Resizing((72, 72), mode, fill=FILL if mode == "pad" else None)
    data = encoded(scene(*shape), "JPEG", orientation, quality=95)
    with Image.open(io.BytesIO(data)) as stored:
        wanted = decode(encoded(ImageOps.exif_transpose(stored), "PNG"), resizing).pixels.astype(float)
    found = decode(data, resizing).pixels
    assert np.abs(found - wanted).mean() < 1.5
    if mode == "pad":
        np.testing.assert_array_equal(
            (found == FILL).all(axis=2).all(axis=0), (wanted == FILL).all(axis=2).all(axis=0)
        )


@given(SIDES, SIDES, SIZES, st.sampled_from(RESIZES))
@example(1, 700, (64, 1), "pad")
@example(700, 1, (1, 64), "crop")
def test_every_shape_becomes_the_size(height, width, size, mode):
    resizing = Resizing(size, mode, fill=FILL)
    for turned in (False, True):
        image = resizing.resized(Image.new("RGB", (width, height)), (width, height), turned)
        upright = image.transpose(Image.Transpose.ROTATE_90) if turned else image
        assert resizing.framed(upright).size == size[::-1]


@given(SIDES, SIDES, SIZES)
def test_a_padded_image_keeps_its_aspect_ratio_and_lies_in_the_middle(height, width, size):
    resizing = Resizing(size, "pad", fill=(255, 255, 255))
    black = resizing.resized(Image.new("RGB", (width, height)), (width, height), False)
    # To a pixel, and one of them fills the size.
    scale = min(size[0] / height, size[1] / width)
    assert abs(black.height - max(1, height * scale)) <= 0.5
    assert abs(black.width - max(1, width * scale)) <= 0.5
    assert black.height == size[0] or black.width == size[1]
    pixels = np.asarray(resizing.framed(black))[..., 0] == 0
    for axis in (0, 1):
        inside = np.flatnonzero(pixels.any(axis=1 - axis))
        before, after = inside[0], size[axis] - 1 - inside[-1]
        assert abs(after - before) <= 1


@given(SIDES, SIDES, SIZES, st.sampled_from(RESIZES))
def test_a_reduced_decoding_keeps_twice_the_pixels_that_are_needed(height, width, size, mode):
    columns, rows = Resizing(size, mode).draft((width, height))
    for needed in (size, size[::-1]):  # upright, or on its side
        if mode == "stretch":
            least = 2 * needed[1], 2 * needed[0]
        else:
            choose = min if mode == "pad" else max
            scale = choose(needed[0] / height, needed[1] / width)
            least = 2 * scale * width, 2 * scale * height
        # Pillow reduces both sides by the same factor, so one of them may decide.
        factor = min(width / columns, height / rows)
        assert width / factor >= least[0] - 1e-6
        assert height / factor >= least[1] - 1e-6


def test_a_decoder_process_resizes_so_too():
    data = encoded(scene(50, 90), "JPEG", 6)
    with DecoderProcess() as decoder:
        for mode in RESIZES:
            resizing = Resizing((20, 30), mode, "bicubic", FILL if mode == "pad" else None)
            np.testing.assert_array_equal(
                decoder.decode(data, resizing).pixels, decode(data, resizing).pixels
            )


@pytest.mark.parametrize(
    "name", ["DenseNet121", "InceptionV3", "MobileNetV2", "ResNet50", "ResNet50V2", "VGG16"]
)
def test_the_fill_color_is_what_the_preprocessing_maps_to_about_zero(name):
    from imgindex.models.frameworks import settled_keras

    known = APPLICATIONS[name]
    with settled_keras() as keras:
        preprocess = getattr(keras.applications, known.module).preprocess_input
        values = np.asarray(preprocess(np.full((1, 1, 1, 3), known.fill, np.float32)))
        black = np.asarray(preprocess(np.zeros((1, 1, 1, 3), np.float32)))
    assert np.abs(values).max() < np.abs(black).max() / 100
