"""What to know before relying on the figures of an evaluation."""

from collections.abc import Iterator, Sequence

from imgindex.evaluation.advice import LEAST_QUERIES
from imgindex.evaluation.collection import Collection
from imgindex.evaluation.results import Quality, SweepPoint
from imgindex.models.pca import WHITENED_IMAGES
from imgindex.text import counted

TOO_FEW = "there are too few images to measure: a search needs at least two that are no copies of each other"


def notes_on(
    collection: Collection,
    quality: Quality | None,
    points: Sequence[SweepPoint],
    dims: Sequence[int],
    most: int,
) -> Iterator[str]:
    """Sentences about figures that mean little, and why.

    `dims` are the numbers of dimensions asked for, and `most` is how many principal components there are.
    """
    if quality is not None:
        yield from _on_quality(quality)
    left_out = sorted({count for count in dims if count > most})
    if left_out:
        shown = ", ".join(map(str, left_out))
        yield (
            f"pca.dims {shown} cannot be tried: the features of these images have only "
            f"{counted(most, 'principal component')}"
        )
    whitened = max((point.dims for point in points if point.whiten), default=0)
    if len(collection) < WHITENED_IMAGES * whitened:
        yield (
            f"whitening amplifies noise here: for {counted(whitened, 'dimension')} there are "
            f"{len(collection) / whitened:.1f} images each, and it takes {WHITENED_IMAGES}; so do not set "
            "pca.whiten"
        )


def _on_quality(quality: Quality) -> Iterator[str]:
    k, others = quality.k, quality.median_others
    if k > others:
        yield (
            f"k is {k}, but half of the queries have at most {others:g} other images of their label; so "
            f"P@{k} cannot be above {100 * quality.p_at_k.best:.2f} %; choose a --k of at most {int(others)}"
        )
    if quality.queries < LEAST_QUERIES:
        low, high = quality.p_at_k.interval
        yield (
            f"P@{k} rests on {counted(quality.queries, 'query', 'queries')}, which are few: the true value "
            f"may lie anywhere from {100 * low:.1f} to {100 * high:.1f} %"
        )
