"""What runs a backbone on this machine, and how well it agrees with float32."""

import numpy as np

from imgindex.commands.doctor.findings import Finding
from imgindex.commands.sample_images import PAINTERS
from imgindex.models.applications import BUNDLED_NAME
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.registry import engine_factory, engine_names
from imgindex.models.engines.selection import MIN_COSINE, choose_engine
from imgindex.models.engines.tensorflow import gpu_driver, has_gpu
from imgindex.models.preprocess import Pixels, upright_rgb
from imgindex.models.resizing import Resizing
from imgindex.runtime.resources import available_cores


def check_engine() -> Finding:
    """Chooses and runs an engine for the bundled backbone, as a build with `engine: auto` would.

    Raises ImgindexError where none can be loaded.
    """
    choice = choose_engine(
        BUNDLED_NAME, "bundled", "avg", None, engine="auto", precision="auto", batch_size=None, sample=_paint
    )
    engine = load_engine(choice, available_cores())
    features = embed_all(engine, _paint(engine.spec.resizing, 1))
    found = f"{choice.engine} {choice.precision} for {BUNDLED_NAME}"
    if not np.isfinite(features).all() or not features.any():
        return Finding("problem", "engine", f"{found} gives no features", "set engine.name to another")
    if choice.cosine is None:
        return Finding("ok", "engine", f"{found}; there is no smaller precision on this CPU")
    compared = f"a smaller precision agrees with float32 to a cosine of {choice.cosine:.4f}"
    return Finding("ok", "engine", f"{found}; {compared}, where {MIN_COSINE} are asked for")


def _paint(resizing: Resizing, count: int) -> Pixels:
    """At most `count` pictures, [n, height, width, 3]: noise is no measure of what rounding does."""
    height, width = resizing.size
    painters = list(PAINTERS.values())[:count]
    painted = [paint(np.random.default_rng(n), (2 * width, 2 * height)) for n, paint in enumerate(painters)]
    return np.stack([upright_rgb(picture, resizing) for picture in painted])


def check_cache() -> Finding:
    """Where converted models are kept; the check of the engine has written there."""
    caches = [engine_factory(name).cache() for name in engine_names()]
    kept = " and ".join(str(cache) for cache in caches if cache is not None)
    return Finding("ok", "cache", f"converted models are kept in {kept}")


def check_gpu() -> Finding:
    """Whether TensorFlow sees the GPU of a machine that has one."""
    if not gpu_driver():
        return Finding("ok", "gpu", "none, the CPU is used")
    if has_gpu():
        return Finding("ok", "gpu", "TensorFlow sees one")
    return Finding(
        "warning", "gpu", "there is a driver, but TensorFlow sees no GPU; the CPU is used",
        "pip install 'tensorflow[and-cuda]'",
    )  # fmt: skip
