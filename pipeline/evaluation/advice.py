"""Which settings would be better, by what the sweep and the recall of unseen queries show."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from imgindex.config import Config
from imgindex.evaluation.collection import Collection
from imgindex.evaluation.index_size import Sizes
from imgindex.evaluation.preset_trials import Trial, settings_of
from imgindex.evaluation.results import Advice, PresetRow, Quality, SweepPoint, UnseenRecall
from imgindex.models.pca import WHITENED_IMAGES
from imgindex.models.retrieval_metrics import bootstrap_interval
from imgindex.text import human_bytes

Float32 = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
# A point of the sweep with the P@k of every judged query, which is None without labels.
Judged = tuple[SweepPoint, Values]
Points = Sequence[tuple[SweepPoint, Values | None]]

# A smaller index may cost this much of P@k; a larger or another one must gain this much. In P@k, from 0 to 1.
_TOLERATED = 0.002
_WORTH = 0.002
# A smaller index is worth a new build if it shrinks by this share.
_SHRINKS = 0.05
# Fewer queries cannot tell settings apart: half a point is less than one query of them.
LEAST_QUERIES = 100

# A preset costs no more if a machine embeds this share of the images in the same time.
_AS_CHEAP = 0.9

# As the config takes them.
_MOST_TREES = 10_000


def advise(
    collection: Collection, points: Points, vectors: Float32, unseen: UnseenRecall | None, k: int, seed: int
) -> tuple[Advice, ...]:
    """What to change in the config; nothing where nothing is gained.

    A change of P@k counts where the 95 % interval of the difference, query by query, lies on one side of
    zero. `vectors` [n, dims] are those of the sweep, with the most dimensions. Whether the figures allow for
    advice on PCA settings, `why_none` says.
    """
    settings: tuple[Advice, ...] = ()
    now = _now(collection, points)
    if now is not None and not collection.manifest.settings.pca.whiten:
        judged = [(point, each) for point, each in points if each is not None]
        sizes = Sizes(collection, vectors)
        settings = (
            *_dims(collection, judged, now, sizes, k, seed),
            *_whitening(collection, judged, now, k, seed),
        )
    return (*settings, *_recall(collection, unseen))


def advise_presets(collection: Collection, trials: Sequence[Trial], k: int, seed: int) -> Iterator[Advice]:
    """The preset that gains most, and the one that gains most at no higher price, where these are others.

    `trials` begin with the index's own settings. A gain counts as in `advise`.
    """
    judged = [(row, found) for row, found in trials if found is not None]
    if not judged or len(judged[0][1]) < LEAST_QUERIES:
        return
    (own, now), *others = judged
    better = [(row, found) for row, found in others if _is_better(found, now, seed)]
    better.sort(key=lambda each: -float(each[1].mean()))
    as_cheap = [each for each in better if _relative_rate(each[0], own) >= _AS_CHEAP]
    advised = [*better[:1], *as_cheap[:1]]
    backbone = collection.manifest.config["backbone"]
    for row, found in advised if len(advised) < 2 or advised[0][0] != advised[1][0] else advised[:1]:
        settings = settings_of(row.preset)
        config = {**collection.manifest.config, "backbone": {**backbone, **settings}}
        words = ", ".join(f"{key} {_as_yaml(value)}" for key, value in settings.items())
        yield Advice(
            "backbone",
            row.preset,
            f"backbone: {row.preset} ({words}): {_gain(found, now, k, seed)}, at "
            f"{_relative_rate(row, own):.2f} times as many images a second; every image is embedded again",
            _command(collection, _changed(config)),
        )


def _relative_rate(row: PresetRow, own: PresetRow) -> float:
    return (row.images_per_second or 0.0) / (own.images_per_second or 1.0)


def why_none(quality: Quality | None) -> str:
    """Why no PCA setting can be advised; nothing if one can be."""
    if quality is None:
        return "there are no labels to compare settings by"
    if quality.queries < LEAST_QUERIES:
        return f"comparing settings takes at least {LEAST_QUERIES} queries, and there are {quality.queries}"
    if quality.k > quality.median_others:
        return f"k is {quality.k}, which is too large for these labels; choose a smaller --k"
    return ""


def _now(collection: Collection, points: Points) -> Judged | None:
    """The point that has the settings of an index that is not whitened; None without labels."""
    for point, judged in points:
        if point.whiten == 0 and point.dims == collection.manifest.dims and judged is not None:
            return point, judged
    return None


def _dims(
    collection: Collection, points: Sequence[Judged], now: Judged, sizes: Sizes, k: int, seed: int
) -> Iterator[Advice]:
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
        before, after = sizes.of(now[0].dims), sizes.of(point.dims)
        change = after / before - 1
        if point.dims > now[0].dims or change <= -_SHRINKS:
            yield _advice(
                collection,
                "pca.dims",
                str(point.dims),
                f"{_gain(judged, now[1], k, seed)}, recall@10 {point.recall_at_10:.3f} (now "
                f"{now[0].recall_at_10:.3f}), {abs(change):.0%} {'less' if change < 0 else 'more'} to hold: "
                f"{human_bytes(after)} of Annoy files and metadata (now {human_bytes(before)})",
            )


def _whitening(
    collection: Collection, points: Sequence[Judged], now: Judged, k: int, seed: int
) -> Iterator[Advice]:
    better = [
        (float((judged - now[1]).mean()), point, judged)
        for point, judged in points
        if point.whiten
        and len(collection) >= WHITENED_IMAGES * point.dims  # a build would warn of it
        and _is_better(judged, now[1], seed)
    ]
    for _, point, judged in sorted(better, key=lambda each: -each[0])[:1]:
        text = f"{_gain(judged, now[1], k, seed)}, at the same cost"
        yield _advice(collection, "pca.whiten", f"{point.whiten:g}", text)


def _recall(collection: Collection, unseen: UnseenRecall | None) -> Iterator[Advice]:
    wanted = collection.manifest.settings.publish.min_recall
    now = max(shard.trees for shard in collection.manifest.shards)
    trees = min(2 * now, _MOST_TREES)
    if unseen is None or unseen.queries < LEAST_QUERIES or wanted is None:
        return
    if unseen.interval[1] < wanted and trees > now:
        yield _advice(
            collection,
            "index.trees",
            str(trees),
            f"recall@10 is {unseen.recall:.3f} for images that are not in the index, and publish.min_recall "
            f"is {wanted:g}; more trees find more, in a larger file",
        )


def _is_better(judged: Values, now: Values, seed: int) -> bool:
    difference = judged - now
    return float(difference.mean()) >= _WORTH and bootstrap_interval(difference, seed)[0] > 0


def _gain(judged: Values, now: Values, k: int, seed: int) -> str:
    difference = 100 * (judged - now)
    low, high = bootstrap_interval(difference, seed)
    return f"{difference.mean():+.1f} points of P@{k} (95 % interval {low:+.1f} to {high:+.1f})"


def _advice(collection: Collection, setting: str, value: str, text: str) -> Advice:
    manifest = collection.manifest
    command = _command(collection, _changed(manifest.config) | {setting: value})
    return Advice(setting, value, f"{setting}: {value}: {text}", command)


def _command(collection: Collection, changed: Mapping[str, str]) -> str:
    """What builds the index again with other settings than the defaults, as `--set` takes them."""
    manifest = collection.manifest
    words = ["imgindex", "build", "--input", manifest.settings.input, "--output", collection.output.root]
    words += [word for key, text in changed.items() for word in ("--set", f"{key}={text}")]
    return shlex.join(words)


def _changed(config: Mapping[str, Any]) -> dict[str, str]:
    """What a build's config has changed of the defaults, as `--set` takes it."""
    # Through JSON, so that tuples are lists, as in the config.
    defaults = json.loads(json.dumps(asdict(Config())))
    return {
        f"{section}.{key}": _as_yaml(value)
        for section, values in defaults.items()
        if isinstance(values, dict)
        for key, value in config.get(section, {}).items()
        if key in values and value != values[key]
    }


def _as_yaml(value: Any) -> str:
    """A value as it may stand on a command line: a plain text where YAML reads it as that."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value)
