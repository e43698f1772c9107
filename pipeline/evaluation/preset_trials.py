"""What other settings of the features would change, tried on a sample of the index's own images."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.config import load_config
from imgindex.errors import OutputError, UnsupportedModelError, UsageError
from imgindex.evaluation.collection import Collection
from imgindex.evaluation.quality import relevant_counts
from imgindex.evaluation.results import PresetRow
from imgindex.evaluation.similarity_measures import ranked_precisions
from imgindex.models import decoder_pool
from imgindex.models.batches import BatchEmbedder
from imgindex.models.engines.loading import load_engine, load_smaller_engine
from imgindex.models.engines.protocol import Engine, EngineChoice
from imgindex.models.retrieval_metrics import bootstrap_interval, mean_interval
from imgindex.models.spec import Spec
from imgindex.presets import FEATURE_PRESETS
from imgindex.runtime.resources import available_cores
from imgindex.search.queries import Loaded, Recipe, image_path, load
from imgindex.search.query_engine import query_engine
from imgindex.search.results import QueryError

Items = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Float16 = npt.NDArray[np.float16]
Flags = npt.NDArray[np.bool_]

# A value of each of `_KEYS`.
Settings = Mapping[str, Any]
# A row, and the P@k of every judged query; None where there are none.
Trial = tuple[PresetRow, Values | None]

# The index's own settings, in the place of a preset's name.
NOW = "now"

# Keys of the config's section `backbone` that presets set.
_KEYS = ("pooling", "image_size", "resize", "mirror")

# Images that are embedded with each preset, at most; and of a label, where there are many labels.
MOST_IMAGES = 1000
_OF_A_LABEL = 50

# Images that are embedded before the time of any is taken.
_WARM_UP = 32


def settings_of(preset: str) -> dict[str, Any]:
    """The settings of the features that a shipped config has."""
    backbone = load_config(preset).backbone
    return {key: getattr(backbone, key) for key in _KEYS}


def presets_named(names: Sequence[str]) -> list[str]:
    """The presets that `names` stand for, of which `all` is every one. Raises UsageError for other names."""
    unknown = sorted({*names} - {"all", *FEATURE_PRESETS})
    if unknown:
        raise UsageError(f"presets has {unknown[0]!r}; expected some of {', '.join(FEATURE_PRESETS)}, or all")
    return [name for name in FEATURE_PRESETS if name in names or "all" in names]


def try_presets(
    collection: Collection,
    presets: Mapping[str, Settings],
    *,
    sample: int,
    k: int,
    seed: int,
    model: str | None = None,
    advance: Callable[[], object] = lambda: None,
) -> list[Trial]:
    """Embeds a labeled sample with the index's own settings, then with each of `presets`, and searches in it.

    Backbone, weights, engine and precision are the index's. The search is exact, by the cosine of features.
    Images that cannot be read or embedded are left out of all.

    Args:
      collection: the generation.
      presets: settings by name.
      sample: how many images are embedded at most; more than `MOST_IMAGES` never are.
      k: the ranks that P@k looks at.
      seed: draws the sample.
      model: as for `query_engine`.
      advance: is called after each.

    Raises:
      OutputError: the index's model is not there, or none of the images can be read.
    """
    images = _labeled_sample(collection, min(sample, MOST_IMAGES), seed)
    if not len(images):
        return []
    manifest = collection.manifest
    paths = [image_path(manifest, uri) for uri in collection.uris.take(images).to_pylist()]
    choices: list[EngineChoice] = []

    def noted(choice: EngineChoice, threads: int) -> Engine:
        choices.append(choice)
        return load_engine(choice, threads)

    query_engine(collection.output.root, manifest, model, noted)
    own = choices[-1]  # the one that fits the index
    cores = available_cores()
    pool = decoder_pool.acquire(cores)
    try:
        embed = partial(_embed, Recipe.of(manifest), pool.decode, cores)
        embed(own, paths[:_WARM_UP])
        now = embed(own, paths)
        advance()
        tried: dict[str, _Embedded | str] = {NOW: now}
        for name, settings in presets.items():
            try:
                tried[name] = embed(replace(own, **settings), paths, like=now)
            except (UsageError, UnsupportedModelError) as error:  # of a backbone that does not take these
                tried[name] = str(error)
            advance()
    finally:
        decoder_pool.release()
    return list(_judged(collection, images, tried, presets, k, seed))


@dataclass(frozen=True)
class _Embedded:
    """A sample's features by one choice of settings."""

    choice: EngineChoice
    spec: Spec
    features: Float16  # [n, feature_dim], L2-normalized
    valid: Flags  # [n], whether an image has one
    rate: float  # images a second, reading and decoding included


