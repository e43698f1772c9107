"""The command line: calls the command that is given, and says what failed."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from imgindex.commands.arguments import parser, with_underscores
from imgindex.errors import DamagedError, MachineError, foreseen
from imgindex.runtime import signals
from imgindex.runtime.standard_streams import discard, prepare_standard_streams
from imgindex.text import printable

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
            known.parser.refuse(rest[0])
        known.rest = rest
        verbose = known.verbose
        _set_up_logging(verbose)
        if known.command in ("build", "search", "serve", "compare", "train", "doctor", "demo"):
            _check_limits()
        # Only now, for some of them load Beam and TensorFlow.
        importlib.import_module(f"imgindex.commands.{known.command}").run(known)
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
