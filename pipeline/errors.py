"""The errors that end a command, each with its exit code.

They carry a message of one line for people: what was given, what was expected and what to do. ``cli.main``
prints it without a traceback; any other exception is a bug.
"""


class ImgindexError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 3


class UsageError(ImgindexError):
    """The command line, the config or an argument is wrong."""

    exit_code = 2


class InputError(ImgindexError):
    """The images cannot be listed or none of them could be indexed."""


class OutputError(ImgindexError):
    """The output cannot be read or written, or does not hold what it should."""


class DamagedError(OutputError):
    """A file of the output does not hold what was written to it."""


class WeightsUnavailableError(ImgindexError):
    """The ImageNet weights could not be downloaded."""


class MachineError(ImgindexError):
    """This machine, or what is installed on it, cannot build an index."""


class PublishRefusedError(ImgindexError):
    """A publish check refused; the generation before it stays live."""

    exit_code = 4


def printable(text: str) -> str:
    """`text` on one line, what could steer a terminal escaped: file names may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
