"""Points whose euclidean distances are those of a metric: for libraries that are searched with that alone."""

import numpy as np

from imgindex.models.ann.protocol import Float32, Metric
from imgindex.models.blocked_search import unit_rows


def points(rows: Float32, metric: Metric) -> Float32:
    """For each of `rows` [n, dims] a point; the metric's distances are the euclidean ones of the points.

    The angular distance is the euclidean one of the directions. A zero row has none: it lies at the origin,
    at distance 1 from all directions.
    """
    # A copy: Voyager takes no array that is read-only, as a mapped one is.
    return unit_rows(rows) if metric == "angular" else np.array(rows, np.float32, order="C")
