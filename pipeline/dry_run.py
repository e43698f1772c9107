"""What a build would do, without doing it."""

import time
from functools import partial

from imgindex import chunks, failures, store
from imgindex.config import Config
from imgindex.embed import UnitEmbedder
from imgindex.errors import DamagedError
from imgindex.generation import Output, current_name
from imgindex.listing import list_images
from imgindex.models.annoy_index import AUTO_TREES, estimate_bytes
from imgindex.models.engines import EngineChoice, available_cores, load_engine, load_smaller_engine
from imgindex.prepare import check_input, engine_choice, resolve
from imgindex.records import ImageFile, KnownFailure, StoredImage
from imgindex.shards import shard_count_of
from imgindex.summary import human_bytes

# How many images are embedded to tell how fast this machine is.
_TRIAL_BATCHES = 2


def describe_build(config: Config, retry_failed: bool = False) -> str:
    """Counts, the plan and estimates of building with `config`. Writes nothing to the output.

    Raises what `imgindex.build` raises before it starts.
    """
    config = resolve(config)
    check_input(config)
    choice = engine_choice(config)
    engine = load_engine(choice, available_cores())
    listed = list(list_images(str(config.input), config.images.extensions))
    files = [item for item in listed if isinstance(item, ImageFile)]
    output = Output(str(config.output))
    directory = output.store(engine.spec.digest)
    stored: list[StoredImage] = []
    damaged = []
    for chunk in chunks.names(directory):
        try:
            stored += store.read_keys(directory, chunk, engine.feature_dim)
        except DamagedError:
            damaged.append(chunk)
    known: list[KnownFailure] = []
    for name in [] if retry_failed else failures.names(directory):
        try:
            known += failures.read(directory, name)
        except DamagedError:
            damaged.append(name)
    missing, found = store.diff(files, stored)
    missing, failed = failures.split(missing, known)
    dims = config.pca.dims if isinstance(config.pca.dims, int) else engine.feature_dim
    dims = min(dims, engine.feature_dim, len(files))
    shards = shard_count_of(len(files), config.index.items_per_shard)
    trees = config.index.trees if isinstance(config.index.trees, int) else max(AUTO_TREES)
    index_bytes = estimate_bytes(len(files), dims, trees)
    image_bytes = sum(file.size for file in files)
    lines = [
        ("input", f"{config.input}: {len(files)} images, {human_bytes(image_bytes)}"),
        ("unusable", f"{len(listed) - len(files)} found by listing"),
        ("live", current_name(output) or f"nothing is published in {config.output} yet"),
        ("backbone", f"{engine.spec.backbone}, spec {engine.spec.digest}"),
        ("engine", f"{engine.name} {engine.precision}, batches of {engine.batch_size}"),
        ("to embed", f"{len(missing)}; {len(found)} are in the store, {len(failed)} failed before"),
        *(("damaged", f"{chunk}, which would be dropped from the store") for chunk in damaged),
        ("time", _estimated_time(choice, missing, config)),
        ("store", f"about {human_bytes(len(missing) * 2 * engine.feature_dim)} more"),
        ("index", f"{shards} shards of {dims} dimensions, about {human_bytes(index_bytes)}"),
        ("dry run", "nothing was written"),
    ]  # fmt: skip
    return "\n".join(f"{key:<12} {text}" for key, text in lines)


def _estimated_time(choice: EngineChoice, missing: list[ImageFile], config: Config) -> str:
    """How long embedding takes, measured by embedding a few of the images."""
    if not missing:
        return "nothing to embed"
    cores = available_cores()
    engine = load_engine(choice, cores)
    trial = missing[: _TRIAL_BATCHES * engine.streams * engine.batch_size]
    with UnitEmbedder(
        engine,
        partial(load_smaller_engine, choice, cores),
        config.images,
        cores,
        write=lambda rows, features: (),
        advance=lambda count: None,
    ) as embedder:
        _ = [*embedder.embed(trial[:cores]), *embedder.finish()]  # the first call of everything is slower
        started = time.monotonic()
        units = [*embedder.embed(trial), *embedder.finish()]
    rate = len(trial) / (time.monotonic() - started)
    if sum(len(unit.failures) for unit in units) == len(trial):
        return f"unknown: none of the first {len(trial)} images can be embedded"
    return f"about {len(missing) / rate:.0f} s to embed, at {rate:.1f} images/s on {len(trial)} of them"
