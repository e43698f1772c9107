"""Nearest vectors by brute force: candidates in float32, their order exact.

float32 alone takes small distances for equal, for |x - y|**2 = |x|**2 + |y|**2 - 2 x·y cancels. Its error is
bounded, however: a sum of d products is off by at most g(d) = d u / (1 - d u) times the sum of their
magnitudes, u = 2**-24, in whatever order BLAS adds them (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., section 3.1). What these bounds cannot rule out is measured again in float64, by
differences, which do not cancel. What the bounds of float64, u = 2**-53, leave open is compared in whole
numbers. So of two vectors the nearer one comes first, however close they are, and ties are ties.
"""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from imgindex.models.ann.protocol import Float32, Items, Metric

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

# Rows and queries whose distances are computed at once: 8 MiB of float32.
_EXACT_ROWS = 1 << 14
_QUERIES = 1 << 7

# Rows that a query holds beside the nearest: of 150 dimensions some 5 MiB as float64.
_RANKED_ROWS = 1 << 12

# Rows that are float64 at once: few enough to stay in a core's cache.
_SQUARED_ROWS = 1 << 8

# Squared lengths of float32 vectors whose products neither vanish nor overflow.
_SAFE = 2.0**-60, 2.0**60

# A float32 is a multiple of 2**-149.
_FLOAT32_BITS = 149


def exact_nearest(
    vectors: Float32, queries: Float32, k: int, metric: Metric, items: Items | None = None
) -> list[tuple[Items, Float32]]:
    """For each of `queries` [m, dims], the `k` nearest of `vectors` [n, dims] and their distances.

    The order is exact. Of equal distances the lower row comes first. `items`, in ascending order, are the
    rows that are compared; None: all.
    """
    if not len(queries):
        return []  # without a pass over all vectors
    count = len(vectors) if items is None else len(items)
    near = [_Near(query, k, metric) for query in queries]
    # All blocks share this array: the system takes long to hand out as much memory each time.
    squares = np.empty(min(len(queries), _QUERIES) * min(count, _EXACT_ROWS), np.float32)
    for start in range(0, count, _EXACT_ROWS):
        stop = min(start + _EXACT_ROWS, count)
        rows = np.arange(start, stop) if items is None else items[start:stop]
        block = vectors[start:stop] if items is None else vectors[rows]
        lengths = np.einsum("ij,ij->i", block, block)
        for first in range(0, len(queries), _QUERIES):
            asked = slice(first, first + _QUERIES)
            rough = squares[: len(near[asked]) * len(rows)].reshape(-1, len(rows))
            error = _rough_squares(block, lengths, queries[asked], metric, rough)
            limits = _limits(rough, error, k, np.array([each.limit for each in near[asked]]))
            # All that may be near enough. A NaN tells nothing, so its row is among them.
            hits = np.flatnonzero(~(rough > limits[:, np.newaxis]))
            numbers, places = np.divmod(hits, len(rows))
            edges = np.searchsorted(numbers, np.arange(len(rough) + 1))
            for number in np.flatnonzero(np.diff(edges)):
                found = places[edges[number] : edges[number + 1]]
                near[first + number].add(rows[found], rough[number, found], error[number], vectors)
    return [each.nearest(vectors) for each in near]


def _limits(rough: Float32, error: Float64, k: int, known: Float64) -> Float32:
    """How great `rough` [m, n], each row off by at most its `error`, can be of what is among the `k` least.

    `known` [m] is what the k-th is at most.
    """
    # Most rows are within it at first.
    if rough.shape[1] >= k and np.isinf(known).any():
        known = np.fmin(known, np.array([np.partition(row, k - 1)[k - 1] for row in rough]) + error)
    return _rounded_up(known + error)


class _Near:
    """Rows that may be among the `k` nearest of a query, of those that it was compared with."""

    def __init__(self, query: Float32, k: int, metric: Metric) -> None:
        self._query, self._k, self._metric = query, k, metric
        self._rows = np.empty(0, np.int64)
        # Between what their squared distances are.
        self._least, self._most = np.empty(0), np.empty(0)
        self.limit = np.inf  # at most so far is the k-th, squared

    def add(self, rows: Items, about: Float32, off: float, vectors: Float32) -> None:
        """Adds rows of `vectors`, whose squared distances are `about` that, but for at most `off`."""
        self._rows = np.concatenate([self._rows, rows])
        self._least = np.concatenate([self._least, about - off])
        self._most = np.concatenate([self._most, about + off])
        if len(self._rows) > self._k:
            kth = np.partition(self._most, self._k - 1)[self._k - 1]  # NaNs come last
            self.limit = np.fmin(self.limit, kth)
            kept = ~(self._least > self.limit)
            self._rows, self._least, self._most = self._rows[kept], self._least[kept], self._most[kept]
        if len(self._rows) > self._k + _RANKED_ROWS:
            self._settle(vectors)

    def _settle(self, vectors: Float32) -> None:
        """Leaves the nearest alone: many that are nearly as near would fill the memory."""
        order, squares, errors = rank(vectors[self._rows], self._query, self._metric, self._k)
        self._rows = self._rows[order]
        self.limit = squares[-1] + errors[-1]
        self._least, self._most = np.zeros(len(order)), np.full(len(order), self.limit)

    def nearest(self, vectors: Float32) -> tuple[Items, Float32]:
        """The nearest and their distances, in exact order."""
        order, squares, _ = rank(vectors[self._rows], self._query, self._metric, self._k)
        return self._rows[order], np.sqrt(squares).astype(np.float32)


