"""Builds an index: prepares, runs the pipeline, and says in our own errors what became of it."""

import contextlib
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from apache_beam import Map, Pipeline, Reshuffle
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineState

from imgindex import errors
from imgindex.config import Config
from imgindex.errors import AfterPublishError, ImgindexError, OutputError, UsageError
from imgindex.generations.layout import (
    Output,
    current_name,
    delete_unfinished,
    folders_made,
    mark_detached,
    note_if_live,
)
from imgindex.io import filesystem
from imgindex.io.output_lock import Claim, writer_lock
from imgindex.job.checks import CHECKS
from imgindex.job.graph import assemble
from imgindex.job.plan import Plan
from imgindex.job.prepare import check_input, make_plan, resolve
from imgindex.job.publish import Outcome, conclude, is_finished, outcome
from imgindex.job.runners import may_outlive, new_runner, outlives, worker_threads
from imgindex.runtime.progress import EMBEDDING, shown
from imgindex.runtime.signals import remarked, undone

logger = logging.getLogger(__name__)

_KEPT = "features that a build has stored are kept, and the next build goes on from them"


def build(
    config: Config,
    options: PipelineOptions | None = None,
    force: Collection[str] = (),
    *,
    retry_failed: bool = False,
    rehash: bool = False,
) -> dict[str, Any]:
    """Builds or refreshes the index at ``config.output`` and returns the live generation's manifest.

    It is the manifest of the generation that was live before where nothing has changed since. See `refresh`.
    """
    return refresh(config, options, force, retry_failed=retry_failed, rehash=rehash).manifest


def refresh(
    config: Config,
    options: PipelineOptions | None = None,
    force: Collection[str] = (),
    *,
    retry_failed: bool = False,
    rehash: bool = False,
) -> Outcome:
    """Builds or refreshes the index at ``config.output``.

    Without a runner in `options` the pipeline runs in this process, on Beam's FnApiRunner. `force` names
    publish checks that may not refuse. Images whose bytes failed before are read again only to
    `retry_failed`, as after an update of Pillow. With `rehash` every listed file is read, and embedded where
    its bytes are new, also where its size, times and etag are those of the last time.

    Raises:
      UsageError: the config lacks an input or output, its weights do not fit, or Beam refuses `options`.
      InputError: the input does not exist or holds no images, its storage is out of order, or no image could
        be indexed.
      OutputError: the output cannot be written, or another build is writing it.
      PublishRefusedError: a publish check refused; what was live before still is.
      AfterPublishError: the new generation is live, but what was to follow has failed, such as a read of its
        manifest.
    """
    with _planned(config, options, force, retry_failed, rehash) as (pipeline, plan, claim):
        plan = replace(plan, claim=claim, detached=may_outlive(pipeline.options))
        delete_unfinished(plan.output, claim.taken)
        if plan.detached:
            mark_detached(plan.output, plan.generation)
        assemble(pipeline, plan)
        with _published_is_published(plan), undone(partial(note_if_live, plan.output, plan.generation)):
            _run(pipeline, plan)
            return outcome(plan)


def submit(
    config: Config,
    options: PipelineOptions,
    force: Collection[str] = (),
    *,
    retry_failed: bool = False,
    rehash: bool = False,
) -> str:
    """Hands a build to a runner that goes on without this process; returns the generation's name.

    The pipeline itself fails where `refresh` would refuse. It does not hold the output's lock: of builds
    that run meanwhile the first to publish wins, and the others end without publishing. What others have
    half-written stays.

    Raises what `refresh` raises.
    """
    with _planned(config, options, force, retry_failed, rehash) as (pipeline, plan, _):
        plan = replace(plan, detached=True)
        mark_detached(plan.output, plan.generation)
        published = assemble(pipeline, plan)
        # Apart from publishing, so that a runner that retries a refusal does not publish again.
        _ = published | "Settle" >> Reshuffle() | "Conclude" >> Map(_conclude, plan)
        _run(pipeline, plan, wait=False)
        return plan.generation


