"""The OpenVINO engine: a converted backbone on the CPU's own instructions."""

import queue
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.errors import UsageError
from imgindex.models.engines.openvino_conversion import (
    ConvertedModel,
    converted_model,
    memory_errors,
    models_folder,
    unable,
)
from imgindex.models.engines.protocol import Engine, EngineChoice, EngineFactory
from imgindex.models.frameworks import has_bfloat16, load_openvino

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoFactory(EngineFactory):
    """Engines of OpenVINO."""

    def load(self, choice: EngineChoice, threads: int) -> Engine:
        """See `EngineFactory.load`. Raises UsageError for a precision that OpenVINO does not have."""
        if choice.precision not in _HINTS:
            raise UsageError(f"engine.precision is {choice.precision!r}; openvino runs {' or '.join(_HINTS)}")
        converted = converted_model(
            choice.name, choice.weights, choice.pooling, choice.image_size, choice.output,
            choice.resize, choice.mirror,
        )  # fmt: skip
        return OpenVinoEngine(converted, choice.precision, choice.batch_size, threads)

    def smaller_precision(self) -> str:
        """See `EngineFactory`."""
        return "bfloat16"

    def is_smaller_faster(self) -> bool:
        """See `EngineFactory`."""
        return has_bfloat16()

    def cache(self) -> Path:
        """See `EngineFactory`."""
        return models_folder()


class OpenVinoEngine:
    """Runs a converted backbone on the CPU, one batch on each of `threads`."""

    name = "openvino"

    def __init__(self, converted: ConvertedModel, precision: str, batch_size: int, threads: int) -> None:
        """Compiles a converted model for this CPU. Raises MemoryError, and UnsupportedModelError."""
        self.precision = precision
        self.batch_size = batch_size
        self.spec = converted.spec
        self.image_size = converted.spec.image_size
        self.streams = threads
        try:
            with memory_errors():
                self._compile(converted)
        except RuntimeError as error:  # as for dtypes that its CPU plugin does not have
            raise unable("run", converted.spec.backbone, error) from error

    def _compile(self, converted: ConvertedModel) -> None:
        openvino = load_openvino()
        core = openvino.Core()
        model = core.read_model(converted.path)
        model.reshape([self.batch_size, *self.image_size, 3])
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
                # A stream per core: threads that share a batch wait for each other at every layer,
                # and all the more where decoders want the same cores.
                "NUM_STREAMS": self.streams,
                "INFERENCE_NUM_THREADS": self.streams,
            },
        )
        # OpenVINO makes its tables of types when they are first asked for. Two threads that do so at once, as
        # with their first batches, can wait for each other for ever, one of them holding Python's own lock.
        compiled.input(0).get_element_type().to_dtype()
        self.feature_dim = int(compiled.output(0).shape[1])
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.streams):
            self._idle.put(compiled.create_infer_request())

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.embed`."""
        request = self._idle.get()
        try:
            with memory_errors():
                features: npt.NDArray[np.float32] = request.infer({0: pixels}, share_inputs=True)[0]
            return features.copy()  # the request's own memory, which its next batch overwrites
        finally:
            self._idle.put(request)
