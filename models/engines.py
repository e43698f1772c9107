"""What executes a backbone: one small interface over the frameworks that can."""

import functools
import os
import threading
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from imgindex.models.backbones import Backbone, load_backbone
from imgindex.models.spec import Spec

ENGINES = ("auto", "tensorflow")
PRECISIONS = ("auto", "float32")
DEFAULT_BATCH_SIZE = 16


class Engine(Protocol):
    """Runs a backbone on batches of any size up to `batch_size`, from one thread at a time."""

    name: str
    precision: str
    batch_size: int
    image_size: tuple[int, int]
    feature_dim: int
    spec: Spec

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Pooled features [n, feature_dim] of RGB images [n, height, width, 3].

        A row depends on its image alone, not on the batch around it.
        """
        ...


class TensorFlowEngine:
    """TensorFlow in float32, the weights frozen to constants, one compiled batch size."""

    name = "tensorflow"
    precision = "float32"

    def __init__(self, backbone: Backbone, batch_size: int = DEFAULT_BATCH_SIZE) -> None:
        """Traces and freezes `backbone`."""
        import tensorflow as tf
        from tensorflow.python.framework.convert_to_constants import (
            convert_variables_to_constants_v2,
        )

        self.batch_size = batch_size
        self.image_size = backbone.image_size
        self.feature_dim = backbone.feature_dim
        self.spec = Spec.of(backbone)
        height, width = backbone.image_size

        def features(pixels: Any) -> Any:
            return backbone.model(pixels, training=False)

        traced = tf.function(features).get_concrete_function(
            tf.TensorSpec([batch_size, height, width, 3], tf.uint8)
        )
        self._run = convert_variables_to_constants_v2(traced)
        self._constant = tf.constant

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.embed`."""
        count = len(pixels)
        if count < self.batch_size:
            # The one compiled shape runs partial batches too: nothing is traced anew, and the kernels
            # that oneDNN picks by shape, and with them the features' bits, stay the same.
            padded = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
            padded[:count] = pixels
            pixels = padded
        features: npt.NDArray[np.float32] = self._run(self._constant(pixels))[0].numpy()
        return features[:count]


_loading = threading.Lock()


def load_engine(
    name: str, weights: str, pooling: str, image_size: int | None, batch_size: int | None
) -> Engine:
    """The engine that runs a backbone on this machine; loaded once in a process.

    The arguments are the config's. Raises what `load_backbone` raises.
    """
    with _loading:  # a cache alone would let two threads load the same backbone at once
        return _load_engine(name, weights, pooling, image_size, batch_size)


@functools.lru_cache(maxsize=2)
def _load_engine(
    name: str, weights: str, pooling: str, image_size: int | None, batch_size: int | None
) -> Engine:
    backbone = load_backbone(name, weights, pooling, image_size)
    return TensorFlowEngine(backbone, batch_size or DEFAULT_BATCH_SIZE)


def available_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
