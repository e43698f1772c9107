"""Images in arrays, fed to a network in batches by tf.data, which reads ahead while the network works."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Inputs with their classes.

    Attributes:
        inputs: Pixels, uint8 ``[n, height, width, 3]``, or features, float32 ``[n, d]``; also a file in
            memory.
        classes: The class of each, int64 ``[n]``; -1 where it is in no part.
        parts: For each part the positions of its examples.
    """

    inputs: npt.NDArray[Any]
    classes: Indices
    parts: dict[str, Indices]


def class_weights(classes: Indices, count: int) -> npt.NDArray[np.float32]:
    """Weights of `count` classes by which each has the same share of the loss; 1 for even ones."""
    return (len(classes) / (count * np.bincount(classes, minlength=count))).astype(np.float32)


def epoch_order(positions: Indices, batch_size: int, seed: int, epoch: int) -> Indices:
    """`positions` in an order of the epoch's own, and as many again as fill the last batch.

    Full batches alone: the statistics of one image would be those of a batch normalization otherwise.
    """
    order = np.random.default_rng((seed, epoch)).permutation(positions)
    return np.resize(order, -(-len(order) // batch_size) * batch_size)


def batches(
    examples: Examples,
    order: Indices,
    batch_size: int,
    weights: npt.NDArray[np.float32] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Any:
    """A ``tf.data.Dataset`` of inputs, classes and weights of the examples at `order`.

    `weights` are those of the classes, by default 1; `advance` is told how many examples are read.
    """
    import tensorflow as tf

    shape: Sequence[int] = examples.inputs.shape[1:]

    def read(positions: Indices) -> tuple[npt.NDArray[Any], Indices, npt.NDArray[np.float32]]:
        if advance:
            advance(len(positions))
        classes = examples.classes[positions]
        weight = np.ones(len(classes), np.float32) if weights is None else weights[classes]
        return examples.inputs[positions], classes, weight

    def load(positions: Any) -> tuple[Any, Any, Any]:
        kinds = (examples.inputs.dtype, np.int64, np.float32)
        inputs, classes, weight = tf.numpy_function(read, [positions], kinds, stateful=False)
        count = positions.shape[0]
        inputs.set_shape([count, *shape])
        classes.set_shape([count])
        weight.set_shape([count])
        return inputs, classes, weight

    made = tf.data.Dataset.from_tensor_slices(order)
    made = made.batch(batch_size, drop_remainder=len(order) % batch_size == 0)
    return made.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
