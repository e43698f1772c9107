"""The standard streams of a command: closed ones, and what cannot be written to one."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator

from imgindex.errors import AfterPublishError, OutputError
from imgindex.runtime import signals


def prepare_standard_streams() -> None:
    """Opens closed streams on the null device, and has standard output say of itself what it cannot write."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:  # it is closed
            # In its place, or else the next file that is opened would take what is meant for it.
            discard(number)
            setattr(sys, name, os.fdopen(number, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding, by_line, at_once = sys.stdout.encoding, sys.stdout.line_buffering, sys.stdout.write_through
        sys.stdout = _StandardOutput(
            # What the encoding lacks is escaped, as Python does it on standard error.
            sys.stdout.detach(), encoding, "backslashreplace", line_buffering=by_line, write_through=at_once
        )  # fmt: skip


class _StandardOutput(io.TextIOWrapper):
    """Standard output that says of itself what it cannot write."""

    def write(self, text: str) -> int:
        with _its_errors_told():
            return super().write(text)

    def flush(self) -> None:
        with _its_errors_told():
            super().flush()


@contextlib.contextmanager
def _its_errors_told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout.fileno())  # Python would write again at exit
        message = f"cannot write to standard output: {error.strerror}"
        done = signals.whats_done()
        raise (AfterPublishError(f"{done}; {message}") if done else OutputError(message)) from error


def encodable(text: str) -> str:
    """JSON as it is, or with its own escapes where standard output's encoding lacks a character."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
    return text


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps off standard error what libraries in C write there, such as libtiff's and libpng's warnings."""
    sys.stderr.flush()
    kept = os.dup(2)
    discard(2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def discard(descriptor: int) -> None:
    """Has the null device in the place of a descriptor."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
