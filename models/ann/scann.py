"""ScaNN: clustering, and product quantization that keeps what matters of inner products.

It cannot be imported into a process that has loaded TensorFlow.
"""

import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from imgindex.errors import OutputError
from imgindex.models.ann.euclidean import distances, points
from imgindex.models.ann.protocol import (
    AnnBackend,
    AnnIndex,
    BuildSettings,
    Float32,
    Items,
    Metric,
    SearchSettings,
)

# Guo et al., Accelerating Large-Scale Inference with Anisotropic Vector Quantization (2020); the values are
# those of ScaNN's documentation.
_DIMENSIONS_PER_BLOCK = 2
_THRESHOLD = 0.2


class Scann(AnnBackend):
    """ScaNN as an `AnnBackend`.

    It is built with `leaves`, the number of clusters, and searched with `leaves_to_search` and
    `reorder`, the number of candidates whose exact distances are computed. ScaNN writes a folder; the
    index's one file is a tar of it.
    """

    name = "ScaNN"

    def build(self, vectors: Float32, path: Path, *, metric: Metric, settings: BuildSettings) -> None:
        """As `AnnBackend.build`."""
        from scann.scann_ops.py import scann_ops_pybind

        rows = points(vectors, metric)
        leaves = int(settings["leaves"])
        builder = scann_ops_pybind.builder(rows, 10, "squared_l2")
        builder.set_n_training_threads(1)
        builder.tree(num_leaves=leaves, num_leaves_to_search=leaves, training_sample_size=len(rows))
        builder.score_ah(_DIMENSIONS_PER_BLOCK, anisotropic_quantization_threshold=_THRESHOLD)
        builder.reorder(100)
        searcher = builder.build()
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            searcher.serialize(folder, relative_path=True)
            with tarfile.open(path, "w") as tar:
                tar.add(folder, arcname=".")

    def open(self, path: Path, *, metric: Metric, dims: int, items: int) -> "ScannIndex":
        """As `AnnBackend.open`."""
        return ScannIndex(path, metric=metric, dims=dims, items=items)


class ScannIndex(AnnIndex):
    """An opened ScaNN index."""

    def __init__(self, path: Path, *, metric: Metric, dims: int, items: int) -> None:
        """Reads `path`. Raises OutputError where it does not hold `items` vectors of `dims` values."""
        from scann.scann_ops.py import scann_ops_pybind

        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            try:
                with tarfile.open(path) as tar:
                    tar.extractall(folder, filter="data")
                self._searcher: Any = scann_ops_pybind.load_searcher(folder)
            except (tarfile.TarError, OSError, RuntimeError, ValueError) as error:
                raise OutputError(f"{path} is no file of ScaNN: {error}") from error
        if self._searcher.size() != items:
            raise OutputError(f"{path} holds {self._searcher.size()} vectors; expected {items}")
        self._metric = metric
        self._items = items

    def search(self, query: Float32, k: int, settings: SearchSettings) -> tuple[Items, Float32]:
        """As `AnnIndex.search`."""
        k = min(k, self._items)
        items, squares = self._searcher.search(
            points(query[np.newaxis], self._metric)[0],
            final_num_neighbors=k,
            pre_reorder_num_neighbors=max(k, settings["reorder"]),
            leaves_to_search=settings["leaves_to_search"],
        )
        return items.astype(np.int64), distances(squares)
