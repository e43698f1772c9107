"""Voyager, an index of the family HNSW (hierarchical navigable small worlds)."""

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


class Voyager(AnnBackend):
    """Voyager as an `AnnBackend`.

    It is built with `M`, half the most neighbors of a node, and `ef_construction`, the candidates that are
    kept on the way, and searched with `query_ef`.
    """

    name = "Voyager"

    def build(self, vectors: Float32, path: Path, *, metric: Metric, settings: BuildSettings) -> None:
        """As `AnnBackend.build`."""
        import voyager

        rows = points(vectors, metric)
        index = voyager.Index(
            voyager.Space.Euclidean,
            rows.shape[1],
            M=int(settings["M"]),
            ef_construction=int(settings["ef_construction"]),
            max_elements=len(rows),
        )
        index.add_items(rows, num_threads=1)
        try:
            index.save(str(path))
        except RuntimeError as error:
            raise OutputError(f"Voyager could not write {path}: {error}") from error

    def open(self, path: Path, *, metric: Metric, dims: int, items: int) -> "VoyagerIndex":
        """As `AnnBackend.open`."""
        return VoyagerIndex(path, metric=metric, dims=dims, items=items)


class VoyagerIndex(AnnIndex):
    """An opened Voyager file."""

    def __init__(self, path: Path, *, metric: Metric, dims: int, items: int) -> None:
        """Reads `path`. Raises OutputError where it does not hold `items` vectors of `dims` values."""
        import voyager

        try:
            self._index = voyager.Index.load(str(path))
        except (RuntimeError, ValueError) as error:
            raise OutputError(f"{path} is no Voyager file: {error}") from error
        check_size(path, (len(self._index), self._index.num_dimensions), (items, dims))
        self._metric = metric

    def search(self, query: Float32, k: int, settings: SearchSettings) -> tuple[Items, Float32]:
        """As `AnnIndex.search`, with `query_ef`, the number of candidates that are kept on the way."""
        k = min(k, len(self._index))
        # Voyager refuses a smaller one than k.
        items, squares = self._index.query(
            points(query[np.newaxis], self._metric)[0], k, query_ef=max(settings["query_ef"], k)
        )
        return items.astype(np.int64), distances(squares)
