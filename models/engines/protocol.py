"""What an engine is: the interface that every other module uses, and what a new engine implements."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from imgindex.models.backbones import PIXELS
from imgindex.models.spec import Spec

# What the config may ask for; `auto` is never recorded.
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


class Engine(Protocol):
    """Runs a backbone on batches of exactly `batch_size`, from any thread."""

    name: str
    precision: str
    batch_size: int
    streams: int  # how many batches it runs at once
    image_size: tuple[int, int]
    feature_dim: int
    spec: Spec  # whoever loads the engine sets its `decoding`

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
    resize: str = "stretch"
    mirror: bool = False


class EngineFactory(ABC):
    """Loads one kind of engine, and says what that kind can do on this machine.

    One object of a subclass is registered under the engine's name. The defaults are those of an engine that
    runs Keras models on the CPU in float32.
    """

    @abstractmethod
    def load(self, choice: EngineChoice, threads: int) -> Engine:
        """A new engine of `choice`, which names no `auto`, on `threads` cores.

        Raises:
          MemoryError: a batch of `choice.batch_size` images does not fit into memory.
          UnsupportedModelError: it cannot run this backbone, and another engine may be able to.
        """

    def runs(self, backbone: str) -> bool:
        """Whether it may run the backbone of this name; `load` says for certain. `auto` tries no others."""
        return backbone != PIXELS

    def uses_gpu(self) -> bool:
        """Whether it runs on a GPU of this machine. `auto` tries engines that do before the others."""
        return False

    def batch_size(self) -> int:
        """How many images a batch has where the config does not say it."""
        return 16

    def smaller_precision(self) -> str | None:
        """The precision that the config may ask for on this machine beside float32; None: there is none."""
        return None

    def is_smaller_faster(self) -> bool:
        """Whether this machine computes faster in that precision: only then `auto` tries it."""
        return False

    def cache(self) -> Path | None:
        """The folder where it keeps what it makes of models for later processes; None: it keeps nothing."""
        return None
