"""By how much P@k by label changes from one generation to the next, with the same query images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgindex.evaluation.feature_search import search_vectors
from imgindex.evaluation.judging import precisions
from imgindex.evaluation.quality import relevant_counts
from imgindex.evaluation.sample import Sample
from imgindex.evaluation.sampling import some_of
from imgindex.models.retrieval_metrics import bootstrap_interval

Items = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

# Images that are queries, at most.
_QUERIES = 2000
# Labels that are named, at most.
_WORST = 3


@dataclass(frozen=True)
class LabelChange:
    """P@k of the queries of a label, in both generations."""

    label: str
    queries: int
    before: float
    after: float


@dataclass(frozen=True)
class PrecisionChange:
    """P@k of the same queries in two generations, each asked of its own images."""

    k: int
    queries: int
    before: float
    after: float
    interval: tuple[float, float]  # of `after` - `before`, 95 %, by the bootstrap over queries
    worst: tuple[LabelChange, ...]  # the labels to which most of the fall is due, if there is one

    @property
    def fall(self) -> float:
        """By how much P@k is less than before."""
        return self.before - self.after


def compare_precision(before: Sample, after: Sample, k: int) -> PrecisionChange | None:
    """Compares two samples that were drawn alike, by exact search in the vectors of each.

    The queries are images of both, the same uri with the same bytes, whose label has another image in both.
    At most 2,000 are asked. Gives None where there is none.
    """
    places = pc.index_in(_keys(after), value_set=_keys(before))
    both = pc.indices_nonzero(pc.is_valid(places)).to_numpy().astype(np.int64)
    pairs = np.stack([places.drop_null().to_numpy().astype(np.int64), both])
    judged = (relevant_counts(before, pairs[0]) > 0) & (relevant_counts(after, pairs[1]) > 0)
    pairs = pairs[:, some_of(np.flatnonzero(judged), _QUERIES, 0)]
    found = [_precisions(sample, queries, k) for sample, queries in zip((before, after), pairs, strict=True)]
    if found[0] is None or found[1] is None:
        return None
    return PrecisionChange(
        k=k,
        queries=pairs.shape[1],
        before=float(found[0].mean()),
        after=float(found[1].mean()),
        interval=bootstrap_interval(found[1] - found[0], 0),
        worst=_worst(after, pairs[1], found[0], found[1]),
    )


def _keys(sample: Sample) -> pa.Array:
    """The uri of each image with the digest of its bytes."""
    digests = sample.sha256.take(pa.array(sample.contents))
    return pc.binary_join_element_wise(
        sample.uris.combine_chunks(), digests, pa.scalar("/", pa.large_string())
    )


def _precisions(sample: Sample, queries: Items, k: int) -> Values | None:
    if not len(queries):
        return None
    return precisions(sample, queries, search_vectors(sample, sample.vectors, queries, k), k)


def _worst(sample: Sample, queries: Items, before: Values, after: Values) -> tuple[LabelChange, ...]:
    labels, places, counts = np.unique(sample.labels[queries], return_inverse=True, return_counts=True)
    sums = [np.bincount(places, values) for values in (before, after)]
    falls = sums[0] - sums[1]
    order = [n for n in np.argsort(-falls, kind="stable")[:_WORST] if falls[n] > 0]
    return tuple(
        LabelChange(
            label=sample.label_names[labels[n]],
            queries=int(counts[n]),
            before=float(sums[0][n] / counts[n]),
            after=float(sums[1][n] / counts[n]),
        )
        for n in order
    )
