"""The sweep: P@k, time and memory with other numbers of dimensions, and whitened to other degrees."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import Collection
from imgindex.evaluation.feature_search import FeatureSearch, search_vectors
from imgindex.evaluation.judging import precisions, recalls, time_exact
from imgindex.evaluation.results import SweepPoint
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.pca import whitening

Items = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

# Exponents of whitening that are tried at the index's own number of dimensions.
WHITENINGS = (0.25, 0.5, 1.0)


def sweep(
    collection: Collection, queries: Items, features: FeatureSearch, k: int, dims: Sequence[int]
) -> Iterator[tuple[SweepPoint, Values | None]]:
    """The points of the sweep, each with the P@k of every judged query (None without labels).

    First come `dims`, in ascending order and without those that the PCA has not, with the index's own among
    them; then exponents of whitening, the index's own among them. The PCA is fitted once, at the most
    dimensions, and cut to each. As in a build, nothing is whitened that is mostly noise.
    """
    own = min(collection.manifest.dims, features.basis.dims)
    for count in sorted({own, *(each for each in dims if each <= features.basis.dims)}):
        yield _point(collection, queries, features, k, count, 0.0)
    for whiten in sorted({*WHITENINGS, collection.basis.whiten} - {0.0}):
        yield _point(collection, queries, features, k, min(own, features.whitened), whiten)


def _point(
    collection: Collection, queries: Items, features: FeatureSearch, k: int, dims: int, whiten: float
) -> tuple[SweepPoint, Values | None]:
    vectors = np.ascontiguousarray(features.vectors[:, :dims])
    if whiten:
        vectors /= whitening(features.basis.explained_variance[:dims], whiten).astype(np.float32)
    ranks = max(k, RECALL_K)
    found = search_vectors(collection, vectors, queries, ranks)
    judged = precisions(collection, queries, found, k)
    exact = features.answers[:, :RECALL_K]
    point = SweepPoint(
        dims=dims,
        whiten=whiten,
        p_at_k=None if judged is None else float(judged.mean()),
        recall_at_10=float(recalls(collection, found[:, :RECALL_K], exact).mean()),
        explained_variance=float(features.basis.explained_variance_ratio[:dims].sum()),
        ms_per_query=time_exact(vectors, vectors[queries], collection.manifest.metric, ranks).p50,
        bytes=vectors.nbytes,
    )
    return point, judged
