"""ResNet18 and ResNet34, held against what is published of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgindex.models.backbones import load_backbone
from imgindex.models.frameworks import settled_keras
from imgindex.models.training.resnets import RESNETS, resnet


@pytest.fixture
def keras() -> Iterator[Any]:
    with settled_keras() as module:
        yield module


def counted_by_hand(blocks: tuple[int, ...]) -> int:
    """Weights that are trained: kernels, and a scale and a shift for each filter of a convolution."""
    total = 7 * 7 * 3 * 64 + 2 * 64
    before = 64
    for filters, count in zip((64, 128, 256, 512), blocks, strict=True):
        for _ in range(count):
            total += 9 * before * filters + 9 * filters * filters + 4 * filters
            if before != filters:
                total += before * filters + 2 * filters
            before = filters
    return total


# Of the implementation of torchvision: 11,689,512 and 21,797,672, less 513,000 of the classifier.
@pytest.mark.parametrize(("name", "published"), [("ResNet18", 11_176_512), ("ResNet34", 21_284_672)])
def test_the_parameters_are_those_that_are_published(keras: Any, name: str, published: int) -> None:
    model = resnet(keras, name, (64, 64), 0)
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trained == published == counted_by_hand(RESNETS[name])
    # What is not trained is the mean and the variance of each normalization.
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == {"ResNet18": 20, "ResNet34": 36}[name]
    assert len(model.non_trainable_weights) == 2 * len(norms)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 160), (224, 224), (225, 225)])
def test_the_features_are_a_32nd_of_the_image(keras: Any, size: tuple[int, int]) -> None:
    height, width = (-(-side // 32) for side in size)
    assert resnet(keras, "ResNet18", size, 0).output_shape == (None, height, width, 512)
    pixels = np.zeros((1, *size, 3), np.float32)
    assert resnet(keras, "ResNet18", (None, None), 0)(pixels).shape == (1, height, width, 512)


def test_a_seed_decides_the_weights(keras: Any) -> None:
    first, again, other = (resnet(keras, "ResNet18", (32, 32), seed).get_weights() for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    kernels = [place for place, weight in enumerate(first) if weight.ndim == 4]
    assert not any(np.array_equal(first[place], other[place]) for place in kernels)
    # Layers of the same shape differ from each other, too.
    shapes = [first[place].shape for place in kernels]
    twins = [place for place, shape in zip(kernels, shapes, strict=True) if shape == (3, 3, 64, 64)]
    assert len({first[place].tobytes() for place in twins}) == len(twins) > 1


def test_the_weights_begin_as_he_et_al_have_it(keras: Any) -> None:
    for layer in resnet(keras, "ResNet34", (32, 32), 0).layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = np.asarray(layer.kernel)
            fan_in = np.prod(kernel.shape[:3])
            assert kernel.std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


def test_it_takes_raw_pixels(keras: Any) -> None:
    model = resnet(keras, "ResNet18", (32, 32), 0)
    preprocessed = keras.Model(model.inputs, model.get_layer("preprocessing").output)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(preprocessed(pixels), expected, atol=1e-5)


def test_a_saved_one_is_a_backbone(keras: Any, tmp_path: Path) -> None:
    model = resnet(keras, "ResNet18", (64, 64), 3)
    model.save(tmp_path / "resnet.keras")
    backbone = load_backbone(str(tmp_path / "resnet.keras"), "none", "avg", None)
    assert (backbone.image_size, backbone.feature_dim) == ((64, 64), 512)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected = np.asarray(model(pixels.astype(np.float32))).mean(axis=(1, 2))
    np.testing.assert_allclose(backbone.model(pixels), expected, rtol=1e-4, atol=1e-5)


def test_it_learns(keras: Any) -> None:
    """Red images from blue ones, in a few steps."""
    generator = np.random.default_rng(0)
    labels = np.arange(16) % 2
    pixels = generator.uniform(0, 60, (16, 32, 32, 3)).astype(np.float32)
    pixels[np.arange(16), :, :, 2 * labels] += 180
    core = resnet(keras, "ResNet18", (32, 32), 0)
    logits = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(core.output))
    model = keras.Model(core.inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, 0.9), loss, run_eagerly=True)
    model.fit(pixels, labels, batch_size=8, epochs=8, verbose=0)
    assert (np.asarray(model(pixels, training=True)).argmax(axis=1) == labels).all()
