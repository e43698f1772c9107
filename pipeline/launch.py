"""Builds an index: checks what can be checked at once, then runs the pipeline."""

import logging
import re
import time
from typing import Any

import numpy as np
from apache_beam import Pipeline
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from imgindex import errors, storage
from imgindex.assembly import assemble
from imgindex.config import Config
from imgindex.embed import load_image
from imgindex.errors import ImgindexError, InputError, UsageError
from imgindex.generation import Output, current_name, new_name
from imgindex.listing import is_inside, list_images
from imgindex.models.engines import EngineChoice, available_cores, choose_engine, load_engine
from imgindex.models.preprocess import Pixels
from imgindex.progress import EMBEDDING, shown
from imgindex.publish import Plan, outcome
from imgindex.records import Failure, ImageFile

logger = logging.getLogger(__name__)


def build(config: Config, options: PipelineOptions | None = None) -> dict[str, Any]:
    """Builds or refreshes the index at ``config.output`` and returns the published manifest.

    Without a runner in `options` the pipeline runs in this process, on Beam's FnApiRunner.

    Raises:
      UsageError: the config lacks an input or output, or its weights do not fit.
      InputError: the input does not exist or holds no images, or none could be indexed.
      OutputError: the output cannot be written.
      PublishRefusedError: a publish check refused; what was live before still is.
    """
    options = options or PipelineOptions([])  # without arguments it would read sys.argv
    _, target = paths_of(config)
    check_input(config)
    check_writable(target)
    plan = make_plan(config, _worker_threads(options))
    logger.info("building generation %s in %s", plan.generation, target)
    runner = options.view_as(StandardOptions).runner
    # Beam's own choice among local runners depends on what it can download, so imgindex makes it.
    pipeline = Pipeline(runner=FnApiRunner() if runner is None else None, options=options)
    assemble(pipeline, plan)
    try:
        with shown(EMBEDDING):
            pipeline.run().wait_until_finish()
        return outcome(plan)
    except BaseException as error:
        # Not what an interruption after its publication leaves: that is live, or was.
        if not storage.exists(plan.output.manifest(plan.generation)):
            storage.delete_tree(plan.directory)
        known = _known_error(error)
        if known is None:
            raise
        raise known from error


def paths_of(config: Config) -> tuple[str, str]:
    """Input and output of `config`. Raises UsageError where one is missing or holds the other."""
    if not config.input:
        raise UsageError("no input: give --input DIR or a glob")
    if not config.output:
        raise UsageError("no output: give --output DIR")
    for flag, path in (("--input", config.input), ("--output", config.output)):
        if not path.isprintable():
            raise UsageError(f"{flag} {path!r} holds bytes that are no text; name it in UTF-8")
    if is_inside(config.output, config.input):
        raise UsageError(
            f"--output {config.output} lies inside --input {config.input}; choose a directory outside it"
        )
    return config.input, config.output


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
    """The plan of a build that starts now, on workers of `threads`. Loads the backbone."""
    started = time.time()
    source, target = paths_of(config)
    output = Output(target)
    choice = engine_choice(config)
    spec = load_engine(choice, threads or available_cores()).spec
    return Plan(
        config=config,
        input=source,
        output=output,
        generation=new_name(spec.digest),
        previous=current_name(output),
        spec=spec,
        engine=choice,
        threads=threads,
        started=started,
    )


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
        sample=lambda size, count: first_images(config, size, count),
    )


def first_images(config: Config, size: tuple[int, int], count: int) -> Pixels:
    """At most `count` images of the input that can be decoded, [n, height, width, 3]."""
    limits = config.images
    pixels: list[Pixels] = []
    for file in list_images(str(config.input), limits.extensions):
        if len(pixels) == count:
            break
        if isinstance(file, Failure):
            continue
        loaded = load_image(file, size, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
        if not isinstance(loaded, Failure):
            pixels.append(loaded[1])
    return np.array(pixels, np.uint8).reshape(-1, *size, 3)


def _worker_threads(options: PipelineOptions) -> int | None:
    """The cores of a worker: a share of this machine's where all workers run on it, else all it has."""
    if options.view_as(StandardOptions).runner is not None:
        return None
    workers = options.view_as(DirectOptions).direct_num_workers or available_cores()
    return max(1, available_cores() // workers)


# What Beam makes of a worker's exception: the same with the transform at its end, or text alone.
_WHERE = re.compile(r" \[while running '[^']*'\]$", re.M)
_LAST_LINE = re.compile(r"^imgindex\.errors\.(\w+): (.*)$", re.M)


def _known_error(error: BaseException) -> ImgindexError | None:
    """The error of ours that a pipeline died of, without what Beam wrapped it in; None for others."""
    text = _WHERE.sub("", str(error))
    if isinstance(error, ImgindexError):
        return type(error)(text)
    matches = _LAST_LINE.findall(text)
    if not matches:
        return None
    name, message = matches[-1]
    known: ImgindexError = getattr(errors, name)(message)
    return known
