"""ResNet18 and ResNet34: small networks that can be trained from scratch.

`keras.applications` begins at ResNet50. These two are made of basic blocks, of two convolutions each (He et
al., Deep Residual Learning for Image Recognition, 2015, table 1), with projections where the shape changes
(option B), and start from the weights of He et al., Delving Deep into Rectifiers, 2015.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from imgindex.models.backbones import Core
from imgindex.models.frameworks import settled_keras

# The basic blocks of each of the four stages.
RESNETS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"ResNet18": (2, 2, 2, 2), "ResNet34": (3, 4, 6, 3)}
)
_FILTERS = (64, 128, 256, 512)
# Mean and deviation of ImageNet's pixels, of 0..1: those that networks of this kind are trained with.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
# A short training makes few steps: with Keras's momentum of 0.99 half of the statistics would still be what a
# network begins with.
_MOMENTUM = 0.9
_EPSILON = 1e-5
_IMAGE_SIZE = 224


def new_resnet(name: str, image_size: int | None, seed: int) -> Core:
    """A new network as the base of a training: see `resnet`. Its images are of 224 pixels by default."""
    size = (image_size or _IMAGE_SIZE,) * 2
    with settled_keras() as keras:
        model = resnet(keras, name, size, seed)
    return Core(name, name, model, size, lambda pixels: pixels, "in the model")


def resnet(keras: Any, name: str, image_size: tuple[int | None, int | None], seed: int) -> Any:
    """A new network without a classifier.

    Args:
        keras: The module ``keras``, as `settled_keras` yields it.
        name: One of `RESNETS`.
        image_size: ``(height, width)`` of its input in pixels, None for any.
        seed: Draws the weights: the same seed gives the same ones in every process.

    Returns:
        A ``keras.Model`` from raw RGB pixels 0..255, float32 ``[n, height, width, 3]``, to features, float32
        ``[n, height / 32, width / 32, 512]``, rounded up. Preprocessing is inside.
    """
    layers = keras.layers
    pixels = keras.Input((*image_size, 3), name="pixels")
    scale = [1 / (255 * deviation) for deviation in _DEVIATION]
    offset = [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)]
    x = layers.Rescaling(scale, offset, name="preprocessing")(pixels)
    convolved = _convolutions(keras, seed)
    x = layers.ReLU(name="stem_relu")(convolved(x, 64, 7, 2, "stem"))
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(layers.ZeroPadding2D(1, name="stem_pool_pad")(x))
    for stage, (filters, blocks) in enumerate(zip(_FILTERS, RESNETS[name], strict=True)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x = _basic_block(layers, convolved, x, filters, stride, f"stage{stage + 1}_block{block + 1}")
    return keras.Model(pixels, x, name=name.lower())


def _basic_block(
    layers: Any, convolved: Callable[..., Any], x: Any, filters: int, stride: int, name: str
) -> Any:
    shortcut = x
    if stride > 1 or x.shape[-1] != filters:
        shortcut = convolved(x, filters, 1, stride, f"{name}_projection")
    y = layers.ReLU(name=f"{name}_relu1")(convolved(x, filters, 3, stride, f"{name}_conv1"))
    y = convolved(y, filters, 3, 1, f"{name}_conv2")
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([shortcut, y]))


def _convolutions(keras: Any, seed: int) -> Callable[[Any, int, int, int, str], Any]:
    """Returns what convolves a tensor and normalizes it, with weights of its own at every call."""
    layers = keras.layers
    seeds = _seeds(seed)

    def convolved(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
        if kernel > 1:  # "same" would pad one side more than the other where the stride is 2
            x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        x = layers.Conv2D(
            filters,
            kernel,
            stride,
            use_bias=False,
            kernel_initializer=keras.initializers.HeNormal(next(seeds)),
            name=name,
        )(x)
        return layers.BatchNormalization(momentum=_MOMENTUM, epsilon=_EPSILON, name=f"{name}_norm")(x)

    return convolved


def _seeds(seed: int) -> Iterator[int]:
    generator = np.random.default_rng(seed)
    while True:
        yield int(generator.integers(2**31))
