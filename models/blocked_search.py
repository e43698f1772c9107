"""Exact search of many queries in many rows, block by block, in float32: quick, and bounded in memory.

Unlike `similarity.exact_nearest` it takes distances for equal that float32 does not tell apart. Of rows at
equal distance the lower one comes first.
"""

import numpy as np
import numpy.typing as npt

from imgindex.models.ann.protocol import Metric

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

# Rows that are held beside the best, at least.
_MORE = 64


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
    lengths[lengths == 0] = np.inf
    unit: Float32 = rows / lengths
    return unit


class Nearest:
    """The `k` best rows of each query, of all the blocks of rows that were offered.

    A query's own content is left out: `contents` [queries] are numbers, and rows of the same number are no
    answers. More than `k` rows of each query are held, so that the best need not be chosen at every offer.
    """

    def __init__(self, contents: Items, k: int) -> None:
        """For as many queries as there are `contents`."""
        self._order = np.argsort(contents, kind="stable")
        self._sorted = contents[self._order]
        self._k = k
        self._held = np.zeros(len(contents), np.int64)
        self._room = max(2 * k, k + _MORE)
        self._rows = np.empty((len(contents), self._room), np.int64)
        self._scores = np.empty((len(contents), self._room), np.float32)
        # No row of a smaller score can be among the best. Rows that are left out never are.
        self._least = np.full(len(contents), np.finfo(np.float32).min)

    def offer(self, found: Float32, rows: Items, contents: Items) -> None:
        """Takes what may be among the best of `found`, the scores [queries, n] of the `rows` [n].

        `contents` [n] are those of the rows. `found` is overwritten. Every row is offered once.
        """
        self._leave_out(found, contents)
        if len(rows) > self._k and not self._held.any():  # nearly every row would have to be taken
            least = np.partition(found, -self._k, axis=1)[:, -self._k]
            self._least = np.maximum(self._least, least)
        # A row that is only as near counts, too: its number may be lower.
        hits = np.flatnonzero(found >= self._least[:, np.newaxis])
        queries, places = np.divmod(hits, len(rows))
        counts = np.bincount(queries, minlength=len(self._held))
        starts = np.cumsum(counts) - counts
        full = self._held + counts > self._room
        for query in np.flatnonzero(full):
            taken = places[starts[query] : starts[query] + counts[query]]
            self._choose(query, found[query, taken], rows[taken])
        spots = self._held[queries] + np.arange(len(hits)) - starts[queries]
        fits = ~full[queries]
        queries, places, spots = queries[fits], places[fits], spots[fits]
        self._scores[queries, spots], self._rows[queries, spots] = found[queries, places], rows[places]
        self._held += np.where(full, 0, counts)

    def best(self) -> tuple[Items, Float32]:
        """The best rows [queries, k] and their scores, the best first; -1 and minus infinity for no row."""
        unused = np.arange(self._room) >= self._held[:, np.newaxis]
        self._rows[unused], self._scores[unused] = -1, -np.inf
        order = np.lexsort((self._rows, -self._scores), axis=1)[:, : self._k]
        return np.take_along_axis(self._rows, order, axis=1), np.take_along_axis(self._scores, order, axis=1)

    def _choose(self, query: np.integer, values: Float32, numbers: Items) -> None:
        """Has a query hold the best only, of what it holds and of rows of these `numbers`."""
        held = self._held[query]
        values = np.concatenate([self._scores[query, :held], values])
        numbers = np.concatenate([self._rows[query, :held], numbers])
        keep, self._least[query] = _best_of(values, numbers, self._k)
        self._scores[query, : self._k], self._rows[query, : self._k] = values[keep], numbers[keep]
        self._held[query] = self._k

    def _leave_out(self, found: Float32, contents: Items) -> None:
        starts = np.searchsorted(self._sorted, contents, side="left")
        stops = np.searchsorted(self._sorted, contents, side="right")
        for place in np.flatnonzero(starts < stops):
            found[self._order[starts[place] : stops[place]], place] = -np.inf


def _best_of(values: Float32, numbers: Items, k: int) -> tuple[npt.NDArray[np.bool_], np.float32]:
    """Which `k` of more `values` [n] are best, and the least of these; of equals the lower number is."""
    least = np.partition(values, -k)[-k]
    keep = values > least
    equal = np.flatnonzero(values == least)
    keep[equal[np.argsort(numbers[equal])[: k - np.count_nonzero(keep)]]] = True
    return keep, least
