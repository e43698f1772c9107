"""What executes a backbone: one small interface over the frameworks that can, and the choice among them."""

import functools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from imgindex.errors import MachineError, UnsupportedModelError, UsageError, WorkerError
from imgindex.models.backbones import load_backbone
from imgindex.models.openvino_engine import OpenVinoEngine, converted_model, has_bfloat16
from imgindex.models.pca import normalize
from imgindex.models.preprocess import Pixels, decoding
from imgindex.models.spec import Spec
from imgindex.models.tensorflow_engine import TensorFlowEngine, has_gpu
from imgindex.runtime.resources import available_cores

logger = logging.getLogger(__name__)

ENGINES = ("auto", "openvino", "tensorflow")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

# A smaller precision is chosen by itself only where every one of the first images' features agrees with
# float32's this well.
MIN_COSINE = 0.999
_COMPARED_IMAGES = 8
_CPU_BATCH_SIZE = 16
_GPU_BATCH_SIZE = 128


class Engine(Protocol):
    """Runs a backbone on batches of exactly `batch_size`, from any thread."""

    name: str
    precision: str
    batch_size: int
    streams: int  # how many batches it runs at once
    image_size: tuple[int, int]
    feature_dim: int
    spec: Spec

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Pooled features [batch_size, feature_dim] of RGB images [batch_size, height, width, 3].

        A row depends on its image alone, not on the images around it. Raises MemoryError where a batch does
        not fit into memory, and otherwise what the framework does.
        """
        ...


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs which backbone: all that `load_engine` needs, the same in every process."""

    name: str  # of the backbone
    weights: str
    pooling: str
    image_size: int | None
    engine: str
    precision: str
    batch_size: int
    # The least of the first images' with float32; None: not compared. The engine is the same with any.
    cosine: float | None = field(default=None, compare=False)
    color_profile: str = "srgb"  # of the images that it is given: only the spec says it
    output: str | None = None  # of a saved model that has several


