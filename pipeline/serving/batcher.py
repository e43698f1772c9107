"""Embeds the images of all requests together, as many at once as the engine takes."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from imgindex.search.queries import Loaded
from imgindex.search.query_vectors import Vectors
from imgindex.search.results import QueryError
from imgindex.serving.live_index import Answering

# How long a batch waits to be filled, in the seconds that a full one takes: for images that are being
# decoded, and for those that may come. A client that had its answer just now may ask again.
_FOR_DECODING, _FOR_OTHERS = 0.5, 0.05
_LONGEST_WAIT = 0.1

Embedded = Vectors | QueryError


@dataclass(frozen=True)
class _Asked:
    answering: Answering
    query: Loaded
    future: "Future[Embedded]"


class Batcher:
    """Embeds queries, whose pixels come from any number of requests. Batches are of one generation each."""

    def __init__(self, observe: Callable[[int, float], None] = lambda count, seconds: None) -> None:
        """`observe` is told the size of each batch, and the seconds that it took."""
        self._observe = observe
        self._waiting: deque[_Asked] = deque()
        self._changed = threading.Condition()
        self._decoding = 0
        self._closed = False
        self._threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Has a batch wait for a query that is being decoded in the block."""
        with self._changed:
            self._decoding += 1
        try:
            yield
        finally:
            with self._changed:
                self._decoding -= 1
                self._changed.notify_all()

    def submit(self, answering: Answering, query: Loaded) -> "Future[Embedded]":
        """Embeds a query that has pixels; gives its vector [dims], or why it has none."""
        future: Future[Embedded] = Future()
        with self._changed:
            self._waiting.append(_Asked(answering, query, future))
            while len(self._threads) < answering.engines.streams:
                thread = threading.Thread(target=self._work, name="embed", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Ends the threads, after the batches that they are at."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().future.cancel()
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            answering = batch[0].answering
            try:
                vectors, errors = answering.engines.vectors(
                    [asked.query for asked in batch], answering.manifest.dims, answering.opened.basis
                )
            except BaseException as error:  # whoever asks must not wait for ever
                for asked in batch:
                    asked.future.set_exception(error)
                continue
            self._observe(len(batch), time.monotonic() - started)
            for number, asked in enumerate(batch):
                asked.future.set_result(errors.get(number, vectors[number]))

    def _take(self) -> list[_Asked]:
        """The next batch, which is empty where all is over."""
        batch: list[_Asked] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                self._wait_for_more()
                while self._waiting and len(batch) < self._waiting[0].answering.engines.batch_size:
                    if batch and self._waiting[0].answering is not batch[0].answering:
                        break
                    asked = self._waiting.popleft()
                    if asked.future.set_running_or_notify_cancel():  # whose client has not gone meanwhile
                        batch.append(asked)
        return batch

    def _wait_for_more(self) -> None:
        engines = self._waiting[0].answering.engines
        now = time.monotonic()
        for_decoding, for_others = (
            now + min(part * engines.batch_seconds, _LONGEST_WAIT) for part in (_FOR_DECODING, _FOR_OTHERS)
        )
        while 0 < len(self._waiting) < engines.batch_size:
            end = for_decoding if self._decoding else for_others
            left = end - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)
