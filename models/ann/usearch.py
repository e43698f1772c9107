"""USearch, another index of the family HNSW (hierarchical navigable small worlds)."""

from pathlib import Path

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


class USearch(AnnBackend):
    """USearch as an `AnnBackend`.

    It is built with `connectivity`, the neighbors of a node, and `expansion_add`, the candidates that are
    kept on the way, and searched with `expansion_search`.
    """

    name = "USearch"

    def build(self, vectors: Float32, path: Path, *, metric: Metric, settings: BuildSettings) -> None:
        """As `AnnBackend.build`."""
        from usearch.index import Index

        rows = points(vectors, metric)
        index = Index(
            ndim=rows.shape[1],
            metric="l2sq",
            dtype="f32",
            connectivity=int(settings["connectivity"]),
            expansion_add=int(settings["expansion_add"]),
        )
        index.add(np.arange(len(rows)), rows, threads=1)
        try:
            index.save(str(path))
        except RuntimeError as error:
            raise OutputError(f"USearch could not write {path}: {error}") from error

    def open(self, path: Path, *, metric: Metric, dims: int, items: int) -> "USearchIndex":
        """As `AnnBackend.open`."""
        return USearchIndex(path, metric=metric, dims=dims, items=items)


class USearchIndex(AnnIndex):
    """An opened USearch file."""

    def __init__(self, path: Path, *, metric: Metric, dims: int, items: int) -> None:
        """Reads `path`. Raises OutputError where it does not hold `items` vectors of `dims` values."""
        from usearch.index import Index

        try:
            index = Index.restore(str(path))
        except (RuntimeError, ValueError) as error:
            raise OutputError(f"{path} is no USearch file: {error}") from error
        if index is None:
            raise OutputError(f"{path} is no USearch file")
        check_size(path, (len(index), index.ndim), (items, dims))
        self._index = index
        self._metric = metric

    def search(self, query: Float32, k: int, settings: SearchSettings) -> tuple[Items, Float32]:
        """As `AnnIndex.search`, with `expansion_search`, the number of candidates kept on the way."""
        self._index.expansion_search = settings["expansion_search"]
        found = self._index.search(points(query[np.newaxis], self._metric)[0], k, threads=1)
        return found.keys.astype(np.int64), distances(found.distances)
