"""The TensorFlow engine: a frozen graph of one batch size, on a CPU or a GPU."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.models.backbones import Backbone, load_backbone
from imgindex.models.engines.protocol import Engine, EngineChoice, EngineFactory
from imgindex.models.frameworks import has_bfloat16, settled_keras
from imgindex.models.spec import Spec

# Grappler's rewrites that run convolutions and products in a smaller type, by precision.
_REWRITES = {
    "bfloat16": "auto_mixed_precision_onednn_bfloat16",
    "float16": "auto_mixed_precision",
}


class TensorFlowFactory(EngineFactory):
    """Engines of TensorFlow."""

    def load(self, choice: EngineChoice, threads: int) -> Engine:
        """See `EngineFactory.load`."""
        backbone = load_backbone(
            choice.name, choice.weights, choice.pooling, choice.image_size, choice.output,
            choice.resize, choice.mirror,
        )  # fmt: skip
        return TensorFlowEngine(backbone, choice.precision, choice.batch_size, threads)

    def uses_gpu(self) -> bool:
        """See `EngineFactory`."""
        return gpu_driver() and has_gpu()

    def batch_size(self) -> int:
        """See `EngineFactory`."""
        return 128 if self.uses_gpu() else super().batch_size()

    def smaller_precision(self) -> str:
        """See `EngineFactory`."""
        return "float16" if self.uses_gpu() else "bfloat16"

    def is_smaller_faster(self) -> bool:
        """See `EngineFactory`."""
        return self.uses_gpu() or has_bfloat16()


class TensorFlowEngine:
    """Runs a backbone with its weights frozen to constants and one traced batch size."""

    name = "tensorflow"
    streams = 1

    def __init__(self, backbone: Backbone, precision: str, batch_size: int, threads: int) -> None:
        """Traces and freezes `backbone`; `threads` counts where TensorFlow has not started yet.

        Raises MemoryError.
        """
        import tensorflow as tf
        from tensorflow.python.framework.convert_to_constants import (
            convert_variables_to_constants_v2,
        )

        self.precision = precision
        self.batch_size = batch_size
        self.image_size = backbone.image_size
        self.feature_dim = backbone.feature_dim
        self.spec = Spec.of(backbone)
        # Once TensorFlow has started it refuses, and keeps the threads that it then had.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        # Each is switched off by name: TensorFlow keeps for all graphs what was ever switched on.
        tf.config.optimizer.set_experimental_options(
            {rewrite: kind == precision for kind, rewrite in _REWRITES.items()}
        )
        self._run = convert_variables_to_constants_v2(trace(backbone, batch_size))
        self._constant = tf.constant
        self._exhausted = tf.errors.ResourceExhaustedError
        # The graph is optimized on its first run, under the options that are then set for all graphs.
        self.embed(np.zeros((batch_size, *backbone.image_size, 3), np.uint8))

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.embed`."""
        try:
            features: npt.NDArray[np.float32] = self._run(self._constant(pixels))[0].numpy()
        except self._exhausted as error:
            raise MemoryError(str(error)) from error
        return features


def trace(backbone: Backbone, batch_size: int | None) -> Any:
    """`backbone` as a TensorFlow function of batches of one size, or of any where that is None."""
    import tensorflow as tf

    def features(pixels: Any) -> Any:
        return backbone.model(pixels, training=False)

    shape = [batch_size, *backbone.image_size, 3]
    with settled_keras():
        return tf.function(features).get_concrete_function(tf.TensorSpec(shape, tf.uint8))


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU here."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def gpu_driver() -> bool:
    """Whether it is worth loading TensorFlow to ask it for a GPU."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/kfd").exists()
