"""The choice of an engine: what is asked for, else what is fastest here and agrees with float32."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeFactory, QuartersEngine, factory_of, registered

from imgindex.errors import UnsupportedModelError, UsageError
from imgindex.models.backbones import load_backbone
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.engines.selection import choose_engine
from imgindex.models.frameworks import has_bfloat16
from imgindex.models.preprocess import Pixels, decode
from imgindex.models.resizing import Resizing
from imgindex.runtime.resources import available_cores

DIM = 1024
AXES, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, 2)))
BLACK = np.zeros((8, 8, 6, 3), np.uint8)
# Image n is of this color.
NUMBERED = BLACK + np.arange(8, dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]


def choose(pixels: Pixels, **changes: Any) -> EngineChoice:
    arguments = {"engine": "auto", "precision": "auto", "batch_size": None, **changes}

    def sample(resizing: Resizing, count: int) -> Pixels:
        assert resizing.size == pixels.shape[1:3]
        assert count >= 1
        return pixels[:count]

    return choose_engine("MobileNetV2", "bundled", "avg", None, sample=sample, **arguments)


class TestRealEngines:
    """On real features: random pixels and weights are no measure of what rounding does."""

    @pytest.fixture(scope="class")
    def pixels(self, sample_photos: Path) -> Pixels:
        paths = sorted(sample_photos.rglob("*_002.jpg"))[:8]
        return np.stack([decode(path.read_bytes(), (224, 224)).pixels for path in paths])

    def cosine(self, chosen: EngineChoice, pixels: Pixels) -> float:
        """The least cosine of the chosen engine's features with float32 Keras's."""
        model = load_backbone("MobileNetV2", "bundled", "avg", None).model
        expected = model.predict(pixels, verbose=0).astype(np.float64)
        found = embed_all(load_engine(chosen, 2), pixels).astype(np.float64)
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        return float(((expected * found).sum(axis=1) / norms).min())

    def test_auto_agrees_with_float32_keras(self, pixels: Pixels) -> None:
        chosen = choose(pixels)
        assert self.cosine(chosen, pixels) >= 0.999
        assert (chosen.cosine is not None) == has_bfloat16()

    def test_what_is_asked_for_is_taken(self, pixels: Pixels) -> None:
        chosen = choose(pixels, engine="tensorflow", precision="float32", batch_size=3)
        assert (chosen.engine, chosen.precision, chosen.batch_size) == ("tensorflow", "float32", 3)
        with pytest.raises(UsageError, match=r"engine\.precision is 'float16'"):
            choose(pixels, engine="openvino", precision="float16")


class RotatedEngine(QuartersEngine):
    """The features of image n in bfloat16 have the nth of some cosines with those in float32."""

    feature_dim = DIM

    def __init__(self, choice: EngineChoice, cosines: np.ndarray) -> None:
        super().__init__(choice.batch_size)
        self.cosines = cosines if choice.precision == "bfloat16" else np.ones(256)

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        cosines = self.cosines[pixels[:, 0, 0, 0]]
        return (np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1) @ AXES.T).astype(np.float32)


class TestPrecision:
    """With an engine whose smaller precision has the cosines that a test says."""

    @pytest.fixture
    def rotate(self) -> Iterator[Callable[..., list[EngineChoice]]]:
        """Registers the engine ``rotated``; gives the list of all that is loaded of it from now on."""

        def rotate(*cosines: float, faster: bool = True) -> list[EngineChoice]:
            loaded: list[EngineChoice] = []
            by_image = np.array([*cosines, *[1.0] * (256 - len(cosines))])

            def make(choice: EngineChoice, threads: int) -> RotatedEngine:
                loaded.append(choice)
                return RotatedEngine(choice, by_image)

            engine = FakeFactory(make, smaller="bfloat16", faster=faster)
            stack.enter_context(registered("rotated", engine))
            return loaded

        with ExitStack() as stack:
            yield rotate

    @pytest.mark.parametrize(("cosine", "precision"), [(0.9989, "float32"), (0.9991, "bfloat16")])
    def test_one_that_disagrees_on_any_image_is_not_chosen(
        self, cosine: float, precision: str, rotate: Callable[..., list[EngineChoice]]
    ) -> None:
        rotate(1.0, cosine, 1.0)
        chosen = choose(NUMBERED, engine="rotated")
        assert chosen.precision == precision
        assert chosen.cosine == pytest.approx(cosine, abs=5e-5)

    def test_where_a_smaller_one_is_not_faster_nothing_is_compared(
        self, rotate: Callable[..., list[EngineChoice]]
    ) -> None:
        loaded = rotate(faster=False)
        chosen = choose(NUMBERED, engine="rotated")
        assert (chosen.precision, chosen.cosine, loaded) == ("float32", None, [])
        assert choose(NUMBERED, engine="rotated", precision="bfloat16").precision == "bfloat16"

    def test_what_was_compared_is_not_loaded_again(self, rotate: Callable[..., list[EngineChoice]]) -> None:
        loaded = rotate()
        chosen = choose(NUMBERED, engine="rotated")
        assert sorted(choice.precision for choice in loaded) == ["bfloat16", "float32"]
        assert load_engine(chosen, available_cores()).feature_dim == DIM
        assert len(loaded) == 2

    def test_no_images_to_compare(self, rotate: Callable[..., list[EngineChoice]]) -> None:
        rotate(0.5)
        chosen = choose(NUMBERED[:0], engine="rotated")
        assert (chosen.precision, chosen.cosine) == ("bfloat16", None)

    def test_features_without_direction_are_not_compared(self) -> None:
        class Dark(QuartersEngine):
            def embed(self, pixels: np.ndarray) -> np.ndarray:
                return 0 * super().embed(pixels)

        dark = FakeFactory(lambda choice, threads: Dark(choice.batch_size), smaller="float16", faster=True)
        with registered("dark", dark):
            assert choose(NUMBERED, engine="dark").cosine is None

    def test_one_that_the_engine_lacks_is_refused(self) -> None:
        with (
            registered("plain", factory_of()),
            pytest.raises(UsageError, match=r"'bfloat16'; plain on this machine runs float32$"),
        ):
            choose(NUMBERED, engine="plain", precision="bfloat16")


class TestAuto:
    def refusing(self, name: str) -> FakeFactory:
        def refuse(choice: EngineChoice, threads: int) -> QuartersEngine:
            raise UnsupportedModelError(f"{name} cannot run {choice.name}")

        return FakeFactory(refuse, gpu=True)

    def test_one_that_uses_a_gpu_comes_first(self) -> None:
        with registered("slow", factory_of()), registered("quick", replace(factory_of(), gpu=True)):
            chosen = choose(BLACK)
        assert (chosen.engine, chosen.precision, chosen.batch_size) == ("quick", "float32", 4)

    def test_one_that_cannot_run_the_model_is_passed_over(self) -> None:
        able = replace(factory_of(), gpu=True)
        with registered("first", self.refusing("first")), registered("second", able):
            assert choose(BLACK).engine == "second"

    def test_what_is_asked_for_is_not_passed_over(self) -> None:
        with (
            registered("first", replace(self.refusing("first"), smaller="bfloat16", faster=True)),
            pytest.raises(UnsupportedModelError, match="first cannot run MobileNetV2"),
        ):
            choose(BLACK, engine="first")
