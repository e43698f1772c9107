"""How good given answers are: by label, and against the exact ones; and how long single queries take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from imgindex.evaluation.collection import NO_LABEL, Collection, Images
from imgindex.evaluation.quality import relevant_counts
from imgindex.models.ann.protocol import Metric
from imgindex.models.retrieval_metrics import precision_at

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

# Single queries that are timed: at most so many, for at most so many seconds, after some that are not.
_TIMED_QUERIES = 300
_TIMED_SECONDS = 3.0
_WARM_UP = 5


@dataclass(frozen=True)
class Timing:
    """How long single queries take on one thread."""

    p50: float  # milliseconds
    p95: float
    p99: float
    per_second: float


def precisions(collection: Images, queries: Items, answers: Items, k: int) -> Values | None:
    """P@k of each of `queries` whose label has another image; None where there is none.

    `answers` [queries, ranks] are images, the nearest first; -1 where there are no more.
    """
    judged = relevant_counts(collection, queries) > 0
    if not judged.any():
        return None
    answers = answers[judged]
    labels = np.where(answers >= 0, collection.labels[answers], NO_LABEL)
    return precision_at(labels == collection.labels[queries[judged], np.newaxis], k)


def recalls(collection: Collection, answers: Items, exact: Items) -> Values:
    """The share of the exact answers [queries, ranks] that `answers` have; a copy is as good as an image."""
    contents = np.append(collection.contents, -1)  # so that -1, which stands for no answer, has none
    found, wanted = contents[answers], contents[exact]
    hits = (wanted[:, :, np.newaxis] == found[:, np.newaxis, :]).any(axis=2) & (wanted >= 0)
    shares: Values = hits.sum(axis=1) / np.maximum((wanted >= 0).sum(axis=1), 1)
    return shares


def time_queries(search: Callable[[Float32], object], queries: Float32) -> Timing:
    """Times `search` on one after the other of `queries` [q, dims], on one thread."""
    seconds: list[float] = []
    with threadpool_limits(limits=1):
        for query in queries[:_WARM_UP]:
            search(query)
        end = time.perf_counter() + _TIMED_SECONDS
        for query in queries[:_TIMED_QUERIES]:
            started = time.perf_counter()
            search(query)
            seconds.append(time.perf_counter() - started)
            if time.perf_counter() > end:
                break
    p50, p95, p99 = (float(value) * 1000 for value in np.percentile(seconds, (50, 95, 99)))
    return Timing(p50, p95, p99, 1 / float(np.mean(seconds)))


def time_exact(parts: Sequence[Float32], queries: Float32, metric: Metric, ranks: int) -> Timing:
    """Times single queries by brute force: a product with all rows, then the best `ranks`.

    `parts` [n, dims] are the rows, one array below the other. They are not copied.
    """
    found = np.empty(sum(len(part) for part in parts), np.float32)
    pieces = np.split(found, np.cumsum([len(part) for part in parts])[:-1])
    squares = np.concatenate([np.einsum("ij,ij->i", part, part) for part in parts])
    # The score of a row is its product with the query, times a number, less another.
    factor = 1 / np.sqrt(np.where(squares > 0, squares, 1)) if metric == "angular" else np.float32(2)

    def search(query: Float32) -> Items:
        for part, piece in zip(parts, pieces, strict=True):
            np.matmul(part, query, out=piece)
        np.multiply(found, factor, out=found)
        if metric == "euclidean":
            np.subtract(found, squares, out=found)
        best = np.argpartition(-found, min(ranks, len(found) - 1))[:ranks]
        return best[np.argsort(-found[best])]

    return time_queries(search, queries)
