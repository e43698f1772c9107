"""The errors that end a command, each with its exit code: 0 where what was asked for is done nevertheless.

They carry a message of one line for people: what was given, what was expected and what to do. ``cli.main``
prints it without a traceback; what is neither one of them nor `foreseen` is a bug.
"""

import errno
import os
from pathlib import Path


class ImgindexError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 3


class UsageError(ImgindexError):
    """The command line, the config or an argument is wrong."""

    exit_code = 2


class UnsupportedModelError(UsageError):
    """An engine cannot run a model that another engine may be able to run."""


class InputError(ImgindexError):
    """The images cannot be listed or none of them could be indexed."""


class OutputError(ImgindexError):
    """The output cannot be read or written, or does not hold what it should."""


class DamagedError(OutputError):
    """A file of the output does not hold what was written to it."""


class MismatchError(DamagedError):
    """A file of the store does not match the digest in its name. No other damage may lead to a deletion."""


class SupersededError(OutputError):
    """Another writer has taken the output over, or has published meanwhile."""


class WeightsUnavailableError(ImgindexError):
    """The ImageNet weights could not be downloaded."""


class WorkerError(ImgindexError):
    """A worker cannot do its part: its engine fails whatever it is given, or nothing decodes there."""


class MachineError(ImgindexError):
    """This machine, or what is installed on it, cannot build an index."""


class RecipeChangedError(ImgindexError):
    """The vectors of two generations cannot be compared, for they were not made in the same way."""

    exit_code = 4


class AfterPublishError(ImgindexError):
    """The new generation is live, but what was to follow has failed."""

    exit_code = 0


class PublishRefusedError(ImgindexError):
    """A publish check refused; the generation before it stays live."""

    exit_code = 4


class DuplicatesFoundError(ImgindexError):
    """Duplicates were found where there should be none."""

    exit_code = 4


def foreseen(error: BaseException) -> ImgindexError | None:
    """`error` as one for people; None for what only a bug in imgindex raises.

    It is for errors that no function promises, for any may raise them: those of the operating system, and the
    want of memory or threads.
    """
    if isinstance(error, ImgindexError):
        return error
    if isinstance(error, MemoryError):
        return MachineError(
            "the memory ran out; free some, or raise the limit (ulimit -v, or the container's)"
        )
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return MachineError(
            "cannot start another thread; raise the limit (ulimit -u and -v, or the container's)"
        )
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is None and not _has_current_directory():
        return MachineError("the current directory no longer exists; change to another one")
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    advice = "; raise the limit (ulimit -n, or the container's)" if error.errno == errno.EMFILE else ""
    return MachineError(f"{where}{error.strerror}{advice}")


def _has_current_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True