def _labeled_sample(collection: Collection, most: int, seed: int) -> Items:
    """At most `most` images whose label has another image: of few labels all, of many at most 50 of each."""
    images = np.flatnonzero(relevant_counts(collection, np.arange(len(collection))) > 0)
    generator = np.random.default_rng(seed)
    images = generator.permutation(images)
    labels = collection.labels[images]
    drawn = generator.permutation(len(collection.label_names))[labels]  # labels in an order of their own
    order = np.argsort(drawn, kind="stable")
    images, drawn = images[order], drawn[order]
    _, first, counts = np.unique(drawn, return_index=True, return_counts=True)
    of_a_label = max(_OF_A_LABEL, -(-most // max(1, len(counts))))
    rank = np.arange(len(images)) - np.repeat(first, counts)
    return np.sort(images[rank < of_a_label][:most])


def _embed(
    recipe: Recipe,
    decode: Callable[..., Any],
    cores: int,
    choice: EngineChoice,
    paths: Sequence[str],
    like: _Embedded | None = None,
) -> _Embedded:
    """Embeds the images at `paths`; where `like` was made to the same spec, it is the answer."""
    engine = load_engine(choice, cores)
    if like is not None and like.spec == engine.spec:
        return like
    recipe = replace(recipe, resizing=engine.spec.resizing)
    features = np.zeros((len(paths), engine.feature_dim), np.float16)
    valid = np.zeros(len(paths), bool)
    batches = BatchEmbedder(engine, partial(load_smaller_engine, choice, cores))
    loading: deque[list[tuple[int, Future[Loaded]]]] = deque()
    embedding: deque[list[int]] = deque()

    def begin() -> None:
        found = [(place, loaded.result().value) for place, loaded in loading.popleft()]
        good = [(place, value) for place, value in found if not isinstance(value, QueryError)]
        if good:
            batches.submit([pixels for _, pixels in good])
            embedding.append([place for place, _ in good])

    def take() -> None:
        places, batch = embedding.popleft(), batches.take()
        features[places] = batch.features
        valid[places] = [error is None for error in batch.errors]

    started = time.perf_counter()
    try:
        with ThreadPoolExecutor(cores, "decode") as threads:
            for start in range(0, len(paths), engine.batch_size):
                part = enumerate(paths[start : start + engine.batch_size], start)
                loading.append([(n, threads.submit(load, path, recipe, decode)) for n, path in part])
                if len(loading) > engine.streams:
                    begin()
                if len(embedding) > engine.streams:
                    take()
            while loading:
                begin()
            while embedding:
                take()
    finally:
        batches.close()
    return _Embedded(choice, engine.spec, features, valid, len(paths) / (time.perf_counter() - started))


def _judged(
    collection: Collection,
    images: Items,
    tried: Mapping[str, _Embedded | str],
    presets: Mapping[str, Settings],
    k: int,
    seed: int,
) -> Iterator[Trial]:
    valid = np.all([each.valid for each in tried.values() if isinstance(each, _Embedded)], axis=0)
    if not valid.any():
        raise OutputError(
            f"none of the {len(images)} images that were drawn can be read below "
            f"{collection.manifest.input_root}: bring the images back to try presets on them"
        )
    images = images[valid]
    before: Values | None = None
    for name, each in tried.items():
        if isinstance(each, str):
            yield _row(name, presets[name], len(images), note=each), None
            continue
        rows = each.features[valid].astype(np.float32)
        found = ranked_precisions(collection, images, rows @ rows.T, k)
        row = _row(name, {key: getattr(each.choice, key) for key in _KEYS}, len(images))
        row = replace(row, image_size=each.spec.image_size, images_per_second=each.rate)
        if found is not None:
            before = found if before is None else before
            row = replace(
                row,
                queries=len(found),
                p_at_k=float(found.mean()),
                interval=mean_interval(found, seed),
                gain=float((found - before).mean()),
                gain_interval=bootstrap_interval(found - before, seed),
            )
        yield row, found


def _row(name: str, settings: Settings, images: int, note: str = "") -> PresetRow:
    side = settings["image_size"]
    return PresetRow(
        preset=name,
        pooling=settings["pooling"],
        resize=settings["resize"],
        image_size=side and (side, side),
        mirror=settings["mirror"],
        images=images,
        note=note,
    )