def is_detached(options: PipelineOptions) -> bool:
    """Whether a build with `options` is to be submitted and not waited for."""
    # What Dataflow's template launcher runs writes the job to this location, and the launcher starts it.
    template = options.view_as(GoogleCloudOptions).template_location
    return bool(template or options.view_as(StandardOptions).no_wait_until_finish)


@contextlib.contextmanager
def _planned(
    config: Config,
    options: PipelineOptions | None,
    force: Collection[str],
    retry_failed: bool,
    rehash: bool,
) -> Iterator[tuple[Pipeline, Plan, Claim]]:
    """Yields a new pipeline, the plan of the build, and the claim on the output, which is locked."""
    unknown = sorted(set(force) - set(CHECKS))
    if unknown:
        raise UsageError(f"unknown check {unknown[0]!r}; expected one of {', '.join(CHECKS)}")
    options = options or PipelineOptions([])  # without arguments it would read sys.argv
    config = resolve(config)
    pipeline = _new_pipeline(options)
    check_input(config)
    output = Output(str(config.output))
    with writer_lock(output.root) as claim, _nothing_useless(output), remarked(_KEPT):
        plan = make_plan(config, worker_threads(options), force, retry_failed, rehash)
        logger.info("building the index in %s", config.output)
        yield pipeline, plan, claim


@contextlib.contextmanager
def _nothing_useless(output: Output) -> Iterator[None]:
    """Where the block fails, deletes folders that it has left empty, and says what stays of a first build."""
    if not filesystem.is_local(output.root):  # there are no folders
        yield
        return
    before = folders_made(output)
    try:
        yield
    except BaseException:
        # Why the build has failed matters more than that it cannot be cleaned up after.
        with contextlib.suppress(OSError, OutputError):
            for folder in folders_made(output):
                if folder not in before:
                    with contextlib.suppress(OSError):  # it is not empty
                        folder.rmdir()
            store = Path(output.root, "store")
            if store not in before and any(store.glob("*/chunk-*")):
                logger.info("what was embedded stays in %s; the next build goes on from it", store)
        raise


@contextlib.contextmanager
def _published_is_published(plan: Plan) -> Iterator[None]:
    """Turns any error in the block into an AfterPublishError where the generation is live by then."""
    try:
        yield
    except Exception as error:
        if not _is_live(plan):
            raise
        if not isinstance(error, ImgindexError):
            logger.exception("after generation %s went live", plan.generation)
        raise AfterPublishError(
            f"generation {plan.generation} is live, but what was to follow has failed: {error}"
        ) from error


def _is_live(plan: Plan) -> bool:
    try:
        return current_name(plan.output) == plan.generation
    except OutputError:
        logger.warning("it is not known whether %s is live; `imgindex inspect` tells", plan.generation)
        return False


def _conclude(_: None, plan: Plan) -> None:
    conclude(plan)


def _run(pipeline: Pipeline, plan: Plan, wait: bool = True) -> None:
    result = None
    try:
        with shown(EMBEDDING):
            result = pipeline.run()
            if wait:
                with undone(result.cancel) if outlives(pipeline.options) else contextlib.nullcontext():
                    result.wait_until_finish()
    except BaseException as error:
        _give_up(plan, result)
        known = _known_error(error)
        if known is None:
            raise
        raise known from error


def _new_pipeline(options: PipelineOptions) -> Pipeline:
    runner = options.view_as(StandardOptions).runner
    setup = options.view_as(SetupOptions)
    # Dataflow's default pickles the launcher's __main__, which holds nothing that a worker needs.
    setup.save_main_session = bool(setup.save_main_session)
    try:
        return Pipeline(runner=new_runner(options), options=options)
    except (ValueError, ImportError) as error:
        message = " ".join(str(error).split())
        raise UsageError(f"--runner {runner}: Beam refuses it: {message}") from error


def _give_up(plan: Plan, result: PipelineResult | None) -> None:
    """Stops what still runs, and deletes what was written of the generation, unless it is published."""
    try:
        if result is not None and not PipelineState.is_terminal(result.state):
            result.cancel()
        # An interruption came too late for what is live, or was; of what was refused a message names a file.
        if not is_finished(plan):
            filesystem.delete_tree(plan.directory)
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
