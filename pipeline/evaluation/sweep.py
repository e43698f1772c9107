"""The sweep: P@k, time and memory with other numbers of dimensions, and whitened to other degrees."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import Collection
from imgindex.evaluation.feature_search import FeatureSearch, search_vectors
from imgindex.evaluation.judging import precisions, recalls, time_exact
from imgindex.evaluation.results import SweepPoint
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.pca import whitening

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
# A point with the P@k of every judged query, which is None without labels.
Judged = tuple[SweepPoint, Values | None]

# Rows that are moved at once.
_BLOCK_ROWS = 1 << 14

# Exponents of whitening that are tried at the index's own number of dimensions.
WHITENINGS = (0.25, 0.5, 1.0)


def sweep(
    collection: Collection, queries: Items, features: FeatureSearch, k: int, dims: Sequence[int]
) -> Iterator[Judged]:
    """The points of the sweep, each with the P@k of every judged query (None without labels).

    First come `dims`, in ascending order and without those that the PCA has not, with the index's own among
    them; then exponents of whitening, the index's own among them. The PCA is fitted once, at the most
    dimensions, and cut to each. As in a build, nothing is whitened that is mostly noise. No time is measured;
    see `time_points`.
    """
    own = min(collection.manifest.dims, features.basis.dims)
    for count in sorted({own, *(each for each in dims if each <= features.basis.dims)}):
        yield _point(collection, queries, features, k, count, 0.0)
    for whiten in sorted({*WHITENINGS, collection.basis.whiten} - {0.0}):
        yield _point(collection, queries, features, k, min(own, features.whitened), whiten)


def time_points(
    collection: Collection, queries: Items, features: FeatureSearch, k: int, points: Sequence[Judged]
) -> list[Judged]:
    """The points with the times of single queries. The vectors of `features` are overwritten.

    Whitened vectors take as long as others of their dimensions.
    """
    vectors, milliseconds = features.vectors, {}
    for count in sorted({point.dims for point, _ in points}, reverse=True):
        vectors = _cut_in_place(vectors, count)
        timing = time_exact([vectors], vectors[queries], collection.manifest.metric, max(k, RECALL_K))
        milliseconds[count] = timing.p50
    return [(replace(point, ms_per_query=milliseconds[point.dims]), judged) for point, judged in points]


def _point(
    collection: Collection, queries: Items, features: FeatureSearch, k: int, dims: int, whiten: float
) -> Judged:
    """A point whose time is not measured yet."""
    deviations = whitening(features.basis.explained_variance[:dims], whiten).astype(np.float32)

    def changed(rows: Float32) -> Float32:
        cut = np.ascontiguousarray(rows[:, :dims])
        return cut / deviations if whiten else cut

    found = search_vectors(collection, features.vectors, queries, max(k, RECALL_K), changed=changed)
    judged = precisions(collection, queries, found, k)
    exact = features.answers[:, :RECALL_K]
    point = SweepPoint(
        dims=dims,
        whiten=whiten,
        p_at_k=None if judged is None else float(judged.mean()),
        recall_at_10=float(recalls(collection, found[:, :RECALL_K], exact).mean()),
        explained_variance=float(features.basis.explained_variance_ratio[:dims].sum()),
        ms_per_query=0.0,
        bytes=len(features.vectors) * dims * np.float32().itemsize,
    )
    return point, judged


def _cut_in_place(vectors: Float32, dims: int) -> Float32:
    """The first `dims` columns of contiguous `vectors` [n, d], one row after the other in their memory."""
    flat = vectors.reshape(-1)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        rows = vectors[start : start + _BLOCK_ROWS, :dims].copy()  # a row never moves behind where it was
        flat[start * dims : start * dims + rows.size] = rows.reshape(-1)
    return flat[: len(vectors) * dims].reshape(len(vectors), dims)
