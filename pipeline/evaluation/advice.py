"""Which settings would be better, by what the sweep and the recall of unseen queries show."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import Collection
from imgindex.evaluation.results import Advice, SweepPoint, UnseenRecall
from imgindex.models.retrieval_metrics import bootstrap_interval

Values = npt.NDArray[np.float64]
# Points of the sweep, each with the P@k of every judged query; None without labels.
Points = Sequence[tuple[SweepPoint, Values | None]]

# A smaller index may cost this much of P@k; a larger or another one must gain this much. In P@k, from 0 to 1.
_TOLERATED = 0.002
_WORTH = 0.002

# As the config takes them.
_MOST_TREES = 10_000


def advise(
    collection: Collection,
    points: Points,
    unseen: UnseenRecall | None,
    k: int,
    seed: int,
) -> tuple[Advice, ...]:
    """What to change in the config; nothing where nothing is gained.

    A change of P@k counts where the 95 % interval of the difference, query by query, lies on one side of
    zero.
    """
    return (
        *_dims(collection, points, k, seed),
        *_whitening(collection, points, k, seed),
        *_recall(collection, unseen),
    )


def _own(collection: Collection, points: Points) -> tuple[SweepPoint, Values] | None:
    for point, judged in points:
        if point.whiten == 0 and point.dims == collection.manifest.dims and judged is not None:
            return point, judged
    return None


def _dims(collection: Collection, points: Points, k: int, seed: int) -> Iterator[Advice]:
    own = _own(collection, points)
    if own is None or collection.manifest.settings.pca.whiten:
        return
    unwhitened = [(point, judged) for point, judged in points if point.whiten == 0 and judged is not None]
    smaller = [
        (point, judged)
        for point, judged in unwhitened
        if point.dims < own[0].dims and bootstrap_interval(judged - own[1], seed)[0] >= -_TOLERATED
    ]
    larger = [
        (point, judged)
        for point, judged in unwhitened
        if point.dims > own[0].dims and _is_better(judged, own[1], seed)
    ]
    for point, judged in larger[:1] or smaller[:1]:
        gain = float((judged - own[1]).mean())
        yield Advice(
            "pca.dims",
            str(point.dims),
            f"pca.dims: {point.dims}: {_points(gain)} of P@{k}, {_memory(point.bytes, own[0].bytes)}",
        )


def _whitening(collection: Collection, points: Points, k: int, seed: int) -> Iterator[Advice]:
    own = _own(collection, points)
    if own is None or collection.manifest.settings.pca.whiten:
        return
    better = [
        (float((judged - own[1]).mean()), point)
        for point, judged in points
        if point.whiten and judged is not None and _is_better(judged, own[1], seed)
    ]
    for gain, point in sorted(better, key=lambda each: -each[0])[:1]:
        value = f"{point.whiten:g}"
        yield Advice("pca.whiten", value, f"pca.whiten: {value}: {_points(gain)} of P@{k}, at the same cost")


def _recall(collection: Collection, unseen: UnseenRecall | None) -> Iterator[Advice]:
    wanted = collection.manifest.settings.publish.min_recall
    now = max(shard.trees for shard in collection.manifest.shards)
    trees = min(2 * now, _MOST_TREES)
    if unseen is not None and wanted is not None and unseen.interval[1] < wanted and trees > now:
        yield Advice(
            "index.trees",
            str(trees),
            f"index.trees: {trees}: recall@10 is {unseen.recall:.3f} for images that are not in the index, "
            f"and publish.min_recall is {wanted:g}; more trees find more, in a larger file",
        )


def _is_better(judged: Values, own: Values, seed: int) -> bool:
    difference = judged - own
    return float(difference.mean()) >= _WORTH and bootstrap_interval(difference, seed)[0] > 0


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f} points"


def _memory(size: int, own: int) -> str:
    change = size / own - 1
    return f"{abs(change):.0%} {'less' if change < 0 else 'more'} memory"
