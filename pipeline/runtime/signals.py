"""Ends a command at SIGINT and SIGTERM, at once, whatever its threads and processes are at."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What would outlive the process, in the order in which it began.
_undo: list[Callable[[], None]] = []

# What the command was for and is done, for people. With any of it the process exits with 0.
_done: list[str] = []

# What whoever stops the work now should know.
_remarks: list[str] = []

# Functions that ask the work to end by itself. The first signal calls the last one.
_stops: list[Callable[[], None]] = []

# Held while a generation is made the live one, so that a signal finds it live or not. An object store may not
# answer, so that a signal does not wait for ever.
_switch = threading.Lock()
_SWITCH_SECONDS = 5.0

# How often the main thread looks up. A signal that comes just before it begins to wait, or that another
# thread is given, does not wake it.
_LOOK_SECONDS = 0.25


def done(what: str) -> None:
    """Has a signal that ends the process say that `what` is done, and exit with 0."""
    _done.append(what)


def whats_done() -> str:
    """What of it is done, for people; nothing where nothing is."""
    return "; ".join(_done)


@contextlib.contextmanager
def switching() -> Iterator[None]:
    """Has a signal that would end the process wait until the block has ended."""
    with _switch:
        yield


@contextlib.contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Has `undo` called where a signal ends the process before the block has ended."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


@contextlib.contextmanager
def remarked(remark: str) -> Iterator[None]:
    """Has a signal that ends the process before the block has ended say `remark`, for people."""
    _remarks.append(remark)
    try:
        yield
    finally:
        _remarks.remove(remark)


@contextlib.contextmanager
def stopped_by(stop: Callable[[], None]) -> Iterator[None]:
    """Has the first signal call `stop`, after which the block should soon end by itself.

    The next signal ends the process.
    """
    _stops.append(stop)
    try:
        yield
    finally:
        if stop in _stops:
            _stops.remove(stop)


def run(command: Callable[[], int]) -> int:
    """Runs `command`, the whole work of this process; gives and raises what it does.

    At SIGINT or SIGTERM the work is abandoned, the processes that this one has started are killed, what
    `undone` names is done, and it exits with 130 or 143; or with 0 where the work was `done` by then. A
    second signal skips what is left of that. Only for the main thread.
    """
    # Python acts on signals in the main thread, and not before a step in C has ended, such as the conversion
    # of a model; an exception raised there would come out of Beam as another one, or wait for threads that
    # are at work. So the main thread only waits.
    result: Future[int] = Future()

    def work() -> None:
        try:
            result.set_result(command())
        except BaseException as error:
            result.set_exception(error)

    # A descriptor of its own: libraries are kept quiet by turning standard error away while they load.
    end = partial(_end, os.dup(2))
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells have it for background jobs
            signal.signal(number, end)
    threading.Thread(target=work, name="command", daemon=True).start()
    while not wait([result], _LOOK_SECONDS).done:
        pass
    return result.result()


def _end(stderr: int, number: int, frame: FrameType | None) -> None:
    if _stops:
        _stops.pop()()
        return
    for each in _SIGNALS:
        signal.signal(each, _end_at_once)
    # Threads trip over what is taken from them here; that is no news.
    threading.excepthook = lambda _: None
    # Never given back: what is not live by now does not go live while all else ends.
    _switch.acquire(timeout=_SWITCH_SECONDS)
    try:
        _attempt(_kill_descendants, stderr)
        _say(stderr, "; ".join([f"stopped by {signal.Signals(number).name}", *_remarks]))
        # An unfinished generation stays until the next build: threads may be about to publish it.
        for undo in reversed(_undo):
            _attempt(undo, stderr)
        for what in _done:
            _say(stderr, f"{what}; the signal came after that")
    finally:
        _kill_descendants()  # those too that threads have started meanwhile
        if _done:
            os._exit(0)
        _end_at_once(number, frame)


def _attempt(undo: Callable[[], None], stderr: int) -> None:
    try:
        undo()
    except Exception as error:
        _say(stderr, f"could not clean up: {error}")


def _say(stderr: int, message: str) -> None:
    # Not by print: the signal may have come while its stream's buffer was being written.
    start = "\n" if os.isatty(stderr) else ""  # below the progress bar
    os.write(stderr, f"{start}imgindex: {message}\n".encode())


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _kill_descendants() -> None:
    """Kills the processes that this one has started, such as Beam's workers, and theirs."""
    for process in list(_descendants(os.getpid())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _descendants(process: int) -> Iterator[int]:
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            for child in map(int, thread.read_text().split()):
                yield child
                yield from _descendants(child)
