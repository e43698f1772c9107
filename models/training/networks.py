"""The networks of a training: a backbone, which is saved, and a classifier on its pooled features."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from imgindex.errors import UsageError
from imgindex.models.applications import randomize
from imgindex.models.backbones import Core
from imgindex.models.frameworks import settled_keras
from imgindex.models.pooling import pooled
from imgindex.models.training.augmentation import augmenting

# Share of the features that a step of training leaves out.
_DROPOUT = 0.2

# What a batch normalization keeps of its moving averages at most, a step. Keras's own 0.99 and MobileNetV2's
# 0.999 are for hundreds of thousands of steps; after the few hundred of a small folder their averages would
# still be the first.
_MOST_MOMENTUM = 0.9


@dataclass(frozen=True)
class Network:
    """What is trained. The models share their layers.

    Attributes:
        backbone: What is saved: from raw RGB in 0..255, float32 ``[n, height, width, 3]``, to the feature map
            ``[n, height, width, d]``, or to the features of a base that gives those.
        features: From pixels, uint8 ``[n, height, width, 3]``, to pooled features, float32 ``[n, d]``.
        classifier: From pooled features to logits, float32 ``[n, classes]``.
        whole: From pixels to logits; in training the pixels are changed by the augmentation first.
    """

    backbone: Any
    features: Any
    classifier: Any
    whole: Any

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` of the images, in pixels."""
        height, width = self.backbone.input_shape[1:3]
        return height, width

    def layers(self) -> list[Any]:
        """The backbone's layers with weights, from its input to its output, batch normalization aside."""
        return [layer for layer in leaves(self.backbone) if layer.weights and not _is_normalization(layer)]

    def parameters(self) -> int:
        """How many numbers the backbone and the classifier hold."""
        return _numbers(self.whole.weights)

    def trainable_parameters(self) -> int:
        """How many of them training changes, as the network is frozen now."""
        return _numbers(self.whole.trainable_variables)


def build_network(
    core: Core, pooling: str, classes: int, *, from_scratch: bool, augment: str, seed: int
) -> Network:
    """Puts a new classifier of so many `classes` on a base, whose layers the network takes.

    Args:
        core: The base.
        pooling: What pools its feature map, as `pooled` takes it.
        classes: How many classes there are.
        from_scratch: Whether the base gets random weights.
        augment: See `augmenting`.
        seed: Draws random weights, augmentation and dropout.

    Raises:
        UsageError: The base cannot be built.
    """
    with settled_keras() as keras:
        if from_scratch:
            _begin_anew(keras, core.model, seed)
        pixels = keras.Input((*core.image_size, 3), dtype="float32", name="pixels")
        backbone = keras.Model(pixels, core(keras, pixels), name="backbone")
        features = keras.Input((*core.image_size, 3), dtype="uint8", name="pixels")
        features = keras.Model(features, _pooled(keras, backbone, features, pooling), name="features")
        vector = keras.Input((features.output_shape[-1],), name="features")
        kept = keras.layers.Dropout(_DROPOUT, seed=seed)(vector)
        dense = keras.layers.Dense(
            classes,
            kernel_initializer=keras.initializers.GlorotUniform(seed),
            dtype="float32",
            name="classes",
        )
        classifier = keras.Model(vector, dense(kept), name="classifier")
        inputs = keras.Input((*core.image_size, 3), dtype="uint8", name="pixels")
        changed = keras.ops.cast(inputs, "float32")
        for layer in augmenting(keras, augment, seed):
            changed = layer(changed)
        whole = keras.Model(inputs, classifier(_pooled(keras, backbone, changed, pooling)), name="whole")
    return Network(backbone, features, classifier, whole)


def _pooled(keras: Any, backbone: Any, pixels: Any, pooling: str) -> Any:
    features = backbone(keras.ops.cast(pixels, "float32"))
    if len(features.shape) == 4:
        features = pooled(keras, features, pooling)
    return keras.ops.cast(features, "float32")


def _begin_anew(keras: Any, model: Any, seed: int) -> None:
    """Gives a model the weights that it would have had before any training."""
    try:
        fresh = keras.models.clone_model(model)
    except Exception as error:  # a layer may be of any kind, and a clone builds it again
        raise UsageError(
            "Keras cannot build this base again with new weights: choose an application, such as ResNet50"
        ) from error
    randomize(fresh, seed)
    model.set_weights(fresh.get_weights())


def _numbers(variables: Iterable[Any]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def leaves(model: Any) -> Iterator[Any]:
    """The layers of a model in order, those of models inside of it one by one."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from leaves(layer)
        else:
            yield layer


def _is_normalization(layer: Any) -> bool:
    return type(layer).__name__ == "BatchNormalization"


def freeze(network: Network, frozen: int | None) -> None:
    """Freezes the backbone's first `frozen` layers, or all where that is None; the others are trained.

    They are those of `Network.layers`. Where any is frozen, all batch normalization is: it then works as in
    inference, by the averages of the base.
    """
    layers = network.layers()
    frozen = len(layers) if frozen is None else frozen
    # One by one: Keras does not hand the attribute of a model on to all layers inside of it.
    for number, layer in enumerate(layers):
        layer.trainable = number >= frozen
    for layer in filter(_is_normalization, leaves(network.backbone)):
        layer.trainable = not frozen
        layer.momentum = min(layer.momentum, _MOST_MOMENTUM)
