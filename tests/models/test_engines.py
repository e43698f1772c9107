"""Engines: the same features as the Keras model's, whatever else is in the batch."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.errors import UsageError
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import create_engine, load_engine
from imgindex.models.engines.openvino_conversion import converted_model
from imgindex.models.engines.protocol import Engine, EngineChoice
from imgindex.models.frameworks import has_bfloat16
from imgindex.models.spec import Spec

SIZE = 64
BATCH = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)


def choice(engine: str, **changes) -> EngineChoice:
    return dataclasses.replace(
        EngineChoice("MobileNetV2", "none", "avg", SIZE, engine, "float32", BATCH), **changes
    )


@pytest.fixture(scope="module", params=["tensorflow", "openvino"])
def engine(request) -> Engine:
    return load_engine(choice(request.param), threads=2)


@pytest.fixture(scope="module")
def alone(engine) -> np.ndarray:
    """Each image's feature, beside padding only."""
    return np.concatenate([embed_all(engine, image[np.newaxis]) for image in PIXELS])


class TestEngine:
    def test_says_what_it_is(self, engine, small_backbone):
        assert engine.name in ("tensorflow", "openvino")
        assert (engine.precision, engine.batch_size) == ("float32", BATCH)
        assert (engine.image_size, engine.feature_dim) == ((SIZE, SIZE), 1280)
        assert engine.spec == Spec.of(small_backbone)

    def test_equals_the_keras_model(self, small_backbone, alone):
        expected = small_backbone.model.predict(PIXELS, verbose=0)
        assert alone.dtype == np.float32
        tolerance = 1e-4 * expected.max()
        assert np.ptp(expected, axis=0).max() > 100 * tolerance, "another image's feature would pass"
        np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=tolerance)

    def test_images_differ(self, alone):
        assert len(np.unique(alone, axis=0)) == len(PIXELS)

    @given(st.lists(st.integers(0, len(PIXELS) - 1), min_size=1, max_size=2 * BATCH + 1))
    @settings(deadline=None, max_examples=40)
    def test_a_row_depends_on_its_image_alone(self, engine, alone, chosen):
        np.testing.assert_array_equal(embed_all(engine, PIXELS[chosen]), alone[chosen], strict=True)

    def test_neighbors_of_any_content_change_nothing(self, engine, alone):
        for other in (0, 255):
            for place in range(BATCH):
                batch = np.full((BATCH, SIZE, SIZE, 3), other, np.uint8)
                batch[place] = PIXELS[0]
                np.testing.assert_array_equal(engine.embed(batch)[place], alone[0])

    def test_features_outlive_the_next_batch(self, engine, alone):
        first = engine.embed(PIXELS[:BATCH])
        engine.embed(PIXELS[BATCH : 2 * BATCH])
        np.testing.assert_array_equal(first, alone[:BATCH])

    def test_no_images(self, engine):
        assert embed_all(engine, PIXELS[:0]).shape == (0, 1280)

    def test_changes_no_pixels(self, engine):
        pixels = PIXELS[:BATCH].copy()
        engine.embed(pixels)
        np.testing.assert_array_equal(pixels, PIXELS[:BATCH])


class TestMemory:
    """The frameworks run out of memory in ways of their own; out of an engine comes a MemoryError."""

    def test_openvino_where_the_system_gives_no_more(self):
        load_engine(choice("openvino"), 2)  # converted
        code = (
            "import re, resource; from pathlib import Path\n"
            "from imgindex.models.engines.loading import load_engine\n"
            "from imgindex.models.engines.protocol import EngineChoice\n"
            f"small = EngineChoice('MobileNetV2', 'none', 'avg', {SIZE}, 'openvino', 'float32', 1)\n"
            "load_engine(small, 2)\n"
            "held = int(re.search(r'VmSize:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) << 10\n"
            "resource.setrlimit(resource.RLIMIT_AS, (held + (300 << 20),) * 2)\n"
            f"large = EngineChoice('MobileNetV2', 'none', 'avg', {SIZE}, 'openvino', 'float32', 4096)\n"
            "print(load_engine(large, 2).batch_size)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert 1 <= int(done.stdout) < 4096
        assert "4096 images do not fit into memory at once: going on with batches of 2048" in done.stderr

    @pytest.mark.parametrize(
        "message", ["Failed to allocate 9 bytes", "std::bad_alloc", "Cannot allocate memory", "can't alloc"]
    )
    def test_openvino_says_it_in_several_ways(self, message, monkeypatch):
        def fail(*_):
            raise RuntimeError(f"Exception from src/inference/src/dev/plugin.cpp:54:\n{message}\n")

        monkeypatch.setattr("openvino.Core.compile_model", fail)
        with pytest.raises(MemoryError):
            create_engine(choice("openvino"), 2)

    def test_openvino_fails_otherwise(self):
        engine = create_engine(choice("openvino"), 2)
        with pytest.raises(RuntimeError):
            engine.embed(np.zeros((BATCH, SIZE, SIZE, 4), np.uint8))

    @pytest.mark.long
    def test_tensorflow(self, monkeypatch):
        import tensorflow as tf

        def exhaust(_):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

        engine = load_engine(choice("tensorflow"), 2)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_run", exhaust)  # TensorFlow on a CPU does not survive it, a GPU is rare
            with pytest.raises(MemoryError, match="OOM when allocating"):
                engine.embed(PIXELS[:BATCH])
        assert engine.embed(PIXELS[:BATCH]).shape == (BATCH, 1280)


@pytest.mark.long
def test_tensorflow_switches_its_rewrites_off_again():
    def features(precision: str) -> np.ndarray:
        return embed_all(create_engine(choice("tensorflow", precision=precision), 2), PIXELS)

    first, smaller, again = features("float32"), features("bfloat16"), features("float32")
    assert np.array_equal(first, again)
    if has_bfloat16():
        assert not np.array_equal(first, smaller)


def test_the_first_batches_may_come_at_once():
    converted_model("MobileNetV2", "none", "avg", SIZE)
    # OpenVINO asks for NumPy's version when it first needs it. Were that now, both threads would hang.
    code = f"""
import threading, time
import numpy as np
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import EngineChoice
engine = load_engine(EngineChoice("MobileNetV2", "none", "avg", {SIZE}, "openvino", "float32", 1), 2)
ask = np.lib.NumpyVersion.__init__
def ask_slowly(*arguments):
    time.sleep(0.5)
    ask(*arguments)
np.lib.NumpyVersion.__init__ = ask_slowly
pixels = np.zeros((1, {SIZE}, {SIZE}, 3), np.uint8)
threads = [threading.Thread(target=engine.embed, args=[pixels]) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestWhatAnEngineCannotRun:
    def test_openvino_is_named_and_what_to_do(self, keras_model):
        """Its CPU plugin has no conversion to bfloat16."""
        with pytest.raises(
            UsageError, match=r"OpenVINO cannot run keras-model-.* set engine.name to tensorflow"
        ):
            create_engine(choice("openvino", name=keras_model("mixed_bfloat16"), image_size=None), 1)

    def test_a_precision_that_openvino_does_not_have(self):
        """As a manifest may name that nobody has built."""
        with pytest.raises(UsageError, match=r"precision is 'float16'; openvino runs float32 or bfloat16"):
            create_engine(choice("openvino", precision="float16"), 1)

    def test_tensorflow_runs_it(self, keras_model):
        engine = create_engine(choice("tensorflow", name=keras_model("mixed_bfloat16"), image_size=None), 1)
        assert np.isfinite(embed_all(engine, PIXELS[:1, :32, :32])).all()
