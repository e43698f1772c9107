"""Loading: one engine for a whole process, and smaller batches where memory is short."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from threading import Barrier

import pytest
from fake_engine import FakeFactory, QuartersEngine, registered

from imgindex.errors import WorkerError
from imgindex.models.engines.loading import load_engine, load_smaller_engine
from imgindex.models.engines.protocol import EngineChoice


@pytest.mark.parametrize("name", [pytest.param("tensorflow", marks=pytest.mark.long), "openvino"])
def test_loaded_once_in_a_process_from_any_thread(name: str) -> None:
    start = Barrier(2)
    wanted = EngineChoice("MobileNetV2", "none", "avg", 32, name, "float32", 2)

    def load(_: int) -> object:
        start.wait()
        return load_engine(wanted, 2)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(load, range(2))
    assert one is two is load_engine(replace(wanted), 2)
    assert (one.name, one.batch_size, one.image_size) == (name, 2, (32, 32))


def test_other_arguments_give_another_engine_of_the_same_spec() -> None:
    wanted = EngineChoice("MobileNetV2", "none", "avg", 32, "openvino", "float32", 2)
    one = load_engine(wanted, 2)
    other = load_engine(replace(wanted, batch_size=3), 2)
    assert (one.batch_size, other.batch_size) == (2, 3)
    assert one.spec == other.spec, "the batch size decides no feature"


class TestMemory:
    """Where an engine does not fit, with one of which a test says how many images fit."""

    numbers = count()

    @pytest.fixture
    def choice(self, request: pytest.FixtureRequest) -> Iterator[EngineChoice]:
        """Of an engine for 16 images, of which as many fit as the test's parameter says."""
        fits: int = request.param

        def make(choice: EngineChoice, threads: int) -> QuartersEngine:
            if choice.batch_size > fits:
                raise MemoryError("Failed to allocate")
            return QuartersEngine(choice.batch_size)

        # What has been found not to fit is remembered by its choice: each test has a name of its own.
        name = f"heavy-{next(self.numbers)}"
        with registered(name, FakeFactory(make)):
            yield EngineChoice("MobileNetV2", "none", "avg", 32, name, "float32", 16)

    @pytest.mark.parametrize(
        ("choice", "batch_size", "halvings"), [(16, 16, 0), (15, 8, 1), (5, 4, 2), (1, 1, 4)],
        indirect=["choice"],
    )  # fmt: skip
    def test_halves_batches_until_they_fit(
        self, choice: EngineChoice, batch_size: int, halvings: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = load_engine(choice, 2)
        assert engine.batch_size == batch_size
        warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == halvings
        if halvings:
            assert warnings[0] == "16 images do not fit into memory at once: going on with batches of 8"
        assert load_engine(choice, 2) is engine

    @pytest.mark.parametrize("choice", [0], indirect=True)
    def test_says_that_nothing_fits(self, choice: EngineChoice) -> None:
        with pytest.raises(
            WorkerError, match=f"{choice.engine} has too little memory for one image of MobileNetV2"
        ):
            load_engine(choice, 2)

    @pytest.mark.parametrize("choice", [16], indirect=True)
    def test_all_who_share_an_engine_go_on_with_one_smaller_one(self, choice: EngineChoice) -> None:
        load_engine(choice, 2)
        one, two = (load_smaller_engine(choice, 2, 16) for _ in range(2))
        assert one is two is load_engine(choice, 2)
        assert one.batch_size == 8
        assert load_smaller_engine(choice, 2, 8).batch_size == 4
