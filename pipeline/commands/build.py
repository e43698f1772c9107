"""The command `imgindex build`."""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from imgindex.commands.arguments import with_underscores
from imgindex.config import load_config
from imgindex.errors import UsageError
from imgindex.runtime import signals
from imgindex.text import counted

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def run(known: argparse.Namespace) -> None:
    """Builds or refreshes an index, or says what that would do; `known.rest` are flags of Beam."""
    config = load_config(known.config, known.set)
    config = replace(config, input=known.input or config.input, output=known.output or config.output)
    # Only now, so that a mistake in the config is told at once: Beam takes seconds to load.
    from apache_beam.io.filesystems import FileSystems

    from imgindex.commands.descriptions import describe_generation, describe_unchanged
    from imgindex.job.dry_run import describe_build
    from imgindex.job.launch import is_detached, refresh, submit

    options = beam_options(known.rest)
    if known.dry_run:
        FileSystems.set_options(options)
        print(describe_build(config, known.retry_failed, known.rehash))
        return
    if is_detached(options):
        generation = submit(
            config, options, known.force, retry_failed=known.retry_failed, rehash=known.rehash
        )
        print(f"submitted: {generation} goes live in {config.output} when the job ends well")
        return
    outcome = refresh(config, options, known.force, retry_failed=known.retry_failed, rehash=known.rehash)
    if outcome.published:
        signals.done(f"generation {outcome.live.generation} is live")
        print(describe_generation(str(config.output), outcome.live))
        if outcome.replaced:
            before = outcome.live.previous
            files = counted(len(outcome.replaced), "file is", "files are")
            print(f"it replaces {before}, of which {files} damaged")
    else:
        print(describe_unchanged(outcome.live, outcome.counted))


def beam_options(arguments: Sequence[str]) -> "PipelineOptions":
    """Beam's options from `arguments`. Raises UsageError for what Beam does not know either."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(
        prog="imgindex build", add_help=False, allow_abbrev=False, conflict_handler="resolve",
        exit_on_error=False,
    )  # fmt: skip
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # where Beam's own subclasses declare theirs
    flags = [flag for action in parser._actions for flag in action.option_strings]
    # Of Beam's own flags a few have hyphens.
    hyphened = {with_underscores([flag])[0]: flag for flag in flags if "-" in flag.lstrip("-")}
    names = (argument.partition("=") for argument in arguments)
    arguments = [hyphened.get(name, name) + equals + value for name, equals, value in names]
    flags += ["--input", "--output", "--config", "--set", "--force", "--retry_failed"]
    flags += ["--rehash", "--dry_run"]
    try:
        _, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    if unknown:
        nearest = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "see imgindex build --help"
        raise UsageError(f"unknown argument {unknown[0]!r}, to imgindex and to Beam; {hint}")
    return PipelineOptions(list(arguments))
