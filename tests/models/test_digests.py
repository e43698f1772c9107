"""Digests of models: what decides a feature changes one of them, and equal ones give equal features."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.models.digests import layers_digest, weights_digest
from imgindex.models.frameworks import settled_keras

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def keras():
    with settled_keras() as keras:
        return keras


def chain(keras, *layers):
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


def subtract(keras, swapped: bool):
    pixels = keras.Input((8, 8, 3))
    one, other = keras.layers.Rescaling(2.0)(pixels), keras.layers.Rescaling(3.0)(pixels)
    return keras.Model(pixels, one - other if swapped else other - one)


def with_output(keras, number: int):
    """The same layers, and the output of another of them."""
    pixels = keras.Input((8, 8, 3))
    outputs = [keras.layers.Rescaling(2.0)(pixels), keras.layers.Rescaling(3.0)(pixels)]
    both = keras.Model(pixels, outputs)
    config = both.get_config()
    config["output_layers"] = config["output_layers"][number]
    return keras.Model.from_config(config)


def operation(keras, apply):
    pixels = keras.Input((8, 8, 3))
    return keras.Model(pixels, apply(pixels))


# Pairs that differ in one thing that decides features, and have the same weights.
PAIRS = {
    "class": lambda k: [chain(k, k.layers.MaxPooling2D()), chain(k, k.layers.AveragePooling2D(2))],
    "setting": lambda k: [chain(k, k.layers.MaxPooling2D(strides=s)) for s in (1, 2)],
    "activation": lambda k: [chain(k, k.layers.Activation(name, name="same")) for name in ("relu", "tanh")],
    "activation, with the names of the layers": lambda k: [
        chain(k, k.layers.Activation(name, name=name)) for name in ("relu", "tanh")
    ],
    "constant": lambda k: [chain(k, k.layers.Rescaling(scale)) for scale in (0.5, 0.25)],
    "constants of channels": lambda k: [
        chain(k, k.layers.Rescaling(scale)) for scale in ([1.0, 1.0, 1.0], [1.0, 2.0, 1.0])
    ],
    "normalization": lambda k: [
        chain(k, k.layers.Normalization(mean=mean, variance=1.0)) for mean in (0.0, 1.0)
    ],
    "epsilon": lambda k: [chain(k, k.layers.LayerNormalization(epsilon=e)) for e in (1e-3, 1e-5)],
    "constant of an operation": lambda k: [operation(k, lambda x, by=by: x * by) for by in (2.0, 3.0)],
    "array of an operation": lambda k: [
        operation(k, lambda x, by=by: x + np.float32([0, by, 0])) for by in (2, 3)
    ],
    "slice of an operation": lambda k: [operation(k, lambda x, by=by: x[..., ::by]) for by in (1, -1)],
    "connections": lambda k: [subtract(k, swapped) for swapped in (False, True)],
    "output": lambda k: [with_output(k, number) for number in (0, 1)],
    "order": lambda k: [
        chain(k, *[k.layers.Rescaling(2.0), k.layers.Activation("tanh")][::step]) for step in (1, -1)
    ],
    "dtype policy": lambda k: [
        chain(k, k.layers.Rescaling(1 / 3, dtype=policy)) for policy in ("float32", "mixed_bfloat16")
    ],
    "inside of a nested model": lambda k: [
        chain(k, chain(k, k.layers.Rescaling(scale))) for scale in (0.5, 0.25)
    ],
    "inside of a wrapper": lambda k: [
        chain(k, k.layers.TimeDistributed(k.layers.Rescaling(scale))) for scale in (0.5, 0.25)
    ],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_what_decides_a_feature_changes_the_digest(keras, pair):
    one, other = PAIRS[pair](keras)
    assert weights_digest(one) == weights_digest(other)
    assert not np.array_equal(one(IMAGES), other(IMAGES)), "the pair shows nothing"
    assert layers_digest(one) != layers_digest(other)


ALIKE = {
    "the count of layers before": lambda k: [subtract(k, False) for _ in range(2)],
    "names": lambda k: [chain(k, k.layers.Conv2D(2, 3, name=name)) for name in ("one", "two")],
    "names inside": lambda k: [
        chain(k, k.layers.TimeDistributed(k.layers.Dense(2, name=name), name="t")) for name in ("one", "two")
    ],
    "names of models": lambda k: [
        chain(k, k.Sequential([k.layers.Rescaling(2.0)], name=name)) for name in ("one", "two")
    ],
    "initializers": lambda k: [
        chain(k, k.layers.Dense(2, kernel_initializer=name)) for name in ("ones", "zeros")
    ],
    "regularizers": lambda k: [chain(k, k.layers.Dense(2, kernel_regularizer=name)) for name in ("l1", "l2")],
    "trainable": lambda k: [chain(k, k.layers.Dense(2, trainable=value)) for value in (True, False)],
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_decides_no_feature_does_not(keras, kind):
    one, other = ALIKE[kind](keras)
    other.set_weights(one.get_weights())
    assert np.array_equal(one(IMAGES), other(IMAGES))
    assert layers_digest(one) == layers_digest(other)
    assert weights_digest(one) == weights_digest(other)


# So that an update of Keras neither embeds an index anew nor closes it to queries.
@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("MobileNetV2", "0273c330307a54c582cc70ccf429bd99a999c3172e146964d91e72f2d26e6010"),
        ("ResNet50", "3d4a1bcd41813d853e96a0c203bf78576463d3dd19415af67563016427dd995d"),
        ("InceptionV3", "5111437b81244ec9bcb01dacbdd6532002cf637f1e8e90cd5a77c66b14ca2ad3"),
    ],
)
def test_every_version_of_keras_gives_a_backbone_the_same_digest(keras, name, digest):
    build = getattr(keras.applications, name)
    model = build(include_top=False, weights=None, pooling="avg", input_shape=(96, 96, 3))
    assert layers_digest(model) == digest


LAYERS = [
    lambda k: k.layers.Rescaling(0.5),
    lambda k: k.layers.Rescaling(0.25),
    lambda k: k.layers.Activation("tanh"),
    lambda k: k.layers.Activation("relu"),
    lambda k: k.layers.Conv2D(3, 3, padding="same", kernel_initializer="ones"),
    lambda k: k.layers.Conv2D(3, 3, padding="same", kernel_initializer="zeros"),
    lambda k: k.layers.Conv2D(3, 3, padding="same", kernel_initializer="ones", dtype="mixed_bfloat16"),
]
RECIPES = st.lists(st.integers(0, len(LAYERS) - 1), min_size=1, max_size=3)


@given(RECIPES, RECIPES)
@settings(max_examples=30)
def test_equal_digests_give_equal_features_bit_by_bit(keras, one, other):
    models = [chain(keras, *(LAYERS[number](keras) for number in recipe)) for recipe in (one, other)]
    digests = [(layers_digest(model), weights_digest(model)) for model in models]
    assert (digests[0] == digests[1]) == (one == other)
    if digests[0] == digests[1]:
        assert np.array_equal(models[0](IMAGES), models[1](IMAGES))


class TestWeights:
    def digest(self, keras, value, shape, dtype="float32"):
        layer = keras.layers.Layer()
        layer.add_weight(shape=shape, dtype=dtype).assign(np.full(shape, value))
        return weights_digest(layer)

    def test_sees_values_and_shapes(self, keras):
        expected = hashlib.sha256(b"(2, 1)\n" + np.array([1, 1], "<f4").tobytes()).hexdigest()
        assert self.digest(keras, 1, (2, 1)) == expected
        changes = [(1, (2, 1)), (2, (2, 1)), (1, (1, 2))]
        assert len({self.digest(keras, *change) for change in changes}) == 3

    def test_sees_dtypes_and_all_of_their_digits(self, keras):
        changes = [(1, "float32"), (1, "float64"), (1 + 1e-12, "float64"), (1, "bfloat16"), (1, "float16")]
        assert len({self.digest(keras, value, (2,), dtype) for value, dtype in changes}) == 5
