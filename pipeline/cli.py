"""The command line: parses arguments, calls the rest, prints for people."""

import argparse
import difflib
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgindex import interrupt
from imgindex.errors import (
    DamagedError,
    MachineError,
    UsageError,
    foreseen,
    printable,
)
from imgindex.standard_streams import discard, prepare_standard_streams

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_BUILD_EPILOG = (
    "Every other flag goes to Beam: --runner, --direct_num_workers, --flink_master and so on. "
    "Exit codes: 0 done, or nothing had changed; 2 bad usage or config; 3 input or environment trouble, "
    "nothing was published; 4 a publish check refused, nothing was published; 130 and 143 stopped by "
    "SIGINT and SIGTERM."
)

_REPAIR = (
    "; `imgindex verify` lists all damage; a build mends the store and replaces damaged files of the live "
    "generation; `imgindex rollback` returns to the generation before; if nothing else helps, delete CURRENT "
    "and build again"
)


def run() -> None:
    """The command ``imgindex``: runs as a process of its own, which signals end, and never returns."""
    prepare_standard_streams()
    sys.exit(interrupt.run(main))


# A build reserves 3.2 GB on two cores, most of which it never touches, and more on more.
_ADDRESS_SPACE = 4 << 30


def _check_address_space() -> None:
    """Raises MachineError where libraries would wait for ever for memory that they cannot reserve."""
    from imgindex.models.resources import address_space

    limit = address_space()
    if limit is not None and limit < _ADDRESS_SPACE:
        raise MachineError(
            f"ulimit -v allows {limit / 2**30:.1f} GiB of address space, and running a model takes "
            f"{_ADDRESS_SPACE >> 30} GiB; raise it, or limit the memory by a control group instead"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; errors for people are printed, never raised."""
    parser = _parser()
    verbose = False
    try:
        known, rest = parser.parse_known_args(arguments)
        if rest and known.command != "build":
            parser.error(f"unknown arguments: {' '.join(rest)}; see imgindex {known.command} --help")
        verbose = known.verbose
        _set_up_logging(verbose)
        if known.command in ("build", "search", "doctor", "demo"):
            _check_address_space()
        if known.command == "build":
            _build(known, rest)
        else:
            known.run(known)
        sys.stdout.flush()  # now, when it can still be said that it fails
    except BrokenPipeError:
        # What reads our output has seen enough, as `head` does; Python would complain again at exit.
        discard(sys.stdout.fileno())
        return 0
    except Exception as error:
        told = foreseen(error)
        if told is None:
            raise
        if verbose and told is not error:
            logging.getLogger(__name__).info("what was foreseen came from here", exc_info=error)
        advice = _REPAIR if isinstance(told, DamagedError) else ""
        print(f"imgindex: {printable(str(told))}{advice}", file=sys.stderr)
        return told.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imgindex",
        description="Turn a directory of images into a search index, and search it.",
    )
    parser.add_argument("--version", action="version", version=f"imgindex {version('imgindex')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_text: str, **options: Any) -> argparse.ArgumentParser:
        # Beam has flags that begin like ours; an abbreviation of one must not be taken for the other.
        added = commands.add_parser(
            name, help=help_text, description=help_text, allow_abbrev=False, **options
        )
        added.add_argument("-v", "--verbose", action="store_true", help="log what Beam and Keras do")
        return added

    build = command("build", "Build or refresh an index.", epilog=_BUILD_EPILOG)
    build.add_argument(
        "--input", metavar="DIR|GLOB|LIST", help="a directory of images, a quoted glob, a .tar, "
        "or a .txt, .csv or .parquet file of paths",
    )  # fmt: skip
    build.add_argument("--output", metavar="OUT", help="the directory to write the index to")
    build.add_argument("--config", metavar="FILE", help="a YAML file of settings")
    build.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting, as in "
        "--set pca.dims=64; may be repeated",
    )  # fmt: skip
    build.add_argument(
        "--force", metavar="CHECK", action="append", default=[], help="publish although this check "
        "refuses: ledger, files, max_failure_rate, max_shrink or min_recall; may be repeated",
    )  # fmt: skip
    build.add_argument(
        "--retry_failed", action="store_true", help="also try images whose bytes have failed before, as "
        "after an update of Pillow",
    )  # fmt: skip
    build.add_argument(
        "--rehash", action="store_true", help="read every listed file, and embed those whose bytes are new, "
        "also where size, times and etag are as before",
    )  # fmt: skip
    build.add_argument(
        "--dry_run", action="store_true", help="print counts, the plan and estimates; write nothing"
    )

    search = command("search", "Find the images of an index that are nearest to given ones.")
    search.set_defaults(run=_search)
    search.add_argument("output", metavar="OUT", help="the index's directory")
    search.add_argument("images", metavar="IMAGE", nargs="+", help="an image to search for")
    search.add_argument("-k", type=int, default=10, help="neighbors of each image (default: 10)")
    search.add_argument(
        "--exact", action="store_true", help="compare with every stored vector, by brute force"
    )
    search.add_argument(
        "--distinct", action="store_true", help="list images whose files have the same bytes only once"
    )
    search.add_argument("--json", action="store_true", help="print JSON instead of a table")
    search.add_argument("--html", metavar="FILE", type=Path, help="also write a page of thumbnails")

    def upkeep(
        name: str, help_text: str, run: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        added = command(name, help_text)
        added.set_defaults(run=run)
        added.add_argument("output", metavar="OUT", help="the index's directory")
        return added

    upkeep("inspect", "Print what the live generation of an index holds, and its history.", _inspect)
    upkeep("verify", "Read every byte of the live generation and the store; exit 3 for damage.", _verify)
    rollback = upkeep("rollback", "Make an older generation the live one.", _rollback)
    rollback.add_argument(
        "generation", metavar="GENERATION", nargs="?", help="its name (default: the one before)"
    )
    prune = upkeep("prune", "Delete old generations, and what of the store they alone used.", _prune)
    prune.add_argument("--keep", metavar="N", type=int, required=True, help="how many of the newest stay")
    prune.add_argument(
        "--grace", metavar="DURATION", type=_seconds, help="delete only what is older: a number and s, m, h "
        "or d, as in 12h (default: 1h for generations, 7d for the features and failures of the store, from "
        "which a build goes on that was killed or refused)",
    )  # fmt: skip

    doctor = command("doctor", "Check whether this machine can build an index; exit 3 where it cannot.")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument(
        "output", metavar="OUT", nargs="?", help="where the index would lie (default: the current directory)"
    )

    demo = command("demo", "Make sample images, index them and search: a first look in one command.")
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "output", metavar="OUT", nargs="?", default="demo", help="a new directory (default: demo)"
    )
    return parser


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def _seconds(duration: str) -> float:
    """Reads a duration such as 12h. Raises ArgumentTypeError."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", duration)
    if match is None:
        raise argparse.ArgumentTypeError(f"{duration!r} is no duration; expected one such as 30m, 12h or 7d")
    return float(int(match[1]) * _SECONDS[match[2]])


