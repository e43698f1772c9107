"""Features by pooling and resize, and mirrored, against float32 Keras, NumPy and Pillow, on both engines."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from imgindex.models.applications import BUNDLED_WEIGHTS
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import create_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.frameworks import settled_keras
from imgindex.models.preprocess import decode

SIDE = 128
GRAY = (128, 128, 128)  # what MobileNetV2's preprocessing maps to about 0


@pytest.fixture(scope="module")
def photos(sample_photos: Path) -> list[bytes]:
    """JPEGs of several shapes, one of which EXIF turns."""
    files = sorted(sample_photos.rglob("*_002.jpg"))[:6]
    encoded = [file.read_bytes() for file in files[:3]]
    boxes = [(0, 0, 90, 160), (0, 20, 200, 90), (9, 9, 150, 170)]
    for file, box, orientation in zip(files[3:], boxes, (1, 1, 6), strict=True):
        exif, data = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        with Image.open(file) as image:
            image.crop(box).save(data, "JPEG", quality=95, exif=exif)
        encoded.append(data.getvalue())
    return encoded


@pytest.fixture(scope="module")
def feature_maps():
    """Of float32 images [n, SIDE, SIDE, 3], from 0 to 255, by Keras's own MobileNetV2."""
    with settled_keras() as keras:
        core = keras.applications.MobileNetV2(
            input_shape=(SIDE, SIDE, 3), include_top=False, weights=str(BUNDLED_WEIGHTS)
        )

        def maps(images: np.ndarray) -> np.ndarray:
            return np.asarray(core(images / np.float32(127.5) - np.float32(1), training=False))

        yield maps


def resized(data: bytes, resize: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as stored:
        upright = ImageOps.exif_transpose(stored).convert("RGB")
    size, filtering = (SIDE, SIDE), Image.Resampling.BILINEAR
    if resize == "pad":
        return np.asarray(ImageOps.pad(upright, size, filtering, GRAY))
    if resize == "crop":
        side = min(upright.size)
        left, top = (upright.width - side) / 2, (upright.height - side) / 2
        return np.asarray(upright.resize(size, filtering, (left, top, left + side, top + side)))
    return np.asarray(upright.resize(size, filtering))


POOLED = {
    "avg": lambda maps: maps.mean(axis=(1, 2)),
    "max": lambda maps: maps.max(axis=(1, 2)),
    "gem": lambda maps: (np.maximum(maps, 1e-6) ** 3).mean(axis=(1, 2)) ** (1 / 3),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("pooling", "resize", "mirror"),
    [
        ("gem", "pad", False),
        ("avg", "pad", True),
        ("max", "crop", True),
    ],
)
@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
def test_features_are_those_of_keras_numpy_and_pillow(photos, feature_maps, engine, pooling, resize, mirror):
    loaded = create_engine(
        EngineChoice(
            "MobileNetV2", "bundled", pooling, SIDE, engine, "float32", 4, resize=resize, mirror=mirror
        ),
        2,
    )
    found = embed_all(loaded, np.stack([decode(data, loaded.spec.resizing).pixels for data in photos]))
    images = np.stack([resized(data, resize) for data in photos]).astype(np.float32)
    expected = POOLED[pooling](feature_maps(images).astype(np.float64))
    if mirror:
        mirrored = POOLED[pooling](feature_maps(images[:, :, ::-1]).astype(np.float64))
        expected = (expected + mirrored) / 2
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / lengths).min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1), rtol=0.01)
