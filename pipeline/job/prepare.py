"""What a build checks and settles before its pipeline runs."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from imgindex.config import Config
from imgindex.errors import DamagedError, InputError, UsageError
from imgindex.generations.layout import (
    Output,
    current_name,
    files_of,
    generation_names,
    new_name,
    read_manifest,
)
from imgindex.generations.manifest import Manifest, RecordedPcaSettings
from imgindex.inputs.image_reader import load_image
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import selection_of
from imgindex.inputs.skipped import described, most_frequent
from imgindex.inputs.source import input_root, is_inside
from imgindex.io import written_files
from imgindex.io.paths import absolute
from imgindex.job.live_check import faults_in
from imgindex.job.plan import Plan, Previous
from imgindex.models.decoder import DecoderProcess
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.engines.selection import choose_engine
from imgindex.models.preprocess import Pixels
from imgindex.models.resizing import Resizing
from imgindex.models.spec import Spec
from imgindex.records import Failure, ImageFile, WrittenFile
from imgindex.runtime.resources import available_cores
from imgindex.text import counted, printable

logger = logging.getLogger(__name__)


def resolve(config: Config) -> Config:
    """`config` with absolute paths. Raises UsageError where one is missing or holds the other."""
    source, target = _absolute("input", config.input), _absolute("output", config.output)
    if is_inside(target, source):
        raise UsageError(
            f"--output {config.output} lies inside --input {config.input}; choose a directory outside it"
        )
    if target.startswith("hdfs://"):
        raise UsageError(
            f"--output {target}: Beam cannot replace a file on HDFS, and a build replaces CURRENT; choose a "
            "local directory, s3:// or gs:// (hdfs:// can be an --input)"
        )
    return replace(config, input=source, output=target)


def _absolute(name: str, path: str | None) -> str:
    if not path:
        raise UsageError(f"no {name}: give --{name} or `{name}:` in the config file")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"--{name} {path!r} is not valid UTF-8; rename it") from error
    return absolute(path)


def check_input(config: Config) -> None:
    """Raises InputError where the input does not exist or holds no images."""
    source, images = str(config.input), config.images
    skipped: Counter[str] = Counter()
    failed: list[Failure] = []
    for found in list_images(source, selection_of(images), skipped):
        if isinstance(found, ImageFile):
            return
        failed = failed or [found]
    if failed:
        raise InputError(
            f"--input {source} holds no image that can be read; the first that it names, "
            f"{printable(failed[0].uri)!r}, fails with {failed[0].reason}: {printable(failed[0].message)}"
        )
    looked_for = f"looked for files that end in {', '.join(images.extensions)}"
    if skipped:
        looked_for += f", and skipped {described(most_frequent(skipped))}"
    raise InputError(f"--input {source} holds no images; {looked_for}")


def make_plan(
    config: Config,
    threads: int | None,
    force: Collection[str] = (),
    retry_failed: bool = False,
    rehash: bool = False,
) -> Plan:
    """The plan of a build of a resolved config, on workers of `threads`. Loads the backbone."""
    started = time.time()
    output = Output(str(config.output))
    name = current_name(output)
    live = read_manifest(output, name) if name else None
    damaged = _damaged(output, live, config.publish.check_live, started) if live else ()
    choice = engine_choice(config)
    engine = load_engine(choice, threads or available_cores())
    spec = engine.spec
    return Plan(
        config=config,
        input=str(config.input),
        output=output,
        generation=new_name(spec.digest),
        previous=_previous(output, live, config, spec, damaged) if live else None,
        spec=spec,
        feature_dim=engine.feature_dim,
        engine=choice,
        threads=threads,
        started=started,
        prepared=time.time(),
        force=force,
        retry_failed=retry_failed,
        rehash=rehash,
    )


def _damaged(output: Output, manifest: Manifest, budget: int, now: float) -> tuple[str, ...]:
    """The whole paths of the live generation's files in which damage is found, of which a log tells."""
    files = files_of(output, manifest)
    day = int(now // (24 * 3600))
    faults = faults_in([*files.values()], [files[manifest.basis]], budget, day)
    for fault in faults.values():
        logger.warning("damaged: %s", fault)
    if faults:
        logger.warning(
            "%s damaged: this build publishes a new one, made of the store",
            counted(len(faults), "file of the live generation is", "files of the live generation are"),
        )
    return tuple(faults)


def _previous(
    output: Output, manifest: Manifest, config: Config, spec: Spec, damaged: tuple[str, ...]
) -> Previous:
    files = files_of(output, manifest)
    before = manifest.settings
    same_spec = manifest.spec.digest == spec.digest
    pca = config.pca
    usable = same_spec and before.pca == RecordedPcaSettings(pca.dims, pca.whiten)
    basis = files[manifest.basis] if usable else None
    if basis is not None and basis.path in damaged:
        basis = _same_basis(output, basis)
    metadata = (files[shard.metadata] for shard in manifest.shards)
    return Previous(
        name=manifest.generation,
        indexed=manifest.ledger.indexed,
        failures=manifest.failures_digest,  # older manifests have none: build once more
        metadata=tuple(file for file in metadata if file.path not in damaged),
        same_recipe=usable
        and _recipe(before.index) == _recipe(asdict(config.index))
        and pca.refit != "always"
        and manifest.input_root == input_root(str(config.input))
        and not damaged,
        basis=basis,
        fitted_in=manifest.pca.fitted_in,
        fitted_images=manifest.pca.fitted_images,
        damaged=damaged,
        lost_basis=usable and basis is None,
    )


def _same_basis(output: Output, damaged: WrittenFile) -> WrittenFile | None:
    """A file of another generation that holds what the damaged basis did; None where there is none.

    A refresh keeps the basis, so that its generation has a copy.
    """
    for name in reversed(generation_names(output)):
        try:
            manifest = read_manifest(output, name)
        except DamagedError:
            continue
        file = files_of(output, manifest)[manifest.basis]
        same = (file.size, file.sha256) == (damaged.size, damaged.sha256)
        if same and written_files.fault_in(file, every_byte=True) is None:
            return file
    return None


def _recipe(index: Mapping[str, Any]) -> dict[str, Any]:
    """What of the config's section decides the index: how much memory it is built in does not."""
    return {key: value for key, value in index.items() if key != "memory"}


def engine_choice(config: Config) -> EngineChoice:
    """The engine for `config`; what it leaves open is settled on the input's first images."""
    return choose_engine(
        **asdict(config.backbone),
        engine=config.engine.name,
        precision=config.engine.precision,
        batch_size=config.engine.batch_size,
        sample=lambda resizing, count: _first_images(config, resizing, count),
        color_profile=config.images.color_profile,
    )


def _first_images(config: Config, resizing: Resizing, count: int) -> Pixels:
    """At most `count` images of the input that can be decoded, [n, height, width, 3]."""
    pixels: list[Pixels] = []
    with DecoderProcess() as decoder:
        for file in list_images(str(config.input), selection_of(config.images)):
            if len(pixels) == count:
                break
            if isinstance(file, Failure):
                continue
            loaded = load_image(file, resizing, config.images, decoder)
            if not isinstance(loaded, Failure):
                pixels.append(loaded[1])
    return np.array(pixels, np.uint8).reshape(-1, *resizing.size, 3)
