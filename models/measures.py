"""Similarity measures of images, or of any other vectors: L1, L2, MSE, cosine, NCC.

With x and y of d values each:

- ``l1``: sum |x - y|. A distance.
- ``l2``: sqrt(sum (x - y)**2). A distance.
- ``mse``, mean squared error: sum (x - y)**2 / d. A distance.
- ``cosine``: x·y / (|x| |y|). A similarity, -1 to 1. It is 0 where x or y is zero, as in `models.similarity`.
- ``ncc``, normalized cross-correlation: the cosine of x - mean(x) and y - mean(y), which is Pearson's
  correlation (Lewis, Fast Normalized Cross-Correlation, 1995). A similarity, -1 to 1. It is undefined, NaN,
  where all values of x or all values of y are the same.

All work is in float64, whatever the type of the values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

# Values that are float64 at once, of one kind: 16 MiB. And rows of a block, at most.
_BLOCK_VALUES = 1 << 21
_BLOCK_ROWS = 1 << 13

# The squares of larger values, summed over millions of them, would overflow.
_LARGEST = 2.0**490

# |x|**2 + |y|**2 - 2 x·y is off by some 2**-53 of |x|**2 + |y|**2. What is less than this part of it is
# measured again by differences, which do not cancel. So at least ten digits are right.
_CANCELED = 2.0**-10


@dataclass(frozen=True)
class Measure:
    """One of the measures."""

    name: str
    title: str  # as people write it
    is_distance: bool  # smaller is nearer, and 0 is equal; else larger is nearer, and 1 is the most
    block: Callable[[Float64, Float64], Float64]  # queries [m, d] and rows [n, d] to scores [m, n]


def measure_scores(measure: str, queries: npt.NDArray[Any], rows: npt.NDArray[Any]) -> Float64:
    """The scores [m, n] of each of `queries` [m, d] with each of `rows` [n, d].

    `MEASURES` says whether smaller or larger scores are nearer. Beside its arguments and the scores, this
    takes some 100 MiB, whatever m and n are. Matrix products do the work, but for L1, which has none.

    Args:
      measure: a key of `MEASURES`.
      queries, rows: of any real type, with at least one column.

    Raises ValueError where the columns differ in number, and where a value is not finite or is beyond 2**490.
    """
    if queries.ndim != 2 or rows.ndim != 2 or queries.shape[1] != rows.shape[1] or not queries.shape[1]:
        raise ValueError(
            f"expected queries [m, d] and rows [n, d] of the same d > 0, got {queries.shape} and {rows.shape}"
        )
    fitting = max(1, _BLOCK_VALUES // queries.shape[1])
    row_step = min(fitting, _BLOCK_ROWS)
    query_step = min(fitting, _BLOCK_VALUES // row_step)
    scores = np.empty((len(queries), len(rows)))
    for top in range(0, len(rows), row_step):
        some_rows = _checked(rows[top : top + row_step])
        for first in range(0, len(queries), query_step):
            some_queries = _checked(queries[first : first + query_step])
            block = MEASURES[measure].block(some_queries, some_rows)
            scores[first : first + query_step, top : top + row_step] = block
    return scores


def _checked(values: npt.NDArray[Any]) -> Float64:
    values = np.ascontiguousarray(values, np.float64)
    if not (np.abs(values) <= _LARGEST).all():  # as no NaN is
        raise ValueError("expected finite values, none beyond 2**490")
    return values


def _l1(queries: Float64, rows: Float64) -> Float64:
    from scipy.spatial.distance import cdist  # a search, whose pages may show measures, does not wait for it

    distances: Float64 = cdist(queries, rows, "cityblock")
    return distances


def _squares(queries: Float64, rows: Float64) -> Float64:
    """Squared euclidean distances [m, n]."""
    most = np.add.outer(_squared_lengths(queries), _squared_lengths(rows))
    squares: Float64 = most - 2 * (queries @ rows.T)
    some, others = np.nonzero(squares <= _CANCELED * most)
    step = max(1, _BLOCK_VALUES // rows.shape[1])
    for start in range(0, len(some), step):
        pairs = some[start : start + step], others[start : start + step]
        squares[pairs] = _squared_lengths(queries[pairs[0]] - rows[pairs[1]])
    return squares


def _l2(queries: Float64, rows: Float64) -> Float64:
    distances: Float64 = np.sqrt(_squares(queries, rows))
    return distances


def _mse(queries: Float64, rows: Float64) -> Float64:
    errors: Float64 = _squares(queries, rows) / rows.shape[1]
    return errors


def _cosine(queries: Float64, rows: Float64) -> Float64:
    cosines: Float64 = np.clip(_unit(queries) @ _unit(rows).T, -1, 1)
    return cosines


def _ncc(queries: Float64, rows: Float64) -> Float64:
    centered_queries, centered_rows = _centered(queries), _centered(rows)
    correlations = _cosine(centered_queries, centered_rows)
    correlations[~centered_queries.any(axis=1)] = np.nan
    correlations[:, ~centered_rows.any(axis=1)] = np.nan
    return correlations


def _centered(values: Float64) -> Float64:
    """Rows less their means, up to a factor; zero exactly where all values of a row are the same."""
    # The mean alone would leave its rounding: that of three times 0.1 is not 0.1.
    shifted = _scaled(values - values[:, :1])
    centered: Float64 = shifted - shifted.mean(axis=1, keepdims=True)
    return centered


def _unit(values: Float64) -> Float64:
    """Rows of length 1; a zero row stays zero."""
    scaled = _scaled(values)
    lengths = np.sqrt(_squared_lengths(scaled))[:, np.newaxis]
    unit: Float64 = np.divide(scaled, lengths, out=scaled, where=lengths > 0)
    return unit


def _scaled(values: Float64) -> Float64:
    """Rows times powers of two, so that their squares neither vanish nor overflow."""
    exponents = np.frexp(np.abs(values).max(axis=1, keepdims=True))[1]
    scaled: Float64 = np.ldexp(values, -exponents)
    return scaled


def _squared_lengths(values: Float64) -> Float64:
    lengths: Float64 = np.einsum("ij,ij->i", values, values)
    return lengths


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("l1", "L1", True, _l1),
        Measure("l2", "L2", True, _l2),
        Measure("mse", "MSE", True, _mse),
        Measure("cosine", "cosine", False, _cosine),
        Measure("ncc", "NCC", False, _ncc),
    )
}

# Other names of the measures.
ALSO_CALLED = {
    "manhattan": "l1",
    "cityblock": "l1",
    "euclidean": "l2",
    "pearson": "ncc",
    "correlation": "ncc",
}
