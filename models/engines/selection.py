"""Chooses an engine: what is fastest on this machine, runs the model, and agrees with float32."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from imgindex.errors import UnsupportedModelError, UsageError
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import create_engine, load_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.engines.registry import check_engine, engine_factory, engine_names
from imgindex.models.pca import normalize
from imgindex.models.preprocess import Pixels
from imgindex.models.resizing import Resizing
from imgindex.runtime.resources import available_cores

logger = logging.getLogger(__name__)

# A smaller precision is chosen by itself only where every one of the first images' features agrees with
# float32's this well.
MIN_COSINE = 0.999
_COMPARED_IMAGES = 8

# At most so many of the run's first images, [n, height, width, 3], resized so.
Sample = Callable[[Resizing, int], Pixels]


def choose_engine(
    name: str,
    weights: str,
    pooling: str,
    image_size: int | None,
    *,
    engine: str,
    precision: str,
    batch_size: int | None,
    sample: Sample,
    color_profile: str = "srgb",
    output: str | None = None,
    resize: str = "stretch",
    mirror: bool = False,
) -> EngineChoice:
    """Settles what the config leaves to `auto`: what is fastest here and agrees with float32.

    `auto` takes the first engine that runs the model, of those that use a GPU and then of the others, each in
    the order in which they are registered.

    Args:
      name, weights, pooling, image_size, output, resize, mirror: the backbone, as for `load_backbone`.
      engine, precision, batch_size: as the config has them.
      sample: gives at most so many of the run's first images, [n, height, width, 3], resized so.
      color_profile: as the config has it.

    Raises:
      UsageError: the engine does not run the backbone, or the precision is none of the engine's.
    """
    check_engine(engine, name)

    def settled(engine: str) -> EngineChoice:
        choice = EngineChoice(
            name, weights, pooling, image_size, engine, precision,
            batch_size or engine_factory(engine).batch_size(), color_profile=color_profile, output=output,
            resize=resize, mirror=mirror,
        )  # fmt: skip
        return _settle_precision(choice, sample)

    if engine != "auto":
        return settled(engine)
    able = [engine for engine in engine_names() if engine_factory(engine).runs(name)]
    *others, last = sorted(able, key=lambda name: not engine_factory(name).uses_gpu())
    for candidate in others:
        try:
            choice = settled(candidate)
            load_engine(choice, available_cores())  # it stays loaded for whoever asks next
        except UnsupportedModelError as error:
            logger.info("%s is not used: %s", candidate, error)
        else:
            return choice
    return settled(last)


def _settle_precision(choice: EngineChoice, sample: Sample) -> EngineChoice:
    """`choice` with a precision for `auto`: a smaller one, if it is faster here and agrees with float32."""
    factory = engine_factory(choice.engine)
    smaller = factory.smaller_precision()
    if choice.precision not in ("auto", "float32", smaller):
        raise UsageError(
            f"engine.precision is {choice.precision!r}; {choice.engine} on this machine runs "
            + ("float32" if smaller is None else f"float32 or {smaller}")
        )
    if choice.precision != "auto":
        return choice
    exact = replace(choice, precision="float32")
    if smaller is None or not factory.is_smaller_faster():
        return exact
    candidate = replace(choice, precision=smaller)
    cosine = _least_cosine(exact, candidate, sample)
    if cosine is None or cosine >= MIN_COSINE:
        return replace(candidate, cosine=cosine)
    logger.debug(
        "computing in float32: %s would be faster, but its features differ too much (cosine %.4f, and "
        "at least %s is wanted)", smaller, cosine, MIN_COSINE,
    )  # fmt: skip
    return replace(exact, cosine=cosine)


def _least_cosine(reference: EngineChoice, candidate: EngineChoice, sample: Sample) -> float | None:
    """The least cosine of a sample's features by both; None where nothing can be compared."""
    # One image a batch, so that the slower of the two does not fill a batch up for eight images.
    exact = create_engine(replace(reference, batch_size=1), available_cores())
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(load_engine, candidate, available_cores())
        pixels = sample(exact.spec.resizing, _COMPARED_IMAGES)
        quick = loading.result()
    if not len(pixels):
        return None
    with ThreadPoolExecutor(exact.streams) as threads:
        expected = np.concatenate(list(threads.map(exact.embed, pixels[:, np.newaxis])))
    unit, has_direction = normalize(expected)
    if not has_direction.any():
        return None
    found, _ = normalize(embed_all(quick, pixels))
    cosines = (unit.astype(np.float64) * found.astype(np.float64)).sum(axis=1)
    return float(cosines[has_direction].min())
