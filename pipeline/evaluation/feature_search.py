"""Exact search in the features, and a PCA of them: two passes over the store, whatever its size."""

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from imgindex.errors import MachineError
from imgindex.evaluation.collection import Collection, Images
from imgindex.evaluation.stacked_rows import StackedRows
from imgindex.models.blocked_search import Nearest, Scorer
from imgindex.models.moments import Moments
from imgindex.models.pca import Basis, above_noise, fit_basis
from imgindex.runtime.background import in_order, threads_in_order
from imgindex.runtime.resources import available_cores
from imgindex.text import human_bytes

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

# Features that the PCA is fitted to, at most.
_FITTED_ROWS = 100_000
# Scores that are computed at once: 64 MiB.
_SCORES = 1 << 24
# Features that are compared at once: of 2,048 dimensions, 64 MiB as float64.
_FEATURE_ROWS = 1 << 12
# Vectors that are copied at once: of 200 dimensions 52 MiB.
_BLOCK_ROWS = 1 << 16
# The vectors of a PCA that are held in memory, in bytes.
_IN_MEMORY = 1 << 30
# Features of this many bytes, as float32, are kept for the measurement of single queries.
_KEPT_BYTES = 1 << 29


@dataclass(frozen=True)
class FeatureSearch:
    """What the passes over the features gave."""

    answers: Items  # [queries, ranks]: the images nearest by cosine, the query's content left out
    queries: Float32  # features [queries, feature_dim]
    basis: Basis  # of `wide` dimensions, or of as many as there are
    vectors: Float32  # [n, basis.dims], in a mapped file where they are large
    whitened: int  # of the dimensions, how many a build would whiten; the others are noise of float16
    rows: Float32 | None  # features [n, feature_dim]; None where they are too large to keep


def search_features(collection: Collection, queries: Items, ranks: int, wide: int) -> FeatureSearch:
    """The `ranks` images nearest to each of `queries` by their features, and a PCA of `wide` dimensions.

    It is fitted to at most 100,000 images, evenly spread. Raises OutputError where the store lacks features,
    and MachineError where the disk has no room for a mapped file of many vectors.
    """
    count, dims = len(collection), collection.manifest.feature_dim
    asked = np.empty((len(queries), dims), np.float32)
    place_of = np.full(count, -1, np.int64)
    place_of[queries] = np.arange(len(queries))
    moments = Moments.empty(dims)
    every = -(-count // _FITTED_ROWS)
    keep = count * dims * np.float32().itemsize <= _KEPT_BYTES
    rows = np.empty((count, dims), np.float32) if keep else None
    for images, features in collection.feature_blocks():
        places = place_of[images]
        asked[places[places >= 0]] = features[places >= 0]
        moments.add(features[images % every == 0])
        if rows is not None:
            rows[images] = features
    basis = fit_basis(moments, wide)
    vectors = _room_for((count, basis.dims))
    nearest = Nearest(collection.contents[queries], ranks)
    scorer = Scorer(asked, "angular")
    step = _rows_at_once(len(queries), _FEATURE_ROWS)

    def compared(part: tuple[Items, Float16]) -> tuple[Items, Float32, Float32]:
        images, features = part
        return images, basis.project(features), scorer.scores(features.astype(np.float32))

    parts = (
        (images[start : start + step], features[start : start + step])
        for images, features in collection.feature_blocks()
        for start in range(0, len(images), step)
    )
    with _blas_beside_threads():
        for images, projected, found in in_order(compared, parts):
            vectors[images] = projected
            nearest.offer(found, images, collection.contents[images])
    whitened = max(1, above_noise(moments, basis.explained_variance, basis.components))
    return FeatureSearch(nearest.best()[0], asked, basis, vectors, whitened, rows)


def search_vectors(
    collection: Images,
    vectors: Float32 | StackedRows,
    queries: Items,
    ranks: int,
    among: Items | None = None,
    changed: Callable[[Float32], Float32] = np.asarray,
) -> Items:
    """The images [queries, ranks] whose `vectors` [n, dims] are nearest to those of `queries`.

    It is an exact search, with the index's metric. Copies of a query are left out. `among` are the images
    that are searched; None: all. `changed` gives the rows that are compared, of at most 65,536 of `vectors`.
    """
    nearest = Nearest(collection.contents[queries], ranks)
    scorer = Scorer(changed(vectors[queries]), collection.manifest.metric)
    count = len(vectors) if among is None else len(among)
    step = _rows_at_once(len(queries), _BLOCK_ROWS)

    def compared(start: int) -> tuple[Items, Float32]:
        block = slice(start, min(start + step, count))
        part = np.arange(block.start, block.stop) if among is None else among[block]
        return part, scorer.scores(changed(vectors[block if among is None else part]))

    with _blas_beside_threads():
        for part, found in in_order(compared, range(0, count, step)):
            nearest.offer(found, part, collection.contents[part])
    return nearest.best()[0]


def _room_for(shape: tuple[int, int]) -> Float32:
    """An array in memory; a larger one in a file that is mapped, whose pages the system can take back.

    Raises MachineError where the disk has no room for it.
    """
    size = math.prod(shape) * np.float32().itemsize
    if size <= _IN_MEMORY:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        try:  # beforehand, for a mapped file that the disk has no room for ends the process
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise MachineError(
                f"{tempfile.gettempdir()} has no room for {human_bytes(size)} of vectors: {error.strerror}; "
                "have TMPDIR name a folder on a larger disk"
            ) from error
        return np.memmap(file, np.float32, "r+", shape=shape)


def _rows_at_once(queries: int, most: int) -> int:
    """How many rows are compared at once with so many queries."""
    return min(most, max(1, _SCORES // queries))


def _blas_beside_threads() -> threadpool_limits:
    """Has the threads of `in_order`, and not BLAS, share the cores."""
    return threadpool_limits(max(1, available_cores() // threads_in_order()), user_api="blas")
