"""A small backbone, and saved models."""

import pytest

from imgindex.models.backbones import Backbone, load_backbone
from imgindex.models.frameworks import settled_keras


@pytest.fixture(scope="session")
def small_backbone() -> Backbone:
    """MobileNetV2 of random weights for images of 64 x 64."""
    return load_backbone("MobileNetV2", "none", "avg", 64)


@pytest.fixture
def keras_model(tmp_path):
    """Saves a model of one convolution, of a dtype policy; gives its path."""

    def save(policy: str) -> str:
        with settled_keras() as keras:
            path = tmp_path / f"{policy}.keras"
            layer = keras.layers.Conv2D(4, 3, kernel_initializer="ones", dtype=policy)
            keras.Sequential([keras.Input((32, 32, 3)), layer]).save(path)
        return str(path)

    return save
