"""Builds an index: prepares, runs the pipeline, and says in our own errors what became of it."""

import logging
import re
from collections.abc import Collection
from typing import Any

from apache_beam import Pipeline
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineState

from imgindex import errors, storage
from imgindex.assembly import assemble
from imgindex.checks import CHECKS
from imgindex.config import Config
from imgindex.errors import ImgindexError, UsageError
from imgindex.generation import Output, delete_unfinished
from imgindex.lock import writer_lock
from imgindex.models.engines import available_cores
from imgindex.plan import Plan
from imgindex.prepare import check_input, make_plan, resolve
from imgindex.progress import EMBEDDING, shown
from imgindex.publish import Outcome, outcome

logger = logging.getLogger(__name__)


def build(
    config: Config,
    options: PipelineOptions | None = None,
    force: Collection[str] = (),
    *,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """Builds or refreshes the index at ``config.output`` and returns the live generation's manifest.

    It is the manifest of the generation that was live before where nothing has changed since. See `refresh`.
    """
    return refresh(config, options, force, retry_failed=retry_failed).manifest


def refresh(
    config: Config,
    options: PipelineOptions | None = None,
    force: Collection[str] = (),
    *,
    retry_failed: bool = False,
) -> Outcome:
    """Builds or refreshes the index at ``config.output``.

    Without a runner in `options` the pipeline runs in this process, on Beam's FnApiRunner. `force` names
    publish checks that may not refuse. Images whose bytes failed before are read again only to
    `retry_failed`, as after an update of Pillow.

    Raises:
      UsageError: the config lacks an input or output, its weights do not fit, or Beam refuses `options`.
      InputError: the input does not exist or holds no images, its storage is out of order, or no image could
        be indexed.
      OutputError: the output cannot be written, or another build is writing it.
      PublishRefusedError: a publish check refused; what was live before still is.
    """
    unknown = sorted(set(force) - set(CHECKS))
    if unknown:
        raise UsageError(f"unknown check {unknown[0]!r}; expected one of {', '.join(CHECKS)}")
    options = options or PipelineOptions([])  # without arguments it would read sys.argv
    config = resolve(config)
    pipeline = _new_pipeline(options)
    check_input(config)
    with writer_lock(str(config.output)):
        delete_unfinished(Output(str(config.output)))
        plan = make_plan(config, _worker_threads(options), force, retry_failed)
        logger.info("building generation %s in %s", plan.generation, config.output)
        assemble(pipeline, plan)
        _run(pipeline, plan)
        return outcome(plan)


def _run(pipeline: Pipeline, plan: Plan) -> None:
    result = None
    try:
        with shown(EMBEDDING):
            result = pipeline.run()
            result.wait_until_finish()
    except BaseException as error:
        _give_up(plan, result)
        known = _known_error(error)
        if known is None:
            raise
        raise known from error


def _new_pipeline(options: PipelineOptions) -> Pipeline:
    runner = options.view_as(StandardOptions).runner
    try:
        # Beam's own choice among local runners depends on what it can download, so imgindex makes it.
        return Pipeline(runner=FnApiRunner() if runner is None else None, options=options)
    except (ValueError, ImportError) as error:
        message = " ".join(str(error).split())
        raise UsageError(f"--runner {runner}: Beam refuses it: {message}") from error


def _worker_threads(options: PipelineOptions) -> int | None:
    """The cores of a worker: a share of this machine's where it runs several, None for all it has."""
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return None  # the workers of one process share one engine
    return max(1, available_cores() // (direct.direct_num_workers or available_cores()))


def _give_up(plan: Plan, result: PipelineResult | None) -> None:
    """Stops what still runs, and deletes what was written of the generation, unless it is published."""
    try:
        if result is not None and not PipelineState.is_terminal(result.state):
            result.cancel()
        # A generation that an interruption came too late for is live, or was.
        if not storage.exists(plan.output.manifest(plan.generation)):
            storage.delete_tree(plan.directory)
    except Exception:  # must not hide why the build failed
        logger.exception("could not clean up %s", plan.directory)


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
