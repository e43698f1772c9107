"""P@k and time of every similarity measure: on raw pixels, on features and on vectors."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import NO_LABEL, Collection
from imgindex.evaluation.results import MeasureRow
from imgindex.evaluation.sampling import some_of
from imgindex.models import decoder_pool
from imgindex.models.measures import MEASURES, measure_scores
from imgindex.models.resizing import Resizing
from imgindex.models.retrieval_metrics import precision_at
from imgindex.runtime.resources import available_cores
from imgindex.search.queries import Recipe, image_path, load
from imgindex.search.results import QueryError

Items = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]
Values = npt.NDArray[np.float64]

# Images that are compared with each other, at most. Their pixels are compared at this height and width.
MOST_IMAGES = 1000
PIXELS = (32, 32)

_TIMED_QUERIES = 50


def rank_by_measures(
    collection: Collection, measures: Sequence[str], sample: int, k: int, seed: int
) -> Iterator[MeasureRow]:
    """Compares a sample of images, all with each other, by `measures`.

    Only the pixels need the images. Those that cannot be read are left out.

    Args:
      collection: the generation.
      measures: keys of `MEASURES`.
      sample: how many images are compared at most; more than `MOST_IMAGES` never are.
      k: the ranks that P@k looks at.
      seed: draws the sample.
    """
    images = some_of(np.arange(len(collection)), min(sample, MOST_IMAGES), seed)
    for on, (chosen, rows) in {
        "pixels": _pixels(collection, images),
        "features": (images, _features(collection, images)),
        "vectors": (images, collection.vectors[images]),
    }.items():
        for measure in measures:
            yield _row(collection, chosen, rows, measure, on, k)


def _row(collection: Collection, images: Items, rows: Rows, measure: str, on: str, k: int) -> MeasureRow:
    if not len(images):
        return MeasureRow(measure, on, 0, 0, None, None, note="none of the images could be read")
    scores = measure_scores(measure, rows, rows)
    if MEASURES[measure].is_distance:
        scores = -scores
    found = ranked_precisions(collection, images, scores, k)
    seconds = []
    for query in rows[:_TIMED_QUERIES]:
        started = time.perf_counter()
        measure_scores(measure, query[np.newaxis], rows)
        seconds.append(time.perf_counter() - started)
    return MeasureRow(
        measure=measure,
        on=on,
        images=len(images),
        queries=0 if found is None else len(found),
        p_at_k=None if found is None else float(found.mean()),
        ms_per_query=1000 * float(np.median(seconds)),
    )


def ranked_precisions(collection: Collection, images: Items, scores: Rows, k: int) -> Values | None:
    """P@k of each of `images` whose label another one has, each ranking the others by its row of `scores`.

    Copies are left out. None stands for no such image. `scores` [n, n] are changed.
    """
    contents, labels = collection.contents[images], collection.labels[images]
    own = contents[:, np.newaxis] == contents
    relevant = (labels[:, np.newaxis] == labels) & (labels != NO_LABEL) & ~own
    scores[np.isnan(scores)] = -np.inf  # undefined scores come last
    scores[own] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    judged = relevant.any(axis=1)
    if not judged.any():
        return None
    return precision_at(np.take_along_axis(relevant, order, axis=1)[judged], k)


def _features(collection: Collection, images: Items) -> Rows:
    rows = np.empty((len(images), collection.manifest.feature_dim), np.float32)
    for found, features in collection.feature_blocks():
        places = np.minimum(np.searchsorted(images, found), len(images) - 1)
        wanted = images[places] == found
        rows[places[wanted]] = features[wanted]
    return rows


def _pixels(collection: Collection, images: Items) -> tuple[Items, Rows]:
    """Those of `images` that can be read, and their RGB values [n, values], from 0 to 255."""
    manifest = collection.manifest
    recipe = replace(Recipe.of(manifest), resizing=Resizing(PIXELS))
    cores = available_cores()
    pool = decoder_pool.acquire(cores)
    try:
        with ThreadPoolExecutor(cores, "decode") as threads:
            paths = [image_path(manifest, uri) for uri in collection.uris.take(images).to_pylist()]
            loaded = list(threads.map(partial(load, recipe=recipe, decode=pool.decode), paths))
    finally:
        decoder_pool.release()
    readable = np.array([not isinstance(each.value, QueryError) for each in loaded])
    rows = [each.value.ravel() for each in loaded if not isinstance(each.value, QueryError)]
    return images[readable], np.stack(rows) if rows else np.empty((0, 1), np.uint8)
