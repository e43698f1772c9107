"""Libraries for nearest neighbors as they should not be, for processes that tests start."""

import os
import signal
import time

import numpy as np


class Exact:
    """Brute force, which is as it should be."""

    name = "exact"

    def build(self, vectors, path, *, metric, settings):
        path.write_bytes(np.ascontiguousarray(vectors).tobytes())

    def open(self, path, *, metric, dims, items):
        self._rows = np.frombuffer(path.read_bytes(), np.float32).reshape(items, dims)
        return self

    def search(self, query, k, settings):
        time.sleep(settings.get("sleep", 0))
        distances = np.linalg.norm(self._rows - query, axis=1)
        items = np.argsort(distances)[:k]
        return items, distances[items]


class NeverEnds(Exact):
    def build(self, vectors, path, *, metric, settings):
        while True:
            time.sleep(1)


class TakesMemory(Exact):
    def build(self, vectors, path, *, metric, settings):
        taken = []
        while True:
            taken.append(np.ones(1 << 21))
            time.sleep(0.01)


class Exits(Exact):
    def build(self, vectors, path, *, metric, settings):
        os.write(2, b"first\nthe last words\n")
        os._exit(9)


class Crashes(Exact):
    def build(self, vectors, path, *, metric, settings):
        os.kill(os.getpid(), signal.SIGSEGV)


class Refuses(Exact):
    def build(self, vectors, path, *, metric, settings):
        raise RuntimeError("no such\n  setting")