def _rough_squares(
    vectors: Float32, lengths: Float32, queries: Float32, metric: Metric, squares: Float32
) -> Float64:
    """Writes squared distances to `squares` [m, n]; gives by how much each row of it [m] is off at most.

    `lengths` [n] are the squared ones of `vectors`. A distance that may be off by more is NaN.
    """
    dims = vectors.shape[1]
    query_lengths = np.einsum("ij,ij->i", queries, queries)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if metric == "angular":
            # Of rounding: the product, both lengths with their roots, two quotients; and the sum.
            error: Float64 = np.full(len(queries), 2 * _error_of(2 * dims + 8, 2.0**-24) + 2.0**-22)
            np.matmul(-2 * queries / np.sqrt(query_lengths)[:, np.newaxis], vectors.T, out=squares)
            squares /= np.sqrt(lengths)
            squares += 2
            squares[:, ~_is_safe(lengths)] = np.nan
            squares[~_is_safe(query_lengths)] = np.nan
        else:
            np.matmul(-2 * queries, vectors.T, out=squares)
            squares += lengths
            squares += query_lengths[:, np.newaxis]
            # At most g(d + 2) (|x| + |y|)**2 <= 2 g(d + 2) (|x|**2 + |y|**2), which is rounded itself, and
            # what vanishes of each product.
            most = query_lengths.astype(np.float64) + float(lengths.max(initial=0))
            error = 3 * _error_of(dims + 4, 2.0**-24) * most + 3 * dims * 2.0**-126
            if (most > _SAFE[1]).any():  # where the product overflows, its square need not be great
                squares[~np.isfinite(squares)] = np.nan
    return error


def _rounded_up(values: Float64) -> Float32:
    with np.errstate(over="ignore"):
        above: Float32 = np.nextafter(values.astype(np.float32), np.float32(np.inf))
    return above


def _is_safe(lengths: Float32) -> npt.NDArray[np.bool_]:
    return (lengths > _SAFE[0]) & (lengths < _SAFE[1])


def _error_of(operations: int, unit: float) -> float:
    """Higham's g: the relative error of so many operations that are each rounded by at most `unit`."""
    return operations * unit / (1 - operations * unit)


def rank(vectors: Float32, query: Float32, metric: Metric, k: int) -> tuple[Items, Float64, Float64]:
    """The places of the `k` nearest of `vectors` [n, dims], in exact order; of ties the first comes first.

    Also their squared distances from `query` [dims], which rise, and by how much these are off at most.
    """
    squares, errors = exact_squares(vectors, query, metric)
    return _ranked(squares, errors, vectors, query, metric, k)


def rank_each(
    vectors: Float32, counts: Items, queries: Float32, metric: Metric, k: int
) -> tuple[Items, Float64, Items]:
    """Ranks for each of `queries` [m, dims] its own part of `vectors`, as `rank` does.

    The first ``counts[0]`` of `vectors` [n, dims] belong to the first query, the next ``counts[1]`` to the
    second, and so on. Gives the places in `vectors` of the nearest of all queries, one query's after the
    other's, their squared distances, and how many each query has [m].
    """
    owners = np.repeat(np.arange(len(queries)), counts)
    squares, errors = exact_squares(vectors, queries, metric, owners)
    order = np.lexsort((squares, owners))
    near = squares[order]
    least, most = near - errors[order], near + errors[order]
    # The order is exact where no two neighbors in it are so close that their errors could swap them.
    unclear = (least[1:] <= most[:-1]) & (owners[1:] == owners[:-1])
    starts = np.cumsum(counts) - counts
    for number in np.unique(owners[1:][unclear]).tolist():
        own = slice(starts[number], starts[number] + counts[number])
        places, exact, _ = _ranked(squares[own], errors[own], vectors[own], queries[number], metric, k)
        own = slice(own.start, own.start + len(places))
        order[own], near[own] = own.start + places, exact
    kept = np.arange(len(order)) - starts[owners] < k
    return order[kept], near[kept], np.minimum(counts, k)


def _ranked(
    squares: Float64, errors: Float64, vectors: Float32, query: Float32, metric: Metric, k: int
) -> tuple[Items, Float64, Float64]:
    """As `rank`, of the squared distances and their errors."""
    order = np.argsort(squares, kind="stable")
    squares, errors = squares[order], errors[order]
    # Where all that follows is farther than all before.
    least = np.minimum.accumulate((squares - errors)[::-1])[::-1]
    most = np.maximum.accumulate(squares + errors)
    edges = np.flatnonzero(least[1:] > most[:-1]) + 1
    starts = np.concatenate([[0], edges])
    stops = np.append(edges, len(order))
    for start, stop in zip(starts, stops, strict=True):
        if start >= k:
            break
        if stop - start > 1 and errors[start:stop].any():
            order[start:stop] = _in_exact_order(order[start:stop], vectors, query, metric)
    # What was in another order by its rounding alone keeps within it.
    return order[:k], np.maximum.accumulate(squares[:k]), errors[:k]


