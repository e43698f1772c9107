"""How well the images of a label find each other."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import NO_LABEL, Images
from imgindex.evaluation.feature_search import search_vectors
from imgindex.evaluation.results import Confusion, LabelQuality, Mean, Quality
from imgindex.models.retrieval_metrics import (
    average_precision_at_r,
    mean_interval,
    precision_at,
    recall_at,
)

Items = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

# Ranks of all queries that are searched for at once: some 200 MiB.
_RANKED = 1 << 23
_CONFUSIONS = 3


def relevant_counts(collection: Images, queries: Items) -> Items:
    """How many images have the label of each of `queries`, themselves and their copies left out."""
    labels = collection.labels
    if not collection.label_names:
        return np.zeros(len(queries), np.int64)
    labeled = labels != NO_LABEL
    by_label = np.bincount(labels[labeled], minlength=len(collection.label_names))
    # Copies may lie under other labels, where they are not counted.
    pairs = labels * len(collection.sha256) + collection.contents
    _, places, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    own = counts[places]
    return np.where(labeled[queries], by_label[labels[queries]] - own[queries], 0)


def measure_quality(collection: Images, queries: Items, k: int, seed: int) -> Quality | None:
    """The quality of exact search in the vectors, with `queries` [q]; None where none of them has a like."""
    totals = relevant_counts(collection, queries)
    judged, totals = queries[totals > 0], totals[totals > 0]
    if not len(judged):
        return None
    measured = np.zeros((4, len(judged)))
    pairs: list[Items] = []
    for part, ranking in _rankings(collection, judged, totals, k):
        own = collection.labels[judged[part]]
        labels = np.where(ranking >= 0, collection.labels[ranking], NO_LABEL)
        relevant = labels == own[:, np.newaxis]
        measured[:, part] = (
            precision_at(relevant, k),
            average_precision_at_r(relevant, totals[part]),
            recall_at(relevant, totals[part], k),
            precision_at(relevant, 1),
        )
        pairs.append(np.stack([np.repeat(own, labels[:, :k].shape[1]), labels[:, :k].ravel()]))
    labels = collection.labels[judged]
    present, places, asked = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(places, values) / asked for values in measured], axis=1)
    images = np.bincount(collection.labels[collection.labels != NO_LABEL])
    confused = _Confusions(collection.label_names, np.concatenate(pairs, axis=1))
    distinct = _distinct_by_label(collection)
    reachable = np.minimum(k, totals)
    best = (float(reachable.mean() / k), 1.0, float((reachable / totals).mean()), 1.0)
    return Quality(
        k=k,
        queries=len(judged),
        labels=int((distinct > 1).sum()),
        single_image_labels=int((distinct == 1).sum()),
        images_without_label=int((collection.labels == NO_LABEL).sum()),
        median_others=float(np.median(totals)),
        **{
            name: Mean(float(values.mean()), float(macro.mean()), mean_interval(values, seed), most)
            for name, values, macro, most in zip(_MEASURES, measured, means.T, best, strict=True)
        },
        per_label=tuple(
            LabelQuality(
                label=collection.label_names[label],
                images=int(images[label]),
                queries=int(count),
                **dict(zip(_MEASURES, map(float, mean), strict=True)),
                confused_with=confused.of(int(label), k * int(count)),
            )
            for label, count, mean in zip(present, asked, means, strict=True)
        ),
    )


_MEASURES = ("p_at_k", "map_at_r", "recall_at_k", "precision_at_1")


def _rankings(collection: Images, queries: Items, totals: Items, k: int) -> Iterator[tuple[Items, Items]]:
    """For parts of `queries`, by their places, the images nearest to each, [part, ranks].

    -1 stands where there are no more. Queries of similar `totals` are in one part.
    """
    order = np.argsort(-totals, kind="stable")
    while len(order):
        ranks = min(max(k, int(totals[order[0]])), len(collection))
        part, order = np.split(order, [max(1, _RANKED // ranks)])
        yield part, search_vectors(collection, collection.vectors, queries[part], ranks)


def _distinct_by_label(collection: Images) -> Items:
    """How many distinct images each label has."""
    labeled = collection.labels != NO_LABEL
    pairs = np.unique(np.stack([collection.labels[labeled], collection.contents[labeled]]), axis=1)
    return np.bincount(pairs[0], minlength=len(collection.label_names))


class _Confusions:
    """Which other labels the neighbors of each label's images have."""

    def __init__(self, names: tuple[str, ...], pairs: Items) -> None:
        """`pairs` [2, n] are labels of queries and of their neighbors."""
        wrong = pairs[:, (pairs[0] != pairs[1]) & (pairs[1] != NO_LABEL)]
        self._names = names
        self._pairs, self._counts = np.unique(wrong, axis=1, return_counts=True)

    def of(self, label: int, neighbors: int) -> tuple[Confusion, ...]:
        """The most frequent of the other labels among so many `neighbors` of a label's images."""
        start, stop = np.searchsorted(self._pairs[0], [label, label + 1])
        counts = self._counts[start:stop]
        order = np.argsort(-counts, kind="stable")[:_CONFUSIONS]
        others = self._pairs[1, start:stop]
        return tuple(Confusion(self._names[others[n]], float(counts[n] / neighbors)) for n in order)
