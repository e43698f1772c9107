"""Batches through engines that fail: for some images, for all, for lack of memory, or only once."""

import gc
import weakref
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.errors import WorkerError
from imgindex.models.batches import BatchEmbedder, EmbeddedBatch

SIZE = (2, 3)
IMAGES = np.random.default_rng(0).integers(1, 256, (40, *SIZE, 3), dtype=np.uint8)


class FlatEngine:
    """Features are the pixels. Batches fail that hold a guilty image, or more images than fit."""

    name = "flat"
    image_size = SIZE
    feature_dim = 18

    def __init__(
        self, batch_size: int, streams: int = 1, guilty: Iterable[int] = (), fits: int = 1000
    ) -> None:
        self.batch_size = batch_size
        self.streams = streams
        self.guilty = set(guilty)
        self.fits = fits
        self.calls = 0

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        assert len(pixels) == self.batch_size
        self.calls += 1
        if self.batch_size > self.fits:
            raise MemoryError(f"no room for {self.batch_size}")
        found = {number for number in self.guilty if (pixels == IMAGES[number]).all(axis=(1, 2, 3)).any()}
        if found:
            raise ValueError(f"an image among\n{len(pixels)} is bad")
        return pixels.reshape(-1, self.feature_dim).astype(np.float32)

    def smaller(self, batch_size: int) -> "FlatEngine":
        if batch_size == 1:
            raise WorkerError("not one image fits")
        return FlatEngine(batch_size // 2, self.streams, self.guilty, self.fits)


def refuse(batch_size: int) -> FlatEngine:
    raise AssertionError(f"memory sufficed for {batch_size}")


def embed(embedder: BatchEmbedder, batches: list[list[int]]) -> list[EmbeddedBatch]:
    """All `batches` of images, which are numbered, with as many under way as in a build."""
    embedded = []
    for batch in batches:
        if len(embedder) > embedder.engine.streams:
            embedded.append(embedder.take())
        embedder.submit([IMAGES[number] for number in batch])
    while len(embedder):
        embedded.append(embedder.take())
    embedder.close()
    return embedded


def features(embedded: list[EmbeddedBatch]) -> np.ndarray:
    return np.concatenate([batch.features for batch in embedded])


numbers = st.integers(0, len(IMAGES) - 1)
some_batches = st.lists(st.lists(numbers, min_size=1, max_size=9), min_size=1, max_size=8)


@given(some_batches, st.sets(numbers), st.integers(1, 9), st.integers(1, 3))
def test_the_guilty_fail_and_the_others_keep_their_bits(batches, guilty, batch_size, streams):
    healthy = features(embed(BatchEmbedder(FlatEngine(batch_size), refuse), batches))
    embedded = embed(BatchEmbedder(FlatEngine(batch_size, streams, guilty), refuse), batches)
    assert [len(batch.features) for batch in embedded] == [len(batch) for batch in batches]
    errors = [error for batch in embedded for error in batch.errors]
    fails = np.array([number in guilty for batch in batches for number in batch])
    assert [error is not None for error in errors] == fails.tolist()
    assert {error.reason for error in errors if error} <= {"engine_error"}
    assert {error.message for error in errors if error} <= {f"ValueError: an image among {batch_size} is bad"}
    np.testing.assert_array_equal(features(embedded)[~fails], healthy[~fails])


def test_finding_one_image_takes_few_batches():
    engine = FlatEngine(32, guilty=[11])
    (batch,) = embed(BatchEmbedder(engine, refuse), [list(range(32))])
    assert [number for number, error in enumerate(batch.errors) if error] == [11]
    assert engine.calls == 1 + 2 * 5


@given(some_batches, st.integers(1, 20), st.integers(1, 20), st.integers(1, 3))
def test_where_memory_runs_out_smaller_batches_give_the_same(batches, batch_size, fits, streams):
    healthy = features(embed(BatchEmbedder(FlatEngine(batch_size), refuse), batches))
    engine = FlatEngine(batch_size, streams, fits=fits)
    embedder = BatchEmbedder(engine, engine.smaller)
    np.testing.assert_array_equal(features(embed(embedder, batches)), healthy)
    expected = batch_size
    while expected > fits:
        expected //= 2
    assert embedder.engine.batch_size == expected


def test_the_larger_engine_is_gone_before_the_smaller_one_is_loaded():
    def smaller(batch_size: int) -> FlatEngine:
        gc.collect()
        gone.append(large() is None)
        return FlatEngine(batch_size // 2)

    gone: list[bool] = []
    engine = FlatEngine(8, streams=2, fits=4)
    large = weakref.ref(engine)
    embedder = BatchEmbedder(engine, smaller)
    del engine
    embedder.submit(IMAGES[:8])
    embedder.submit(IMAGES[8:11])
    assert len(embedder.take().features) == 8
    assert len(embedder.take().features) == 3
    assert gone == [True]
    embedder.close()


@pytest.mark.parametrize("fits", [0, 1])
def test_memory_for_no_image_at_all_ends_the_run(fits):
    engine = FlatEngine(1 + fits, fits=fits)
    embedder = BatchEmbedder(engine, engine.smaller)
    embedder.submit(IMAGES[:1])
    if fits:
        assert list(embedder.take().errors) == [None]
    else:
        with pytest.raises(WorkerError, match="fails for every image, also for a black one: MemoryError"):
            embedder.take()
    embedder.close()


def test_an_engine_that_fails_for_a_black_image_too_ends_the_run_at_once():
    class Broken(FlatEngine):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            self.calls += 1
            raise RuntimeError("the device\nis gone")

    engine = Broken(4)
    embedder = BatchEmbedder(engine, refuse)
    embedder.submit(IMAGES[:4])
    with pytest.raises(WorkerError, match=r"flat fails for every image.*RuntimeError: the device is gone"):
        embedder.take()
    assert engine.calls == 7 + 1
    embedder.close()


def test_an_engine_that_fails_once_loses_no_image():
    class Shaky(FlatEngine):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            features = super().embed(pixels)
            if self.calls == 1:
                raise RuntimeError("a hiccup")
            return features

    (batch,) = embed(BatchEmbedder(Shaky(4), refuse), [[0, 1, 2, 3]])
    assert list(batch.errors) == [None] * 4


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_feature_without_direction(bad):
    class Flawed(FlatEngine):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            found = super().embed(pixels)
            found[1] = 0
            found[1, 5] = bad
            return found

    (batch,) = embed(BatchEmbedder(Flawed(3), refuse), [[0, 1, 2]])
    assert [error.reason if error else None for error in batch.errors] == [None, "no_direction", None]
