"""How far a local run has come: a bar on a terminal, plain log lines elsewhere."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial

from tqdm import tqdm

from imgindex.runtime.background import beside

logger = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


class Progress:
    """Counts of images to work on and images done, shared by the threads of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0
        self._done = 0

    def expect(self, images: int) -> None:
        """Adds `images` to those that are to be done."""
        with self._lock:
            self._total += images

    def advance(self, images: int) -> None:
        """Adds `images` to those that are done."""
        with self._lock:
            self._done += images

    def snapshot(self) -> tuple[int, int]:
        """Images done, and images known of so far."""
        with self._lock:
            return self._done, self._total

    def reset(self) -> None:
        """Starts over at nothing."""
        with self._lock:
            self._total = self._done = 0


# Beam pickles what runs in its workers, so that a worker in this process finds its counts here and not
# through an object that it was given. In another process they count for nobody.
EMBEDDING = Progress()


@contextlib.contextmanager
def shown(progress: Progress, doing: str = "embedding", done: str = "embedded") -> Iterator[None]:
    """Shows `progress` until the block ends: what is being done to images, and what was done to them."""
    progress.reset()
    show = partial(_show_bar, doing) if sys.stderr.isatty() else partial(_log_lines, done)
    with beside(partial(show, progress)):
        yield


def _show_bar(doing: str, progress: Progress, stop: threading.Event) -> None:
    with tqdm(total=None, unit=" images", desc=doing, dynamic_ncols=True) as bar:
        stopped = False
        while not stopped:
            stopped = stop.wait(0.2)
            done, total = progress.snapshot()
            bar.total = total or None
            bar.update(done - bar.n)


def _log_lines(what: str, progress: Progress, stop: threading.Event) -> None:
    started, logged = time.monotonic(), 0
    while not stop.wait(_LOG_SECONDS):
        done, total = progress.snapshot()
        if done <= logged:  # nothing new, or another build has started over
            continue
        logged = done
        rate = done / (time.monotonic() - started)
        left = (total - done) / rate
        logger.info("%s %d of %d images, %.1f images/s, %.0f s left", what, done, total, rate, left)
