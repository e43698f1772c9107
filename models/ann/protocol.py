"""The interface to libraries for approximate nearest neighbors: an `AnnBackend` opens `AnnIndex`es."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Metric = Literal["angular", "euclidean"]
METRICS: tuple[Metric, ...] = ("angular", "euclidean")

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

# In the library's own words, as ``{"trees": 40}``. Those of a search are numbers: the greater, the more it
# finds, and the longer it takes.
BuildSettings = Mapping[str, int | str]
SearchSettings = Mapping[str, int]


class AnnIndex(Protocol):
    """An opened index of vectors."""

    @abstractmethod
    def search(self, query: Float32, k: int, settings: SearchSettings) -> tuple[Items, Float32]:
        """At most `k` items near `query` [dims], and their distances, the nearest first.

        An item is the row of a vector as `AnnBackend.build` got it. The euclidean distance is |x - y|; the
        angular one is sqrt(2 (1 - cos)), the euclidean distance of the directions.
        """


class AnnBackend(Protocol):
    """A library that builds indexes, each in one file, whose size is the index's."""

    name: str  # what people call it

    @abstractmethod
    def build(self, vectors: Float32, path: Path, *, metric: Metric, settings: BuildSettings) -> None:
        """Writes an index of `vectors` [n, dims] to `path`. Raises OutputError where it cannot."""

    @abstractmethod
    def open(self, path: Path, *, metric: Metric, dims: int, items: int) -> AnnIndex:
        """Opens what `build` wrote. Raises OutputError where it is not what the arguments say."""
