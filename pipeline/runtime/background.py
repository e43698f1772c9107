"""Work that goes on beside other work, in threads."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from imgindex.runtime.resources import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

# Threads of `in_order`, at most: each holds an item and its result.
_MOST_THREADS = 4


def threads_in_order() -> int:
    """How many threads `in_order` has."""
    return min(available_cores(), _MOST_THREADS)


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `work` gives for each of `items`, in their order, while threads work on those that follow.

    They are few items ahead, so that the results that wait take bounded memory.
    """
    threads = threads_in_order()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        for item in items:
            if len(waiting) > threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs `work` in a thread until the block ends; the event that it is given is set then."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
