"""Decoder processes that all threads of a process share, whatever embeds in them."""

import queue
import threading
from collections.abc import Callable

from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DEFAULT_MAX_PIXELS, DecodedImage
from imgindex.models.resizing import Resizing


class DecoderPool:
    """Decodes as `DecoderProcess` does, for any number of threads: each image has one process to itself."""

    def __init__(self, size: int, make: Callable[[], DecoderProcess] = DecoderProcess) -> None:
        """`make` gives each of the `size` decoders; their processes start with their first images."""
        self._make = make
        self._size = 0
        self._idle: queue.LifoQueue[DecoderProcess] = queue.LifoQueue()
        self.grow(size)

    def grow(self, size: int) -> None:
        """Makes the pool one of at least `size` decoders."""
        for _ in range(self._size, size):
            self._idle.put(self._make())
        self._size = max(self._size, size)

    def decode(
        self,
        data: bytes,
        resizing: Resizing,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        color_profile: str = "srgb",
        truncated: str = "fail",
    ) -> DecodedImage:
        """See `DecoderProcess.decode`; waits while all decoders are busy."""
        decoder = self._idle.get()
        try:
            return decoder.decode(data, resizing, max_pixels, color_profile, truncated)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """Ends the processes, none of which may be decoding."""
        while not self._idle.empty():
            self._idle.get().close()
        self._size = 0


_lock = threading.Lock()
_shared: DecoderPool | None = None
_users = 0


def acquire(size: int) -> DecoderPool:
    """This process's one pool, of at least `size` decoders. Each call wants one of `release`."""
    global _shared, _users
    with _lock:
        if _shared is None:
            _shared = DecoderPool(size)
        _shared.grow(size)
        _users += 1
        return _shared


def release() -> None:
    """Gives the pool back; its last user ends its processes."""
    global _shared, _users
    with _lock:
        _users -= 1
        if _shared is not None and _users == 0:
            _shared.close()
            _shared = None
