"""KerasHub presets as backbones: each gives what KerasHub's own model gives, by both engines."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_presets import KINDS, save_preset
from long_runs import some_long
from PIL import Image

from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import create_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.frameworks import settled_keras
from imgindex.models.preprocess import decode

# How many tokens a model gives before those of the patches.
OTHER_TOKENS = {
    "DINOv2": 3, "DINOv3": 3, "CLIP": 1, "CLIP's vision encoder": 1, "ViT": 1, "ViT without class token": 0,
    "DeiT": 2,
}  # fmt: skip
MAPS = ["ResNet18", "ResNet50", "DenseNet", "EfficientNet", "MobileNet", "CSPNet", "VGG", "Xception"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """Gives the folder of a preset, which the first test that asks writes."""
    folder = tmp_path_factory.mktemp("presets")

    def saved(name: str) -> str:
        path = folder / name
        return str(path) if path.exists() else save_preset(path, KINDS[name])

    return saved


@pytest.fixture
def own_preset(preset, tmp_path):
    """A copy of a preset that a test may change."""

    def copied(name: str) -> Path:
        shutil.copytree(preset(name), tmp_path / "preset")
        return tmp_path / "preset"

    return copied


def pictures(count: int = 3) -> list[bytes]:
    """PNGs of several shapes, of coarse and of fine detail."""
    random = np.random.default_rng(3)
    encoded = []
    for number in range(count):
        noise = Image.fromarray(random.integers(0, 256, (9 + number, 13, 3), dtype=np.uint8))
        file = io.BytesIO()
        noise.resize((150 + 20 * number, 110), Image.Resampling.BICUBIC).save(file, "PNG")
        encoded.append(file.getvalue())
    return encoded


def pool(found: np.ndarray, pooling: str, other_tokens: int) -> np.ndarray:
    """The features [n, d] of feature maps [n, h, w, d], of tokens [n, tokens, d] or of features, by NumPy."""
    if found.ndim == 2:
        return found
    if pooling == "cls":
        return found[:, 0]
    patches = found[:, other_tokens:] if found.ndim == 3 else found.reshape(len(found), -1, found.shape[-1])
    match pooling:
        case "avg":
            return patches.mean(axis=1)
        case "max":
            return patches.max(axis=1)
        case _:
            return np.cbrt((np.maximum(patches, 1e-6).astype(np.float64) ** 3).mean(axis=1))


def by_keras_hub(folder: str, name: str, pooling: str, side: int | None = None) -> np.ndarray:
    """What KerasHub's model gives for the pictures, which Pillow resizes and NumPy normalizes."""
    kind = KINDS[name]
    side = side or kind.side
    mean, std = kind.normalization
    resample = Image.Resampling[kind.interpolation.upper()]
    resized = [
        np.asarray(Image.open(io.BytesIO(picture)).resize((side, side), resample)) for picture in pictures()
    ]
    values = ((np.array(resized, np.float32) / 255 - mean) / std).astype(np.float32)
    with settled_keras() as keras:
        import keras_hub

        shape = {} if side == kind.side else {"image_shape": (side, side, 3)}
        model = keras_hub.models.Backbone.from_preset(folder, **shape)
        tower = getattr(model, "vision_encoder", model)
        found = tower.predict(keras.tree.map_structure(lambda _: values, tower.input), verbose=0)
    return pool(found, pooling, OTHER_TOKENS.get(name, 0))


def least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / lengths).min())


def by_engine(choice: EngineChoice) -> np.ndarray:
    """What an engine gives for the pictures, as a build decodes them."""
    engine = create_engine(choice, 2)
    return embed_all(
        engine, np.array([decode(picture, engine.spec.resizing).pixels for picture in pictures()])
    )


def choice(folder: str, engine: str, **changes) -> EngineChoice:
    return dataclasses.replace(EngineChoice(folder, "imagenet", "avg", None, engine, "float32", 3), **changes)


# How the features of each kind are pooled, so that every pooling is there.
POOLINGS = {
    "ResNet18": "avg", "ResNet50": "gem", "DINOv2": "cls", "DINOv3": "avg", "SigLIP": "avg", "CLIP": "cls",
    "ViT": "max", "CLIP's vision encoder": "avg", "ViT without class token": "gem", "DeiT": "avg",
    "DenseNet": "avg", "EfficientNet": "avg", "MobileNet": "avg", "CSPNet": "avg", "VGG": "avg",
    "Xception": "avg",
}  # fmt: skip


class TestFeatures:
    @pytest.mark.parametrize("name", some_long(KINDS, "ResNet18", "DINOv2", "SigLIP", "CLIP"))
    def test_are_those_of_keras_hub_by_both_engines(self, preset, name):
        folder, pooling = preset(name), POOLINGS[name]
        expected = by_keras_hub(folder, name, pooling)
        assert least_cosine(np.roll(expected, 1, axis=0), expected) < 0.999, "another image's would pass"
        for engine in ("tensorflow", "openvino"):
            found = by_engine(choice(folder, engine, pooling=pooling))
            assert found.dtype == np.float32
            assert least_cosine(found, expected) > 0.9999, engine
            np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
