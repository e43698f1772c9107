"""scikit-learn's k-d tree and ball tree. They search exactly."""

from pathlib import Path
from typing import Any

import numpy as np

from imgindex.errors import OutputError
from imgindex.models.ann.euclidean import check_size, points
from imgindex.models.ann.protocol import (
    AnnBackend,
    AnnIndex,
    BuildSettings,
    Float32,
    Items,
    Metric,
    SearchSettings,
)


class Tree(AnnBackend):
    """A tree of scikit-learn as an `AnnBackend`. It is built with `leaf_size`.

    scikit-learn writes trees with pickle alone, and nothing that is read back here may execute code. So the
    file holds the tree's arrays, and whoever opens it builds the same tree from the points among them.
    """

    name = "scikit-learn"
    _class: str  # of `sklearn.neighbors`

    def build(self, vectors: Float32, path: Path, *, metric: Metric, settings: BuildSettings) -> None:
        """As `AnnBackend.build`."""
        leaf_size = int(settings["leaf_size"])
        tree = self._make(points(vectors, metric), leaf_size=leaf_size)
        data, items, nodes, bounds = (np.asarray(each) for each in tree.get_arrays())
        try:
            with path.open("wb") as file:
                np.savez(file, data=data, items=items, nodes=nodes, bounds=bounds, leaf_size=leaf_size)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}") from error

    def open(self, path: Path, *, metric: Metric, dims: int, items: int) -> "TreeIndex":
        """As `AnnBackend.open`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                data, leaf_size = file["data"], int(file["leaf_size"])
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(f"{path} is no file of a tree: {error}") from error
        check_size(path, (len(data), data.shape[-1]), (items, dims))
        return TreeIndex(self._make(data, leaf_size=leaf_size), metric, items)

    def _make(self, rows: Float32, leaf_size: int) -> Any:
        from sklearn import neighbors

        return getattr(neighbors, self._class)(rows, leaf_size=leaf_size)


class KDTree(Tree):
    """The k-d tree, which splits along one dimension at a time."""

    _class = "KDTree"


class BallTree(Tree):
    """The ball tree, whose nodes are balls."""

    _class = "BallTree"


class TreeIndex(AnnIndex):
    """An opened tree."""

    def __init__(self, tree: Any, metric: Metric, items: int) -> None:
        self._tree = tree
        self._metric = metric
        self._items = items

    def search(self, query: Float32, k: int, settings: SearchSettings) -> tuple[Items, Float32]:
        """As `AnnIndex.search`; there are no settings."""
        distances, items = self._tree.query(points(query[np.newaxis], self._metric), min(k, self._items))
        return items[0], distances[0].astype(np.float32)
