"""The recall of a shard's approximate searches against exact search."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from imgindex.models.ann.protocol import Items
from imgindex.models.ann.shard_index import Contents, ShardIndex, first_items
from imgindex.models.similarity import exact_squares

Floats = npt.NDArray[np.float64]

RECALL_K = 10
RECALL_SAMPLE = 200


def measure_recall(shard: ShardIndex, contents: Contents | None = None, target: float = 0.0) -> list[float]:
    """Recall@10 of distinct images against exact search with each of `shard.searches`, in their order.

    Beyond the usual ones it is measured until it reaches `target`; for those that follow it is no less.

    `contents` has a number for each item, the same for copies of an image; None: there are no copies. The
    queries are the contents of `recall_sample`. What they are to find are the ten nearest other contents:
    were copies counted, an image that is there a thousand times would be found for certain and stand for all
    others. Whatever is as near as the last of the ten counts, but for the rounding of float32, by which
    libraries choose where distances are all but equal. A shard of a single content has nothing to find and a
    recall of 1.
    """
    if contents is None:
        contents = np.arange(len(shard.vectors))
    sample = recall_sample(contents)
    queries = np.ascontiguousarray(shard.vectors[sample])
    wanted = min(RECALL_K, len(np.unique(contents)) - 1)
    if not wanted:
        return [1.0] * len(shard.searches)

    def others(item: np.int64, found: Items) -> tuple[Floats, Floats]:
        """Squared distances of what was found for an item beside itself, and their errors."""
        found = found[contents[found] != contents[item]][:wanted]
        return exact_squares(shard.vectors[found], shard.vectors[item], shard.metric)

    # One more than is compared, for an item is its own nearest neighbor.
    answers = shard.nearest(queries, wanted + 1, None, contents)
    limits = [
        _as_near_in_float32(np.add(*others(item, exact)).max(), shard)
        for item, (exact, _) in zip(sample, answers, strict=True)
    ]
    recalls: list[float] = []
    for settings in shard.searches:
        if len(recalls) >= shard.usual_searches and recalls[-1] >= target:
            recalls.append(recalls[-1])  # a deeper search finds no less
            continue
        hits = 0
        answers = shard.nearest(queries, wanted + 1, settings, contents)
        for item, limit, (found, _) in zip(sample, limits, answers, strict=True):
            squares, errors = others(item, found)
            hits += int(np.count_nonzero(squares - errors <= limit))
        recalls.append(hits / (len(sample) * wanted))
    return recalls


def _as_near_in_float32(square: float, shard: ShardIndex) -> float:
    """Up to which squared distance a library may take an item for as near as one at `square`.

    It sums in float32, whose errors grow with the root of their number (Higham and Mary, A New Approach to
    Probabilistic Rounding Error Analysis, 2019): for the angular distance those of products of unit vectors,
    for the euclidean one those of the squared distance itself.
    """
    rounding = 2.0**-22 * float(np.sqrt(shard.vectors.shape[1]))
    return square + rounding * (1.0 if shard.metric == "angular" else square)


def recall_sample(contents: Contents) -> Items:
    """The items that recall is measured with: at most `RECALL_SAMPLE` contents, evenly spread over all."""
    firsts = first_items(contents)
    places = np.linspace(0, len(firsts) - 1, min(len(firsts), RECALL_SAMPLE))
    return firsts[np.unique(places.astype(np.int64))]


def first_to_reach(recalls: Sequence[float], target: float) -> int:
    """Which of the searches, the quickest first, is the first to reach `target`; or else finds the most."""
    for step, recall in enumerate(recalls):
        if recall >= target:
            return step
    return int(np.argmax(recalls))