def exact_squares(
    vectors: Float32, queries: Float32, metric: Metric, owners: Items | None = None
) -> tuple[Float64, Float64]:
    """Squared distances [n] of `vectors` [n, dims] from queries, and by how much they are off at most.

    `queries` is one [dims] for all of them, or [m, dims] of which `owners` [n] gives the row for each.
    Angular distance is sqrt(2 (1 - cos)); a zero vector is at right angles to everything.
    """
    queries = queries.reshape(-1, vectors.shape[1])
    owners = np.zeros(len(vectors), np.int64) if owners is None else owners
    points = queries.astype(np.float64)
    lengths = _lengths(points)
    if metric == "angular":
        points /= np.where(lengths == 0, 1, lengths)[:, np.newaxis]
    parts = []
    for start in range(0, max(len(vectors), 1), _SQUARED_ROWS):
        own = slice(start, start + _SQUARED_ROWS)
        rows, of = vectors[own], owners[own]
        if metric == "euclidean":
            parts.append(_euclidean_squares(rows.astype(np.float64), points[of]))
        else:
            same = (rows == queries[of]).all(axis=1)
            parts.append(_angular_squares(rows.astype(np.float64), points[of], lengths[of] == 0, same))
    return np.concatenate([part for part, _ in parts]), np.concatenate([part for _, part in parts])


def _lengths(rows: Float64) -> Float64:
    lengths: Float64 = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return lengths


def _euclidean_squares(rows: Float64, points: Float64) -> tuple[Float64, Float64]:
    """As `exact_squares`, of a point for each row; writes over the rows."""
    rows -= points
    squares = np.einsum("ij,ij->i", rows, rows)
    # The difference, its square, and the sum are rounded; nothing cancels.
    return squares, 2 * _error_of(rows.shape[1] + 2, 2.0**-53) * squares


def _angular_squares(
    rows: Float64, points: Float64, is_zero: npt.NDArray[np.bool_], same: npt.NDArray[np.bool_]
) -> tuple[Float64, Float64]:
    """As `exact_squares`; writes over the rows.

    The `points`, one for each row, have the length 1, but for those that `is_zero` names. `same` names the
    rows that were equal to their point before it was scaled.
    """
    lengths = _lengths(rows)
    right = (lengths == 0) | is_zero
    rows /= np.where(right, 1, lengths)[:, np.newaxis]
    rows -= points
    squares = np.einsum("ij,ij->i", rows, rows)
    # Both directions are off by their lengths' and quotients' rounding, which does not vanish with their
    # distance.
    distances = np.sqrt(squares)
    errors = 2 * _error_of(rows.shape[1] + 4, 2.0**-53) * (1 + distances)
    errors *= 2 * distances + errors
    for exact, square in ((right, 2.0), (same & ~right, 0.0)):
        squares[exact], errors[exact] = square, 0.0
    return squares, errors


def _in_exact_order(places: Items, vectors: Float32, query: Float32, metric: Metric) -> list[int]:
    """`places` of `vectors` in the order of their distances in whole numbers, then of the places."""
    point = _whole(query)
    keys: dict[bytes, int | Fraction] = {}  # many may be copies of a few

    def key(place: int) -> int | Fraction:
        vector = vectors[place]
        data = vector.tobytes()
        if data not in keys:
            keys[data] = _exact_key(_whole(vector), point, metric)
        return keys[data]

    return [place for _, place in sorted((key(place), place) for place in places.tolist())]


def _whole(vector: Float32) -> list[int]:
    """`vector` as multiples of 2**-149."""
    return list(map(int, np.ldexp(vector.astype(np.float64), _FLOAT32_BITS).tolist()))


def _exact_key(vector: list[int], point: list[int], metric: Metric) -> int | Fraction:
    """What is greater exactly where the distance of `vector` from `point` is."""
    if metric == "euclidean":
        return sum((a - b) ** 2 for a, b in zip(vector, point, strict=True))
    product = sum(a * b for a, b in zip(vector, point, strict=True))
    # cos |cos|, which grows with cos, times the point's own length, which all have in common.
    return -Fraction(product * abs(product), sum(a * a for a in vector) or 1)


def cosine_similarity(vectors: Floats, queries: Floats) -> Floats:
    """Cosines [m, n] of `queries` [m, dims] with `vectors` [n, dims]; 0 for a zero vector."""
    norms = np.linalg.norm(queries, axis=1)[:, np.newaxis] * np.linalg.norm(vectors, axis=1)
    dots = queries @ vectors.T
    cosines: Floats = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return np.clip(cosines, -1, 1, out=cosines)