def embed_all(engine: Engine, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Features [n, feature_dim] of any number of images [n, height, width, 3].

    The last batch is filled up with black images: the engine's one batch size is all that is ever
    compiled, and the kernels chosen for it, and with them the features' bits, stay the same.
    """
    features = np.empty((len(pixels), engine.feature_dim), np.float32)
    for start in range(0, len(pixels), engine.batch_size):
        batch = pixels[start : start + engine.batch_size]
        count = len(batch)
        if count < engine.batch_size:
            padding = np.zeros((engine.batch_size - count, *batch.shape[1:]), np.uint8)
            batch = np.concatenate([batch, padding])
        features[start : start + count] = engine.embed(batch)[:count]
    return features


def choose_engine(
    name: str,
    weights: str,
    pooling: str,
    image_size: int | None,
    *,
    engine: str,
    precision: str,
    batch_size: int | None,
    sample: Callable[[tuple[int, int], int], Pixels],
    color_profile: str = "srgb",
    output: str | None = None,
) -> EngineChoice:
    """Settles what the config leaves to `auto`: what is fastest here and agrees with float32.

    Args:
      name, weights, pooling, image_size, output: the backbone, as for `load_backbone`.
      engine, precision, batch_size: as the config has them.
      sample: gives at most so many of the run's first images, [n, height, width, 3], of a size.
      color_profile: as the config has it.

    Raises:
      UsageError: the precision is none of the engine's.
    """
    on_gpu = gpu_driver() and engine != "openvino" and has_gpu()
    smaller = "float16" if on_gpu else "bfloat16"
    is_open = engine == "auto"
    engine = ("tensorflow" if on_gpu else "openvino") if is_open else engine
    if precision not in ("auto", "float32", smaller):
        raise UsageError(
            f"engine.precision is {precision!r}; {engine} on this machine runs float32 or {smaller}"
        )
    batch_size = batch_size or (_GPU_BATCH_SIZE if on_gpu else _CPU_BATCH_SIZE)
    choice = EngineChoice(
        name, weights, pooling, image_size, engine, precision, batch_size,
        color_profile=color_profile, output=output,
    )  # fmt: skip
    candidate = smaller if precision == "auto" and (on_gpu or has_bfloat16()) else None
    try:
        settled = _settle_precision(choice, candidate, sample)
        if is_open and engine == "openvino":
            load_engine(settled, available_cores())  # it stays loaded for whoever asks next
    except UnsupportedModelError as error:
        if not is_open:
            raise
        logger.info("using TensorFlow: %s", error)
        return _settle_precision(replace(choice, engine="tensorflow"), candidate, sample)
    return settled


def _settle_precision(
    choice: EngineChoice, smaller: str | None, sample: Callable[[tuple[int, int], int], Pixels]
) -> EngineChoice:
    """`choice` with a precision for `auto`: `smaller`, where there is one and it agrees with float32."""
    if choice.precision != "auto":
        return choice
    exact = replace(choice, precision="float32")
    if smaller is None:
        return exact
    candidate = replace(choice, precision=smaller)
    cosine = _least_cosine(exact, candidate, sample)
    if cosine is None or cosine >= MIN_COSINE:
        return replace(candidate, cosine=cosine)
    logger.debug(
        "computing in float32: %s would be faster, but its features differ too much (cosine %.4f, and "
        "at least %s is wanted)", smaller, cosine, MIN_COSINE,
    )  # fmt: skip
    return replace(exact, cosine=cosine)


def _least_cosine(
    reference: EngineChoice,
    candidate: EngineChoice,
    sample: Callable[[tuple[int, int], int], Pixels],
) -> float | None:
    """The least cosine of a sample's features by both; None where nothing can be compared."""
    # One image a batch, so that the slower of the two does not fill a batch up for eight images.
    exact = _create(replace(reference, batch_size=1), available_cores())
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(load_engine, candidate, available_cores())
        pixels = sample(exact.image_size, _COMPARED_IMAGES)
        quick = loading.result()
    if not len(pixels):
        return None
    with ThreadPoolExecutor(exact.streams) as threads:
        expected = np.concatenate(list(threads.map(exact.embed, pixels[:, np.newaxis])))
    unit, has_direction = normalize(expected)
    if not has_direction.any():
        return None
    found, _ = normalize(embed_all(quick, pixels))
    cosines = (unit.astype(np.float64) * found.astype(np.float64)).sum(axis=1)
    return float(cosines[has_direction].min())


_loading = threading.Lock()

# The process that has loaded an engine.
_loaded_by: int | None = None


def refuse_after_fork() -> None:
    """Raises MachineError in a fork of a process that had loaded an engine: the fork lacks its threads."""
    if _loaded_by not in (None, os.getpid()):
        raise MachineError(
            "this process was forked from one that had loaded a model, which cannot run in a fork; start it "
            "with multiprocessing's spawn or forkserver, or fork before the first search or build"
        )


# Choices of which a batch did not fit into this process's memory.
_too_large: set[EngineChoice] = set()


def load_engine(choice: EngineChoice, threads: int) -> Engine:
    """The chosen engine on `threads` cores; loaded once in a process.

    Where a batch does not fit into memory, it is the engine for batches of half the size, or of a quarter,
    and so on.

    Raises:
      WorkerError: not even one image fits; besides, whatever `load_backbone` raises.
      MachineError: as `refuse_after_fork`.
    """
    global _loaded_by
    refuse_after_fork()
    with _loading:  # a cache alone would let two threads load the same backbone at once
        _loaded_by = os.getpid()
        while True:
            while choice in _too_large:
                choice = replace(choice, batch_size=choice.batch_size // 2)
            try:
                return _load_once(choice, threads)
            except MemoryError as error:
                _reject(choice, error)


def load_smaller_engine(choice: EngineChoice, threads: int, batch_size: int) -> Engine:
    """`load_engine` after a batch of `batch_size`, a size that it chose, has not fitted into memory."""
    with _loading:
        _reject(replace(choice, batch_size=batch_size), None)
    return load_engine(choice, threads)


def _reject(choice: EngineChoice, error: MemoryError | None) -> None:
    if choice in _too_large:  # another thread found out before
        return
    if choice.batch_size == 1:
        raise WorkerError(f"{choice.engine} has too little memory for one image of {choice.name}") from error
    logger.warning(
        "%d images do not fit into memory at once: going on with batches of %d",
        choice.batch_size, choice.batch_size // 2,
    )  # fmt: skip
    _too_large.add(choice)
    _load_once.cache_clear()


@functools.lru_cache(maxsize=1)
def _load_once(choice: EngineChoice, threads: int) -> Engine:
    return _create(choice, threads)


def _create(choice: EngineChoice, threads: int) -> Engine:
    backbone = choice.name, choice.weights, choice.pooling, choice.image_size, choice.output
    engine: Engine
    if choice.engine == "openvino":
        converted = converted_model(*backbone)
        engine = OpenVinoEngine(converted, choice.precision, choice.batch_size, threads)
    else:
        engine = TensorFlowEngine(load_backbone(*backbone), choice.precision, choice.batch_size, threads)
    engine.spec = replace(engine.spec, decoding=decoding(choice.color_profile))
    return engine


def gpu_driver() -> bool:
    """Whether it is worth loading TensorFlow to ask it for a GPU."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/kfd").exists()
