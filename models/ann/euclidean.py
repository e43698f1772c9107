"""Points, distances and a check of sizes for libraries that are searched by the euclidean distance."""

from pathlib import Path

import numpy as np

from imgindex.errors import OutputError
from imgindex.models.ann.protocol import Float32, Metric
from imgindex.models.blocked_search import unit_rows


def points(rows: Float32, metric: Metric) -> Float32:
    """For each of `rows` [n, dims] a point; the metric's distances are the euclidean ones of the points.

    The angular distance is the euclidean one of the directions. A zero row has none: it lies at the origin,
    at distance 1 from all directions.
    """
    # A copy: Voyager takes no array that is read-only, as a mapped one is.
    return unit_rows(rows) if metric == "angular" else np.array(rows, np.float32, order="C")


def distances(squares: Float32) -> Float32:
    """The roots of squared distances; rounding may have made some of these negative."""
    roots: Float32 = np.sqrt(np.maximum(squares, 0))
    return roots


def check_size(path: Path, found: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raises OutputError where the index in `path` is not of the `expected` vectors and dimensions."""
    if found != expected:
        raise OutputError(
            f"{path} holds {found[0]} vectors of {found[1]} dimensions; "
            f"expected {expected[0]} of {expected[1]}"
        )
