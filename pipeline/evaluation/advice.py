"""Which settings would be better, by what the sweep and the recall of unseen queries show."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import Collection
from imgindex.evaluation.results import Advice, SweepPoint, UnseenRecall
from imgindex.models.retrieval_metrics import bootstrap_interval

Values = npt.NDArray[np.float64]
# A point of the sweep with the P@k of every judged query, which is None without labels.
Judged = tuple[SweepPoint, Values]
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
    settings: tuple[Advice, ...] = ()
    now = _now(collection, points)
    if now is not None and not collection.manifest.settings.pca.whiten:
        judged = [(point, each) for point, each in points if each is not None]
        settings = (*_dims(judged, now, k, seed), *_whitening(judged, now, k, seed))
    return (*settings, *_recall(collection, unseen))


def _now(collection: Collection, points: Points) -> Judged | None:
    """The point that has the settings of an index that is not whitened; None without labels."""
    for point, judged in points:
        if point.whiten == 0 and point.dims == collection.manifest.dims and judged is not None:
            return point, judged
    return None


def _dims(points: Sequence[Judged], now: Judged, k: int, seed: int) -> Iterator[Advice]:
    unwhitened = [(point, judged) for point, judged in points if point.whiten == 0]
    smaller = [
        (point, judged)
        for point, judged in unwhitened
        if point.dims < now[0].dims and bootstrap_interval(judged - now[1], seed)[0] >= -_TOLERATED
    ]
    larger = [
        (point, judged)
        for point, judged in unwhitened
        if point.dims > now[0].dims and _is_better(judged, now[1], seed)
    ]
    for point, judged in larger[:1] or smaller[:1]:
        gain = float((judged - now[1]).mean())
        yield Advice(
            "pca.dims",
            str(point.dims),
            f"pca.dims: {point.dims}: {_points(gain)} of P@{k}, {_memory(point.bytes, now[0].bytes)}",
        )


def _whitening(points: Sequence[Judged], now: Judged, k: int, seed: int) -> Iterator[Advice]:
    better = [
        (float((judged - now[1]).mean()), point)
        for point, judged in points
        if point.whiten and _is_better(judged, now[1], seed)
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


def _is_better(judged: Values, now: Values, seed: int) -> bool:
    difference = judged - now
    return float(difference.mean()) >= _WORTH and bootstrap_interval(difference, seed)[0] > 0


def _points(gain: float) -> str:
    return f"{100 * gain:+.1f} points"


def _memory(size: int, now: int) -> str:
    change = size / now - 1
    return f"{abs(change):.0%} {'less' if change < 0 else 'more'} memory"
