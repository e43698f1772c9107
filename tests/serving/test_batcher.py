"""Queries of all requests are embedded in batches, each of one generation, and each gets its own vector."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imgindex.search.queries import Loaded
from imgindex.search.results import QueryError
from imgindex.serving.batcher import Batcher


class Engines:
    """Embeds a query as its pixels are, and holds the first batch until it is let go."""

    batch_size = 4
    streams = 1
    batch_seconds = 0.01

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun, self.gate = threading.Event(), threading.Event()

    def vectors(self, queries: Any, dims: int, basis: Any) -> tuple[Any, dict[int, QueryError]]:
        self.batches.append([query.name for query in queries])
        self.begun.set()
        self.gate.wait()
        if any(query.name == "fails" for query in queries):
            raise RuntimeError("out of order")
        errors = {
            number: QueryError("embed", "no_direction", "")
            for number, query in enumerate(queries) if not query.value.any()
        }  # fmt: skip
        return np.stack([query.value for query in queries]), errors


def answering(engines: Engines) -> Any:
    return SimpleNamespace(
        engines=engines, manifest=SimpleNamespace(dims=2), opened=SimpleNamespace(basis=None)
    )


def query(name: str, value: float = 1) -> Loaded:
    return Loaded(name, np.full(2, value, np.float32))


@pytest.fixture
def engines() -> Engines:
    return Engines()


def test_what_waits_is_embedded_together_in_batches_of_what_the_engine_takes(engines: Engines) -> None:
    sizes: list[int] = []
    batcher, where = Batcher(lambda count, seconds: sizes.append(count)), answering(engines)
    futures = [batcher.submit(where, query("0", 100))]
    engines.begun.wait()
    futures += [batcher.submit(where, query(str(number), number)) for number in range(1, 8)]
    engines.gate.set()
    values = [future.result()[0] for future in futures]
    assert values == [100, *range(1, 8)]
    assert engines.batches == [["0"], ["1", "2", "3", "4"], ["5", "6", "7"]]
    batcher.close()
    assert sizes[:2] == [1, 4]


def test_a_batch_waits_for_what_is_being_decoded(engines: Engines) -> None:
    engines.batch_seconds = 1000  # a batch waits at most a tenth of a second all the same
    engines.gate.set()
    batcher, where = Batcher(), answering(engines)
    with batcher.decoding():
        first = batcher.submit(where, query("first"))
        second = batcher.submit(where, query("second"))
    assert [first.result()[0], second.result()[0]] == [1, 1]
    assert engines.batches == [["first", "second"]]
    batcher.close()


def test_a_batch_is_of_one_generation(engines: Engines) -> None:
    batcher, old, new = Batcher(), answering(engines), answering(engines)
    held = batcher.submit(old, query("held"))
    engines.begun.wait()
    futures = [batcher.submit(where, query(name)) for where, name in ((old, "a"), (new, "b"), (new, "c"))]
    engines.gate.set()
    for future in (held, *futures):
        future.result()
    assert engines.batches == [["held"], ["a"], ["b", "c"]]
    batcher.close()


def test_an_image_without_a_direction_has_an_error_of_its_own(engines: Engines) -> None:
    engines.gate.set()
    batcher, where = Batcher(), answering(engines)
    with batcher.decoding():
        black, white = batcher.submit(where, query("black", 0)), batcher.submit(where, query("white"))
    assert black.result() == QueryError("embed", "no_direction", "")
    assert white.result().tolist() == [1, 1]
    batcher.close()


def test_an_engine_that_fails_fails_its_batch_alone(engines: Engines) -> None:
    engines.gate.set()
    batcher, where = Batcher(), answering(engines)
    with pytest.raises(RuntimeError, match="out of order"):
        batcher.submit(where, query("fails")).result()
    assert batcher.submit(where, query("works")).result().tolist() == [1, 1]
    batcher.close()


def test_what_nobody_waits_for_any_more_is_not_embedded(engines: Engines) -> None:
    batcher, where = Batcher(), answering(engines)
    held = batcher.submit(where, query("held"))
    engines.begun.wait()
    gone, kept = batcher.submit(where, query("gone")), batcher.submit(where, query("kept"))
    assert gone.cancel()
    engines.gate.set()
    kept.result()
    held.result()
    assert engines.batches == [["held"], ["kept"]]
    batcher.close()


def test_many_threads_get_each_their_own(engines: Engines) -> None:
    engines.gate.set()
    engines.streams = 3
    batcher, where = Batcher(), answering(engines)

    def ask(number: int) -> float:
        with batcher.decoding():
            future = batcher.submit(where, query(str(number), number + 1))
        return float(future.result()[0])

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, range(400))) == [number + 1 for number in range(400)]
    assert sorted(name for batch in engines.batches for name in batch) == sorted(map(str, range(400)))
    assert max(map(len, engines.batches)) <= 4
    batcher.close()
