"""Builds an index: checks what can be checked at once, then runs the pipeline."""

import logging
import re
import time
from typing import Any

from apache_beam import Pipeline
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from imgindex import errors, storage
from imgindex.assembly import assemble
from imgindex.config import Config
from imgindex.errors import ImgindexError, InputError, UsageError
from imgindex.generation import Output, current_name, new_name
from imgindex.listing import is_inside, list_images
from imgindex.models.engines import Engine, load_engine
from imgindex.progress import EMBEDDING, shown
from imgindex.publish import Plan, outcome
from imgindex.records import ImageFile

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
    plan = make_plan(config)
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


def engine_of(config: Config) -> Engine:
    """The engine that embeds under `config`, loaded."""
    backbone = config.backbone
    return load_engine(
        backbone.name,
        backbone.weights,
        backbone.pooling,
        backbone.image_size,
        config.engine.batch_size,
    )


def make_plan(config: Config) -> Plan:
    """The plan of a build that starts now. Loads the backbone."""
    started = time.time()
    source, target = paths_of(config)
    output = Output(target)
    engine = engine_of(config)
    return Plan(
        config=config,
        input=source,
        output=output,
        generation=new_name(engine.spec.digest),
        previous=current_name(output),
        spec=engine.spec,
        engine={
            "name": engine.name,
            "precision": engine.precision,
            "batch_size": engine.batch_size,
        },
        started=started,
    )


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