def _duration(seconds: float) -> str:
    """Writes a duration, in the largest unit that makes it a whole number."""
    unit = next((unit for unit in "dhm" if seconds and seconds % _SECONDS[unit] == 0), "s")
    return f"{seconds / _SECONDS[unit]:.0f}{unit}"


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # Beam logs what a worker raises, with its traceback, before the launcher can say it in one line.
    logging.getLogger().setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.getLogger("imgindex").setLevel(logging.INFO)
    # Pillow warns of files that it reads nevertheless.
    logging.captureWarnings(True)


def _build(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from dataclasses import replace

    from imgindex.config import load_config

    config = load_config(known.config, known.set)
    config = replace(config, input=known.input or config.input, output=known.output or config.output)
    if known.dry_run:
        from apache_beam.io.filesystems import FileSystems

        from imgindex.dry_run import describe_build

        FileSystems.set_options(_beam_options(rest))
        print(describe_build(config, known.retry_failed, known.rehash))
        return
    from imgindex.launch import is_detached, refresh, submit
    from imgindex.summary import describe_generation, describe_unchanged

    options = _beam_options(rest)
    if is_detached(options):
        generation = submit(
            config, options, known.force, retry_failed=known.retry_failed, rehash=known.rehash
        )
        print(f"submitted: {generation} goes live in {config.output} when the job ends well")
        return
    outcome = refresh(config, options, known.force, retry_failed=known.retry_failed, rehash=known.rehash)
    if outcome.published:
        interrupt.done(f"generation {outcome.manifest['generation']} is live")
        print(describe_generation(str(config.output), outcome.manifest))
        if outcome.replaced:
            before = outcome.manifest["previous"]
            print(f"it replaces {before}, of which {len(outcome.replaced)} files are damaged")
    else:
        print(describe_unchanged(outcome.manifest, outcome.ledger))


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
    from imgindex.search import Index, to_json
    from imgindex.summary import result_table, write_page

    index = Index.open(known.output)
    results = index.search(known.images, known.k, exact=known.exact, distinct=known.distinct)
    print(_encodable(to_json(results)) if known.json else result_table(results, index.manifest["metric"]))
    if known.html:
        write_page(known.html, index, results)


def _encodable(text: str) -> str:
    """JSON as it is, or with its own escapes where stdout's encoding lacks a character."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return json.dumps(json.loads(text), indent=2)
    return text


def _inspect(known: argparse.Namespace) -> None:
    from imgindex.generation import Output, read_manifest
    from imgindex.summary import describe_generation, describe_history

    output = Output(known.output)
    print(describe_generation(known.output, read_manifest(output)))
    print()
    print(describe_history(output))


def _verify(known: argparse.Namespace) -> None:
    from imgindex.summary import human_bytes
    from imgindex.upkeep import verify

    found = verify(known.output)
    print(
        f"{found.files} files of the live generation, {human_bytes(found.bytes)}; "
        f"{found.chunks} chunks of the store with {found.rows} features"
    )
    for problem in found.problems:
        print(f"damaged: {printable(problem)}")
    if found.problems:
        raise DamagedError(f"{known.output}: {len(found.problems)} problems")
    print("all bytes are as they were written")


def _rollback(known: argparse.Namespace) -> None:
    from imgindex.upkeep import rollback

    before, now = rollback(known.output, known.generation)
    interrupt.done(f"generation {now} is live")
    print(f"{now} is live" + (f"; it was {before}" if before else ""))


def _prune(known: argparse.Namespace) -> None:
    from imgindex.upkeep import FEATURE_GRACE, GENERATION_GRACE, prune

    pruned = prune(known.output, known.keep, known.grace)
    for name in pruned.generations:
        print(f"deleted generation {name}")
    grace = GENERATION_GRACE if known.grace is None else known.grace
    for name in pruned.young_generations:
        print(f"kept generation {name}: it is not older than {_duration(grace)}")
    print(
        f"deleted {len(pruned.generations)} generations, and {pruned.rows} features that no other uses "
        f"from {pruned.chunks} chunks of the store; forgot {pruned.failures} failures"
    )
    if pruned.young_files:
        grace = FEATURE_GRACE if known.grace is None else known.grace
        age = _duration(grace)
        print(f"kept {pruned.young_files} files of the store, used or not: they are not older than {age}")


def _doctor(known: argparse.Namespace) -> None:
    from imgindex.doctor import describe, examine

    problems = 0
    for finding in examine(known.output):
        print(printable(describe(finding)), flush=True)
        problems += finding.level == "problem"
    if problems:
        raise MachineError(f"a build would fail here: {problems} problems")
    print("a build can run here")


def _demo(known: argparse.Namespace) -> None:
    from imgindex.demo import run

    run(Path(known.output))
