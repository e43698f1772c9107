"""The command line: calls the rest, prints for people, and says what failed."""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imgindex.commands.arguments import duration, parser, with_underscores
from imgindex.errors import DamagedError, MachineError, UsageError, foreseen
from imgindex.runtime import signals
from imgindex.runtime.standard_streams import discard, encodable, prepare_standard_streams
from imgindex.text import counted, printable

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_REPAIR = (
    "; `imgindex verify` lists all damage; a build mends the store and replaces damaged files of the live "
    "generation; `imgindex rollback` returns to the generation before; if nothing else helps, delete CURRENT "
    "and build again"
)


def run() -> None:
    """The command ``imgindex``: runs as a process of its own, which signals end, and never returns."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        from imgindex.commands.completion import answer

        answer(parser())
    prepare_standard_streams()
    try:
        code = signals.run(main)
    except RuntimeError as error:  # not even its first thread can start
        code = _tell(error)
    sys.exit(code)


# Bytes by the flag of ulimit. On two cores a build reserves 3.2 GB of address space, most of which it never
# touches, and 2.0 GB of data; on more cores it reserves more.
_NEEDED = {"-v": 4 << 30, "-d": 3 << 30}


def _check_limits() -> None:
    """Raises MachineError where libraries would wait for ever for memory that they cannot reserve."""
    from imgindex.runtime.resources import ulimits

    for flag, limit in ulimits().items():
        if limit < _NEEDED[flag]:
            raise MachineError(
                f"ulimit {flag} allows {limit / 2**30:.1f} GiB, and running a model takes "
                f"{_NEEDED[flag] >> 30} GiB; raise it, or limit the memory by a control group instead"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; errors for people are printed, never raised."""
    of_commands = parser()
    verbose = False
    try:
        known, rest = of_commands.parse_known_args(
            with_underscores(sys.argv[1:] if arguments is None else arguments)
        )
        if rest and known.command != "build":
            of_commands.error(f"unknown arguments: {' '.join(rest)}; see imgindex {known.command} --help")
        verbose = known.verbose
        _set_up_logging(verbose)
        if known.command in ("build", "search", "doctor", "demo"):
            _check_limits()
        commands: dict[str, Callable[[argparse.Namespace], None]] = {
            "build": partial(_build, rest=rest),
            "search": _search,
            "inspect": _inspect,
            "verify": _verify,
            "rollback": _rollback,
            "prune": _prune,
            "doctor": _doctor,
            "completion": _completion,
            "demo": _demo,
        }
        commands[known.command](known)
        sys.stdout.flush()  # now, when it can still be said that it fails
    except BrokenPipeError:
        # What reads our output has seen enough, as `head` does; Python would complain again at exit.
        discard(sys.stdout.fileno())
        return 0
    except Exception as error:
        return _tell(error, verbose)
    return 0


def _tell(error: Exception, verbose: bool = False) -> int:
    """Prints what went wrong and returns the exit code. Raises `error` where it is a bug."""
    told = foreseen(error)
    if told is None:
        raise error
    if verbose and told is not error:
        logging.getLogger(__name__).info("what was foreseen came from here", exc_info=error)
    advice = _REPAIR if isinstance(told, DamagedError) else ""
    print(f"imgindex: {printable(str(told))}{advice}", file=sys.stderr)
    return told.exit_code


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # Beam logs what a worker raises, with its traceback, before the launcher can say it in one line.
    logging.getLogger().setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.getLogger("imgindex").setLevel(logging.DEBUG if verbose else logging.INFO)
    # Pillow warns of files that it reads nevertheless.
    logging.captureWarnings(True)


def _build(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from dataclasses import replace

    from imgindex.config import load_config

    config = load_config(known.config, known.set)
    config = replace(config, input=known.input or config.input, output=known.output or config.output)
    if known.dry_run:
        from apache_beam.io.filesystems import FileSystems

        from imgindex.job.dry_run import describe_build

        FileSystems.set_options(_beam_options(rest))
        print(describe_build(config, known.retry_failed, known.rehash))
        return
    from imgindex.commands.descriptions import describe_generation, describe_unchanged
    from imgindex.job.launch import is_detached, refresh, submit

    options = _beam_options(rest)
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


def _beam_options(arguments: Sequence[str]) -> "PipelineOptions":
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


def _search(known: argparse.Namespace) -> None:
    from imgindex.commands.search import run

    run(known)


def _inspect(known: argparse.Namespace) -> None:
    from imgindex.commands.descriptions import describe_generation, describe_history
    from imgindex.commands.failure_report import lines
    from imgindex.generations.layout import Output, read_manifest

    output = Output(known.output)
    if known.failures:
        for line in lines(output, known.reason, as_json=known.json):
            print(encodable(line))
        return
    if known.json or known.reason is not None:
        raise UsageError("--reason and --json need --failures")
    print(describe_generation(known.output, read_manifest(output)))
    print()
    print(describe_history(output))


def _verify(known: argparse.Namespace) -> None:
    from imgindex.generations.verify import verify
    from imgindex.text import human_bytes

    found = verify(known.output)
    print(
        f"{counted(found.files, 'file')} of the live generation, {human_bytes(found.bytes)}; "
        f"{counted(found.chunks, 'file')} of the store, with the features of {counted(found.rows, 'image')}"
    )
    for problem in found.problems:
        print(f"damaged: {printable(problem)}")
    if found.problems:
        raise DamagedError(f"{known.output}: {counted(len(found.problems), 'problem')}")
    print("all bytes are as they were written")


def _rollback(known: argparse.Namespace) -> None:
    from imgindex.generations.rollback import rollback

    before, now = rollback(known.output, known.generation)
    signals.done(f"generation {now} is live")
    print(f"{now} is live" + (f"; it was {before}" if before else ""))


def _prune(known: argparse.Namespace) -> None:
    from imgindex.generations.prune import FEATURE_GRACE, GENERATION_GRACE, prune

    pruned = prune(known.output, known.keep, known.grace)
    for name in pruned.generations:
        print(f"deleted generation {name}")
    grace = GENERATION_GRACE if known.grace is None else known.grace
    for name in pruned.young_generations:
        print(f"kept generation {name}: it is not older than {duration(grace)}")
    print(
        f"deleted {counted(len(pruned.generations), 'generation')}, and from "
        f"{counted(pruned.chunks, 'file')} of the store the features of {counted(pruned.rows, 'image')} that "
        f"no other generation uses; forgot {counted(pruned.failures, 'failure')}"
    )
    if pruned.young_files:
        grace = FEATURE_GRACE if known.grace is None else known.grace
        age = duration(grace)
        files = counted(pruned.young_files, "file")
        print(f"kept {files} of the store, used or not: not older than {age}")


def _doctor(known: argparse.Namespace) -> None:
    from imgindex.commands.doctor.examine import describe, examine

    problems = 0
    for finding in examine(known.output):
        print(printable(describe(finding)), flush=True)
        problems += finding.level == "problem"
    if problems:
        raise MachineError(f"a build would fail here: {counted(problems, 'problem')}")
    print("a build can run here")


def _completion(known: argparse.Namespace) -> None:
    from imgindex.commands.completion import script

    print(script(known.shell))


def _demo(known: argparse.Namespace) -> None:
    from imgindex.commands.demo import run

    run(Path(known.output))
