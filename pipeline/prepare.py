"""What a build checks and settles before its pipeline runs."""

import os
import time
from dataclasses import replace

import numpy as np

from imgindex import storage
from imgindex.config import Config
from imgindex.embed import load_image
from imgindex.errors import InputError, OutputError, UsageError
from imgindex.generation import Output, current_name, new_name, read_manifest
from imgindex.listing import is_inside, list_images
from imgindex.models.engines import EngineChoice, available_cores, choose_engine, load_engine
from imgindex.models.preprocess import Pixels
from imgindex.publish import Plan
from imgindex.records import Failure, ImageFile


def resolve(config: Config) -> Config:
    """`config` with absolute paths. Raises UsageError where one is missing or holds the other."""
    source, target = _absolute("input", config.input), _absolute("output", config.output)
    if is_inside(target, source):
        raise UsageError(
            f"--output {config.output} lies inside --input {config.input}; choose a directory outside it"
        )
    return replace(config, input=source, output=target)


def _absolute(name: str, path: str | None) -> str:
    if not path:
        raise UsageError(f"no {name}: give --{name} or `{name}:` in the config file")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"--{name} {path!r} is not valid UTF-8; rename it") from error
    return os.path.abspath(os.path.expanduser(path)) if storage.is_local(path) else path


def check_input(config: Config) -> None:
    """Raises InputError where the input does not exist or holds no images."""
    source, extensions = str(config.input), config.images.extensions
    if not any(isinstance(found, ImageFile) for found in list_images(source, extensions)):
        raise InputError(
            f"--input {source} holds no images; looked for files that end in {', '.join(extensions)}"
        )


def check_writable(output: str) -> None:
    """Raises OutputError where a file cannot be written to `output` and deleted again."""
    probe = storage.join(output, ".imgindex-probe")
    storage.write_bytes(probe, b"")
    storage.delete(probe)


def make_plan(config: Config, threads: int | None) -> Plan:
    """The plan of a build of a resolved config, on workers of `threads`. Loads the backbone."""
    started = time.time()
    output = Output(str(config.output))
    previous, previous_items = _live_generation(output)
    choice = engine_choice(config)
    spec = load_engine(choice, threads or available_cores()).spec
    return Plan(
        config=config,
        input=str(config.input),
        output=output,
        generation=new_name(spec.digest),
        previous=previous,
        previous_items=previous_items,
        spec=spec,
        engine=choice,
        threads=threads,
        started=started,
        prepared=time.time(),
    )


def _live_generation(output: Output) -> tuple[str | None, int]:
    """The live generation and how many images it holds. Raises OutputError where it is damaged."""
    name = current_name(output)
    if name is None:
        return None, 0
    try:
        return name, int(read_manifest(output, name)["ledger"]["indexed"])
    except OutputError as error:
        raise OutputError(f"{error}; restore it, or delete {output.current} to start without it") from error


def engine_choice(config: Config) -> EngineChoice:
    """The engine for `config`; what it leaves open is settled on the input's first images."""
    backbone = config.backbone
    return choose_engine(
        backbone.name,
        backbone.weights,
        backbone.pooling,
        backbone.image_size,
        engine=config.engine.name,
        precision=config.engine.precision,
        batch_size=config.engine.batch_size,
        sample=lambda size, count: _first_images(config, size, count),
    )


def _first_images(config: Config, size: tuple[int, int], count: int) -> Pixels:
    """At most `count` images of the input that can be decoded, [n, height, width, 3]."""
    pixels: list[Pixels] = []
    for file in list_images(str(config.input), config.images.extensions):
        if len(pixels) == count:
            break
        if isinstance(file, Failure):
            continue
        loaded = load_image(file, size, config.images)
        if not isinstance(loaded, Failure):
            pixels.append(loaded[1])
    return np.array(pixels, np.uint8).reshape(-1, *size, 3)
