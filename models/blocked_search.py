"""Exact search of many queries in many rows, block by block, in float32: quick, and bounded in memory.

Unlike `similarity.exact_nearest` it takes distances for equal that float32 does not tell apart. Of rows at
equal distance the lower one comes first.
"""

import numpy as np
import numpy.typing as npt

from imgindex.models.ann.protocol import Metric

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]


def scores(queries: Float32, rows: Float32, metric: Metric) -> Float32:
    """How near each of `rows` [n, dims] is to each of `queries` [m, dims]: [m, n], the nearer the greater.

    For the angular metric it is the cosine, 0 for a zero vector; for the euclidean one the squared distance
    with a minus sign.
    """
    return Scorer(queries, metric).scores(rows)


class Scorer:
    """Queries that are compared with one block of rows after the other."""

    def __init__(self, queries: Float32, metric: Metric) -> None:
        """Of `queries` [m, dims]."""
        self._is_angular = metric == "angular"
        self._queries = unit_rows(queries) if self._is_angular else queries
        self._squares = np.einsum("ij,ij->i", queries, queries)[:, np.newaxis]

    def scores(self, rows: Float32) -> Float32:
        """As the function of this name: [m, n] for `rows` [n, dims]."""
        found: Float32
        if self._is_angular:
            found = self._queries @ unit_rows(rows).T
            return found
        found = self._queries @ rows.T
        found *= 2
        found -= np.einsum("ij,ij->i", rows, rows)
        found -= self._squares
        return found


def unit_rows(rows: Float32) -> Float32:
    """`rows` [n, dims] at length 1; zero rows stay as they are."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, np.newaxis]
    unit: Float32 = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


class Nearest:
    """The `k` best rows of each query, of all the blocks of rows that were offered.

    A query's own content is left out: `contents` [queries] are numbers, and rows of the same number are no
    answers.
    """

    def __init__(self, contents: Items, k: int) -> None:
        """For as many queries as there are `contents`."""
        self._contents = contents
        self._order = np.argsort(contents, kind="stable")
        self._sorted = contents[self._order]
        self.rows = np.full((len(contents), k), -1, np.int64)
        self.scores = np.full((len(contents), k), -np.inf, np.float32)

    def offer(self, found: Float32, rows: Items, contents: Items) -> None:
        """Takes what is best of `found`, the scores [queries, n] of the `rows` [n], of these `contents` [n].

        `found` is overwritten. Every row is offered once.
        """
        self._leave_out(found, contents)
        if len(rows) > self.rows.shape[1] and np.isneginf(self.scores).all():
            self._begin(found, rows)
            return
        # A row that is only as near counts, too: its number may be lower. Rows that are left out never count.
        better = found >= np.maximum(self.scores[:, -1:], np.finfo(np.float32).min)
        for query in np.flatnonzero(better.any(axis=1)):
            self._take(query, found[query], np.flatnonzero(better[query]), rows)

    def _begin(self, found: Float32, rows: Items) -> None:
        """As `offer`, for all queries together: at first nearly every row would be better."""
        k = self.rows.shape[1]
        best = np.argpartition(found, -k, axis=1)[:, -k:]
        least = np.take_along_axis(found, best[:, :1], axis=1)
        as_good = found >= least
        numbers, values = rows[best], np.take_along_axis(found, best, axis=1)
        order = np.lexsort((numbers, -values), axis=1)
        self.scores[:] = np.take_along_axis(values, order, axis=1)
        self.rows[:] = np.take_along_axis(numbers, order, axis=1)
        self.rows[np.isneginf(self.scores)] = -1
        # The partition takes any of those that are equal to the last one.
        for query in np.flatnonzero((as_good.sum(axis=1) > k) & ~np.isneginf(least[:, 0])):
            self.scores[query], self.rows[query] = -np.inf, -1
            self._take(query, found[query], np.flatnonzero(as_good[query]), rows)

    def _take(self, query: np.integer, found: Float32, places: Items, rows: Items) -> None:
        k = self.rows.shape[1]
        values = np.concatenate([self.scores[query], found[places]])
        numbers = np.concatenate([self.rows[query], rows[places]])
        best = np.lexsort((numbers, -values))[:k]
        self.scores[query], self.rows[query] = values[best], numbers[best]

    def _leave_out(self, found: Float32, contents: Items) -> None:
        starts = np.searchsorted(self._sorted, contents, side="left")
        stops = np.searchsorted(self._sorted, contents, side="right")
        for place in np.flatnonzero(starts < stops):
            found[self._order[starts[place] : stops[place]], place] = -np.inf
