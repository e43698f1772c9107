"""FAISS: brute force, clustering (IVF), product quantization, HNSW and LSH, by its index factory."""

from pathlib import Path
from typing import Any

import numpy as np

from imgindex.errors import OutputError
from imgindex.models.ann.euclidean import check_size, distances, points
from imgindex.models.ann.protocol import (
    AnnBackend,
    AnnIndex,
    BuildSettings,
    Float32,
    Items,
    Metric,
    SearchSettings,
)


class Faiss(AnnBackend):
    """FAISS as an `AnnBackend`.

    It is built with the words of FAISS's index factory, as ``{"factory": "IVF64,Flat"}``, and searched with
    the names of its parameter space: `nprobe`, `efSearch`, `k_factor_rf`. Distances of product quantization
    are those of the compressed vectors. LSH needs ``RFlat`` behind it: its own distances count bits.
    """

    name = "FAISS"

    def build(self, vectors: Float32, path: Path, *, metric: Metric, settings: BuildSettings) -> None:
        """As `AnnBackend.build`."""
        import faiss

        rows = points(vectors, metric)
        index = faiss.index_factory(rows.shape[1], str(settings["factory"]), faiss.METRIC_L2)
        index.train(rows)
        index.add(rows)
        try:
            faiss.write_index(index, str(path))
        except RuntimeError as error:
            raise OutputError(f"FAISS could not write {path}: {error}") from error

    def open(self, path: Path, *, metric: Metric, dims: int, items: int) -> "FaissIndex":
        """As `AnnBackend.open`."""
        return FaissIndex(path, metric=metric, dims=dims, items=items)


class FaissIndex(AnnIndex):
    """An opened FAISS file."""

    def __init__(self, path: Path, *, metric: Metric, dims: int, items: int) -> None:
        """Reads `path`. Raises OutputError where it does not hold `items` vectors of `dims` values."""
        import faiss

        try:
            self._index: Any = faiss.read_index(str(path))
        except RuntimeError as error:
            raise OutputError(f"{path} is no FAISS file: {error}") from error
        check_size(path, (self._index.ntotal, self._index.d), (items, dims))
        self._space = faiss.ParameterSpace()
        self._metric = metric
        self._settings: SearchSettings = {}

    def search(self, query: Float32, k: int, settings: SearchSettings) -> tuple[Items, Float32]:
        """As `AnnIndex.search`."""
        if settings != self._settings:
            for name, value in settings.items():
                self._space.set_index_parameter(self._index, name, value)
            self._settings = dict(settings)
        squares, items = self._index.search(points(query[np.newaxis], self._metric), k)
        there = items[0] >= 0  # FAISS fills up with -1
        return items[0][there], distances(squares[0][there])
