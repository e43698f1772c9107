"""What a build would do and cost, without doing it."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from imgindex.config import Config
from imgindex.errors import DamagedError
from imgindex.features import feature_store, known_failures
from imgindex.features.embedder import UnitEmbedder
from imgindex.features.key_hashes import Keys, key_of, places, sorted_keys
from imgindex.generations.layout import Output, current_name
from imgindex.indexing.shard_backend import SEARCHES, settings_to_try
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import selection_of
from imgindex.inputs.skipped import described, most_frequent
from imgindex.io import content_addressed
from imgindex.job import costs
from imgindex.job.costs import Workload
from imgindex.job.prepare import check_input, engine_choice, resolve
from imgindex.models.engines.loading import load_engine, load_smaller_engine
from imgindex.models.engines.protocol import Engine, EngineChoice
from imgindex.records import Failure, ImageFile, KnownFailure, StoredImage
from imgindex.runtime.resources import available_cores
from imgindex.text import counted, human_bytes

# How many images are embedded to tell how fast this machine is.
_TRIAL_BATCHES = 2

# Files of the listing that are held at once.
_BATCH_FILES = 65_536


@dataclass
class Counted:
    """What a listing comes to against the store."""

    files: int = 0
    bytes: int = 0
    uri_bytes: int = 0
    unusable: int = 0
    found: int = 0
    failed: int = 0
    missing: int = 0
    trial: list[ImageFile] = field(default_factory=list)  # the first that are missing


def describe_build(config: Config, retry_failed: bool = False, rehash: bool = False) -> str:
    """Counts, the plan and estimates of building with `config`. Writes nothing to the output.

    Raises what `imgindex.build` raises before it starts.
    """
    config = resolve(config)
    check_input(config)
    choice = engine_choice(config)
    engine = load_engine(choice, available_cores())
    output = Output(str(config.output))
    directory = output.store(engine.spec.digest)
    damaged: list[str] = []
    limits = config.images
    stored = _keys_in(
        content_addressed.names(directory),
        lambda name: feature_store.read_keys(directory, name, engine.feature_dim, limits),
        damaged,
    )
    remembered = [] if retry_failed else known_failures.names(directory)
    known = _keys_in(
        remembered,
        lambda name: filter(known_failures.is_final, known_failures.read(directory, name, limits)),
        damaged,
    )
    skipped: Counter[str] = Counter()
    listed = list_images(str(config.input), selection_of(limits), skipped)
    found = count(listed, stored, known, _TRIAL_BATCHES * engine.streams * engine.batch_size)
    rate, embedding = _trial(choice, found, config)
    work = _workload(config, found, engine, rate)
    lines = [
        ("input", f"{config.input}: {counted(found.files, 'image')}, {human_bytes(found.bytes)}"),
        ("unusable", f"{found.unusable}, which listing already finds unusable"),
        *((("skipped", described(most_frequent(skipped))),) if skipped else ()),
        ("live", current_name(output) or f"nothing is published in {config.output} yet"),
        ("backbone", f"{engine.spec.backbone}, spec {engine.spec.digest}"),
        ("engine", f"{engine.name} {engine.precision}, batches of {engine.batch_size}"),
        ("to embed", f"{found.missing}; {found.found} are in the store, {found.failed} failed before"),
        *(
            [("rehash", "all files would be read; those that have new bytes are embedded, too")]
            if rehash
            else []
        ),
        *(("damaged", f"{name}, which would be dropped from the store") for name in damaged),
        ("time", embedding),
        *_costs(work, rate),
        ("dry run", "nothing was written"),
    ]
    return "\n".join(f"{key:<12} {text}" for key, text in lines)


def _key(image: ImageFile | StoredImage | KnownFailure) -> int:
    return key_of(image.size, image.version, image.uri)


def _keys_in(
    names: Iterable[str],
    read: Callable[[str], Iterable[StoredImage | KnownFailure]],
    damaged: list[str],
) -> Keys:
    """The keys of what files of the store hold, as `read` gives it; adds damaged files to `damaged`."""

    def held() -> Iterator[StoredImage | KnownFailure]:
        for name in names:
            try:
                yield from read(name)
            except DamagedError:
                damaged.append(name)

    return sorted_keys(map(_key, held()))


def count(listed: Iterable[ImageFile | Failure], stored: Keys, known: Keys, trial: int) -> Counted:
    """Counts a listing, of which a part at a time is held, against the sorted keys of a store.

    At most `trial` of the files that are to be embedded are kept.
    """
    counted = Counted()
    listed = iter(listed)
    while batch := list(islice(listed, _BATCH_FILES)):
        files = [one for one in batch if isinstance(one, ImageFile)]
        counted.unusable += len(batch) - len(files)
        counted.files += len(files)
        counted.bytes += sum(file.size for file in files)
        counted.uri_bytes += sum(len(file.uri.encode()) for file in files)
        keys = np.fromiter(map(_key, files), np.uint64)
        found = places(keys, stored) >= 0
        failed = ~found & (places(keys, known) >= 0)
        missing = ~(found | failed)
        counted.found += int(found.sum())
        counted.failed += int(failed.sum())
        counted.missing += int(missing.sum())
        room = trial - len(counted.trial)
        counted.trial += [files[number] for number in np.flatnonzero(missing)[:room]]
    return counted


def _trial(choice: EngineChoice, counted: Counted, config: Config) -> tuple[float | None, str]:
    """Images a second, measured by embedding a few of them, and what that says of all; None where unknown."""
    if not counted.missing:
        return None, "nothing to embed"
    cores = available_cores()
    engine = load_engine(choice, cores)
    trial = counted.trial
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
        return None, f"unknown: none of the first {len(trial)} images can be embedded"
    seconds = counted.missing / rate
    return rate, f"about {seconds:.0f} s to embed, at {rate:.1f} images/s on {len(trial)} of them"


def _workload(config: Config, counted: Counted, engine: Engine, rate: float | None) -> Workload:
    dims = config.pca.dims if isinstance(config.pca.dims, int) else engine.feature_dim
    return Workload(
        images=counted.files,
        new=counted.missing,
        embed_seconds=available_cores() / rate if rate else 0.0,
        feature_dim=engine.feature_dim,
        # As many components as the rank of the features, less their mean.
        dims=max(1, min(dims, engine.feature_dim, counted.files - 1)),
        trees=settings_to_try(config.index)[-1]["trees"],
        items_per_shard=config.index.items_per_shard,
        uri_bytes=counted.uri_bytes / counted.files,
    )


def _costs(work: Workload, rate: float | None) -> list[tuple[str, str]]:
    """The model of docs/scaling.md for `work`."""
    elapsed = costs.elapsed_seconds(work, available_cores(), in_process=True)
    if rate is None:
        del elapsed["embed"]
    stages = ", ".join(f"{stage} {seconds:.3g}" for stage, seconds in elapsed.items())
    stored = costs.stored_bytes(work)
    new = stored["store"] * work.new // work.images
    needed = costs.worker_bytes(work)
    asked = [costs.nodes_asked(work, search["search_k"]) for search in (SEARCHES[0], SEARCHES[-1])]
    worker, shard, on_disk = (
        human_bytes(size)
        for size in (max(needed["embed"], needed["join"]), needed["shard"], needed["shard on disk"])
    )
    kinds = ("index", "metadata", "basis", "manifest")
    index, metadata, basis, manifest = (human_bytes(stored[kind]) for kind in kinds)
    total = human_bytes(new + sum(stored[kind] for kind in kinds))
    return [
        ("stages", f"about {sum(elapsed.values()):.0f} s in this process: {stages}"),
        ("store", f"about {human_bytes(new)} more, {human_bytes(stored['store'])} in all"),
        ("index", f"{counted(work.shards, 'shard')} of {counted(work.dims, 'dimension')}, about {index}; "
                  f"{metadata} of metadata, {basis} of PCA basis, {manifest} of manifest"),
        ("disk", f"about {total} more in all, and {human_bytes(stored['parts'])} of vectors until it is "
                 "published"),
        ("network", f"about {human_bytes(costs.shuffled_bytes(work))} between workers, if there are several"),
        ("queries", f"each looks at {asked[0]:,} to {asked[1]:,} nodes of the index, as the recall needs"),
        ("memory", f"about {human_bytes(costs.in_process_bytes(work))} in this process, plus its shards"),
        ("  a worker", f"about {worker} on a cluster, plus its shards"),
        ("  a shard", f"{shard} while it is built; where that is too much, {on_disk} on disk"),
    ]  # fmt: skip
