"""Evaluates a generation: reads it and the store once, and measures everything that is asked for."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imgindex.errors import UsageError
from imgindex.evaluation.advice import advise, advise_presets, why_none
from imgindex.evaluation.collection import Collection, read_collection
from imgindex.evaluation.comparison import ASKED, SECONDS, Comparison, Limits, families_named
from imgindex.evaluation.feature_search import search_features
from imgindex.evaluation.ladder import Ladder
from imgindex.evaluation.notes import TOO_FEW, notes_on
from imgindex.evaluation.preset_trials import presets_named, settings_of, try_presets
from imgindex.evaluation.quality import measure_quality
from imgindex.evaluation.results import Advice, Evaluation, Rung
from imgindex.evaluation.sampling import some_of
from imgindex.evaluation.similarity_measures import MOST_IMAGES, rank_by_measures
from imgindex.evaluation.sweep import WHITENINGS, sweep, time_points
from imgindex.evaluation.unseen import measure_unseen
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.measures import ALSO_CALLED, MEASURES

DIMS = (1, 2, 5, 10, 20, 50, 100, 150, 200)

# Queries that are sampled unless it is said how many: as many as make this many comparisons, within the
# limits.
_COMPARISONS = 10**9
_MOST, _LEAST = 10_000, 1_000

# Ranks that P@k and recall@k look at, at most.
_MOST_RANKS = 1_000


def evaluate(
    output: str | Path,
    *,
    generation: str | None = None,
    k: int = 4,
    dims: Sequence[int] = DIMS,
    sample: int | None = None,
    seed: int = 0,
    compare: bool | Sequence[str] = False,
    compare_seconds: float = SECONDS,
    measures: Sequence[str] = (),
    presets: bool | Sequence[str] = False,
    model: str | Path | None = None,
) -> Evaluation:
    """Measures how good a generation is, and what other settings would change.

    It reads the generation, the live one by default, and the store; without `measures` and `presets` neither
    the backbone nor the images are needed.

    Args:
      output: the index's directory.
      generation: the generation's name.
      k: the ranks that P@k and recall@k look at.
      dims: numbers of dimensions that the sweep tries; those that the features do not have are left out.
      sample: how many images are queries at most; by default 10,000, and fewer of more than 100,000 images.
      seed: draws the samples.
      compare: the kinds of indexes that are compared in the vectors, by the names of
        `imgindex.models.ann.families`; True is all of them.
      compare_seconds: how long the process of each may take.
      measures: similarity measures to compare on pixels, features and vectors: l1, l2, mse, cosine, ncc. They
        are compared on 1,000 images at most, or on `sample`. This needs the images themselves.
      presets: shipped configs whose settings of the features are tried with the index's backbone: fast,
        keras, recommended, accurate; True is all of them. 1,000 images with labels at most, or `sample`, are
        embedded with each. This needs the images and the backbone.
      model: where the file of the backbone is, as for `Index.open`.

    Raises:
      UsageError: an argument is out of range.
      OutputError: the generation or the store cannot be read.
    """
    return evaluate_in(
        output,
        generation=generation,
        k=k,
        dims=dims,
        sample=sample,
        seed=seed,
        compare=compare,
        compare_seconds=compare_seconds,
        measures=measures,
        presets=presets,
        model=model,
    )[0]


def evaluate_in(
    output: str | Path,
    *,
    generation: str | None = None,
    k: int = 4,
    dims: Sequence[int] = DIMS,
    sample: int | None = None,
    seed: int = 0,
    compare: bool | Sequence[str] = False,
    compare_seconds: float = SECONDS,
    measures: Sequence[str] = (),
    presets: bool | Sequence[str] = False,
    model: str | Path | None = None,
) -> tuple[Evaluation, Collection]:
    """As `evaluate`; gives also the images, so that a page about them need not open the generation again."""
    for name, value, least, most in [
        ("k", k, 1, _MOST_RANKS),
        ("sample", 1 if sample is None else sample, 1, 2**31 - 1),
        ("seed", seed, 0, 2**31 - 1),
        *(("a number of dims", each, 1, 65_536) for each in dims),
    ]:
        if not least <= value <= most:
            raise UsageError(f"{name} is {value}; expected a whole number from {least} to {most}")
    if not compare_seconds > 0:
        raise UsageError(f"compare_seconds is {compare_seconds:g}; expected more than 0")
    families = families_named(["all"] if compare is True else compare or [])
    tried = presets_named(["all"] if presets is True else presets or [])
    unknown = sorted({*measures} - {*MEASURES})
    if unknown:
        meant = ALSO_CALLED.get(unknown[0].lower())
        hint = f"; did you mean {meant!r}?" if meant else f"; expected some of {', '.join(MEASURES)}"
        raise UsageError(f"measures has {unknown[0]!r}{hint}")
    steps = 6 + len({*dims}) + len(WHITENINGS) + len(tried) + bool(tried)
    quiet = not sys.stderr.isatty()
    with tqdm(total=steps, desc="evaluating", unit=" steps", disable=quiet, leave=False) as bar:
        collection = read_collection(output, generation)
        bar.update()
        usual = max(_LEAST, min(_MOST, _COMPARISONS // len(collection)))
        queries = some_of(np.arange(len(collection)), sample or usual, seed)
        quality = measure_quality(collection, queries, k, seed)
        bar.update()
        unseen = measure_unseen(collection, seed)
        bar.update()
        ladder: tuple[Rung, ...] = ()
        points = []
        notes = [TOO_FEW]
        advice: tuple[Advice, ...] = ()
        no_advice = "there are too few images"
        if len(collection.sha256) > 1:
            wide = max([collection.manifest.dims, *dims])
            features = search_features(collection, queries, max(k, RECALL_K), wide)
            bar.update()
            seconds = unseen.build_seconds if unseen else None
            ladder = Ladder(collection, queries, features, k, seed).rungs(seconds)
            bar.update()
            for point in sweep(collection, queries, features, k, dims):
                points.append(point)
                bar.update()
            asked = () if dims is DIMS else dims
            swept = [point for point, _ in points]
            notes = [*notes_on(collection, quality, swept, asked, features.basis.dims)]
            no_advice = why_none(quality)
            trusted = [] if no_advice else points
            advice = advise(collection, trusted, features.vectors, unseen, k, seed)
            points = time_points(collection, queries, features, k, points)  # the last to need the vectors
        ranked = rank_by_measures(collection, measures, sample or MOST_IMAGES, k, seed) if measures else ()
        trials = []
        if tried:
            trials = try_presets(
                collection,
                {name: settings_of(name) for name in tried},
                sample=sample or MOST_IMAGES,
                k=k,
                seed=seed,
                model=None if model is None else str(model),
                advance=bar.update,
            )
            advice = (*advice, *advise_presets(collection, trials, k, seed))
        comparison = Comparison(collection, some_of(queries, ASKED, seed), families, Limits(compare_seconds))
        bar.total = steps + len(comparison.trials)
        compared = comparison.run(bar.update)
    found = Evaluation(
        output=collection.output.root,
        generation=collection.manifest.generation,
        images=len(collection),
        distinct=len(collection.sha256),
        queries=len(queries),
        seed=seed,
        k=k,
        metric=collection.manifest.metric,
        dims=collection.manifest.dims,
        whiten=float(collection.basis.whiten),
        feature_dim=collection.manifest.feature_dim,
        quality=quality,
        ladder=ladder,
        sweep=tuple(point for point, _ in points),
        unseen_recall=unseen,
        notes=tuple(notes),
        advice=advice,
        no_advice=no_advice,
        compare=compared,
        measures=tuple(ranked),
        presets=tuple(row for row, _ in trials),
    )
    return found, collection
