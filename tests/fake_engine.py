"""An engine that takes no time and needs no backbone, and ways to register one like it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgindex.models.engines.protocol import Engine, EngineChoice, EngineFactory
from imgindex.models.engines.registry import register, unregister
from imgindex.models.spec import Spec


class QuartersEngine:
    """Mean colors of the image's four quarters: like a backbone's features, and easy to foretell."""

    name = "quarters"
    precision = "float32"
    streams = 2
    image_size = (8, 6)
    feature_dim = 12
    spec = Spec("quarters", "", image_size, "avg", "", "", "")

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.batches = 0

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.uint8
        assert pixels.shape == (self.batch_size, *self.image_size, 3)
        self.batches += 1
        quarters = pixels.reshape(-1, 2, 4, 2, 3, 3).astype(np.float32).mean(axis=(2, 4))
        return quarters.reshape(-1, self.feature_dim)


@dataclass
class FakeFactory(EngineFactory):
    """Engines that a function makes, on a machine that has what a test says."""

    make: Callable[[EngineChoice, int], Any]
    gpu: bool = False
    smaller: str | None = None
    faster: bool = False

    def load(self, choice: EngineChoice, threads: int) -> Engine:
        return self.make(choice, threads)

    def uses_gpu(self) -> bool:
        return self.gpu

    def batch_size(self) -> int:
        return 4

    def smaller_precision(self) -> str | None:
        return self.smaller

    def is_smaller_faster(self) -> bool:
        return self.faster


def factory_of(engine: type[QuartersEngine] = QuartersEngine) -> FakeFactory:
    return FakeFactory(lambda choice, threads: engine(choice.batch_size))


def register_quarters(engine: type[QuartersEngine] = QuartersEngine) -> None:
    """Has this process know `engine` as ``quarters`` from now on."""
    register("quarters", factory_of(engine))


@contextmanager
def registered(name: str, factory: EngineFactory) -> Iterator[None]:
    """Has this process know an engine for a while."""
    register(name, factory)
    try:
        yield
    finally:
        unregister(name)
