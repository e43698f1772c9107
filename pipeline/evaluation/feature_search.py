"""Exact search in the features, and a PCA of them: two passes over the store, whatever its size."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import Collection, Images
from imgindex.evaluation.stacked_rows import StackedRows
from imgindex.models.blocked_search import Nearest, Scorer
from imgindex.models.moments import Moments
from imgindex.models.pca import Basis, above_noise, fit_basis

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

# Features that the PCA is fitted to, at most.
_FITTED_ROWS = 100_000
# Scores that are held at once: 128 MiB.
_SCORES = 1 << 25
# Vectors that are copied at once: of 200 dimensions 52 MiB.
_BLOCK_ROWS = 1 << 16
# Features of this many bytes, as float32, are kept for the measurement of single queries.
_KEPT_BYTES = 1 << 29


@dataclass(frozen=True)
class FeatureSearch:
    """What the passes over the features gave."""

    answers: Items  # [queries, ranks]: the images nearest by cosine, the query's content left out
    queries: Float32  # features [queries, feature_dim]
    basis: Basis  # of `wide` dimensions, or of as many as there are
    vectors: Float32  # [n, basis.dims]
    whitened: int  # of the dimensions, how many a build would whiten; the others are noise of float16
    rows: Float32 | None  # features [n, feature_dim]; None where they are too large to keep


def search_features(collection: Collection, queries: Items, ranks: int, wide: int) -> FeatureSearch:
    """The `ranks` images nearest to each of `queries` by their features, and a PCA of `wide` dimensions.

    It is fitted to at most 100,000 images, evenly spread. Raises OutputError where the store lacks features.
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
    vectors = np.empty((count, basis.dims), np.float32)
    nearest = Nearest(collection.contents[queries], ranks)
    step = max(1, _SCORES // len(queries))
    scorer = Scorer(asked, "angular")
    for images, features in collection.feature_blocks():
        vectors[images] = basis.project(features)
        for start in range(0, len(images), step):
            part = images[start : start + step]
            found = scorer.scores(features[start : start + step].astype(np.float32))
            nearest.offer(found, part, collection.contents[part])
    whitened = max(1, above_noise(moments, basis.explained_variance, basis.components))
    return FeatureSearch(nearest.rows, asked, basis, vectors, whitened, rows)


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
    step = min(max(1, _SCORES // len(queries)), _BLOCK_ROWS)
    scorer = Scorer(changed(vectors[queries]), collection.manifest.metric)
    count = len(vectors) if among is None else len(among)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        part = np.arange(block.start, block.stop) if among is None else among[block]
        found = scorer.scores(changed(vectors[block if among is None else part]))
        nearest.offer(found, part, collection.contents[part])
    return nearest.rows
