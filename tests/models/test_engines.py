"""Engines: the same features as the Keras model's, whatever else is in the batch; and what the spec tells."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.errors import OutputError, UsageError
from imgindex.models import engines, frameworks, openvino_engine
from imgindex.models.backbones import Backbone, load_backbone
from imgindex.models.engines import (
    Engine,
    EngineChoice,
    choose_engine,
    embed_all,
    load_engine,
)
from imgindex.models.frameworks import settled_keras
from imgindex.models.openvino_engine import converted_model, has_bfloat16
from imgindex.models.preprocess import decode
from imgindex.models.spec import Spec
from imgindex.runtime.resources import available_cores

SIZE = 64
BATCH = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)


def choice(engine: str, **changes) -> EngineChoice:
    return dataclasses.replace(
        EngineChoice("MobileNetV2", "none", "avg", SIZE, engine, "float32", BATCH), **changes
    )


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("MobileNetV2", "none", "avg", SIZE)


@pytest.fixture(scope="module", params=["tensorflow", "openvino"])
def engine(request) -> Engine:
    return load_engine(choice(request.param), threads=2)


@pytest.fixture(scope="module")
def alone(engine) -> np.ndarray:
    """Each image's feature, beside padding only."""
    return np.concatenate([embed_all(engine, image[np.newaxis]) for image in PIXELS])


class TestEngine:
    def test_says_what_it_is(self, engine, backbone):
        assert engine.name in ("tensorflow", "openvino")
        assert (engine.precision, engine.batch_size) == ("float32", BATCH)
        assert (engine.image_size, engine.feature_dim) == ((SIZE, SIZE), 1280)
        assert engine.spec == Spec.of(backbone)

    def test_equals_the_keras_model(self, backbone, alone):
        expected = backbone.model.predict(PIXELS, verbose=0)
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

    def test_neighbours_of_any_content_change_nothing(self, engine, alone):
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
            "from imgindex.models.engines import EngineChoice, load_engine\n"
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
            engines._create(choice("openvino"), 2)

    def test_openvino_fails_otherwise(self):
        engine = engines._create(choice("openvino"), 2)
        with pytest.raises(RuntimeError):
            engine.embed(np.zeros((BATCH, SIZE, SIZE, 4), np.uint8))

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


class TestLoadEngine:
    @pytest.mark.parametrize("name", ["tensorflow", "openvino"])
    def test_loaded_once_in_a_process_from_any_thread(self, name):
        start = Barrier(2)
        wanted = choice(name, image_size=32, batch_size=2)

        def load(_):
            start.wait()
            return load_engine(wanted, 2)

        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(load, range(2))
        assert one is two is load_engine(dataclasses.replace(wanted), 2)
        assert (one.name, one.batch_size, one.image_size) == (name, 2, (32, 32))

    def test_other_arguments_give_another_engine_of_the_same_spec(self):
        one = load_engine(choice("openvino", image_size=32, batch_size=2), 2)
        other = load_engine(choice("openvino", image_size=32, batch_size=3), 2)
        assert (one.batch_size, other.batch_size) == (2, 3)
        assert one.spec == other.spec, "the batch size decides no feature"


class TestSpec:
    SPEC = Spec("ResNet50", "ab" * 32, (224, 224), "avg", "keras.preprocess", "decoded-1", "ef" * 32)

    @pytest.mark.parametrize(
        "change",
        [
            {"backbone": "ResNet101"},
            {"weights_sha256": "cd" * 32},
            {"image_size": (224, 225)},
            {"image_size": (225, 224)},
            {"pooling": "max"},
            {"preprocessing": "keras.other"},
            {"decoding": "decoded-2"},
            {"layers_sha256": "cd" * 32},
        ],
    )
    def test_each_field_changes_the_digest(self, change):
        changed = dataclasses.replace(self.SPEC, **change)
        assert changed != self.SPEC
        assert changed.digest != self.SPEC.digest

    def test_every_field_is_tried(self):
        [tried] = self.test_each_field_changes_the_digest.pytestmark
        names = {name for change in tried.args[1] for name in change}
        assert names == {field.name for field in dataclasses.fields(Spec)}

    def test_values_do_not_run_into_each_other(self):
        one = dataclasses.replace(self.SPEC, pooling="avg", preprocessing="x")
        other = dataclasses.replace(self.SPEC, pooling="av", preprocessing="gx")
        assert one.digest != other.digest

    def test_digest_is_16_hexadecimal_digits_that_stay(self):
        assert self.SPEC.digest == dataclasses.replace(self.SPEC).digest
        # Stores on disk are named by it.
        assert self.SPEC.digest == "e363c5f2739d83a7"

    def test_survives_json(self):
        stored = json.loads(json.dumps(dataclasses.asdict(self.SPEC)))
        assert Spec(**stored | {"image_size": tuple(stored["image_size"])}) == self.SPEC

    def test_paths_of_weights_do_not_matter_and_weights_do(self, backbone, tmp_path: Path):
        core = next(layer for layer in backbone.model.layers if hasattr(layer, "layers"))
        paths = [tmp_path / "one.weights.h5", tmp_path / "elsewhere" / "two.weights.h5"]
        paths[1].parent.mkdir()
        for path in paths:
            core.save_weights(path)
        expected = Spec.of(backbone)
        for path in paths:
            loaded = Spec.of(load_backbone("MobileNetV2", str(path), "avg", SIZE))
            assert (loaded, loaded.digest) == (expected, expected.digest)
        other = Spec.of(load_backbone("MobileNetV2", "none", "avg", SIZE, seed=1))
        assert other == dataclasses.replace(expected, weights_sha256=other.weights_sha256)
        assert other.digest != expected.digest

    def test_describes_the_backbone(self, backbone):
        spec = Spec.of(backbone)
        assert (spec.backbone, spec.image_size, spec.pooling) == ("MobileNetV2", (SIZE, SIZE), "avg")
        assert spec.preprocessing == "keras.applications.mobilenet_v2.preprocess_input"
        assert spec.decoding


class TestPrecision:
    """On real features: random pixels and weights are no measure of what rounding does."""

    @pytest.fixture(scope="class")
    def pixels(self, sample_photos):
        paths = sorted(sample_photos.rglob("*_002.jpg"))[:8]
        return np.stack([decode(path.read_bytes(), (224, 224)).pixels for path in paths])

    def choose(self, pixels, **changes) -> EngineChoice:
        arguments = {"engine": "auto", "precision": "auto", "batch_size": None, **changes}
        asked = []

        def sample(size, count):
            asked.append((size, count))
            return pixels[:count]

        chosen = choose_engine("MobileNetV2", "bundled", "avg", None, sample=sample, **arguments)
        assert all(size == (224, 224) and count >= 1 for size, count in asked)
        return chosen

    def cosine(self, chosen: EngineChoice, pixels) -> float:
        """The least cosine of the chosen engine's features with float32 Keras's."""
        model = load_backbone("MobileNetV2", "bundled", "avg", None).model
        expected = model.predict(pixels, verbose=0).astype(np.float64)
        found = embed_all(load_engine(chosen, 2), pixels).astype(np.float64)
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        return ((expected * found).sum(axis=1) / norms).min()

    def test_auto_agrees_with_float32_keras(self, pixels):
        chosen = self.choose(pixels)
        assert self.cosine(chosen, pixels) >= 0.999
        assert (chosen.cosine is not None) == has_bfloat16()

    def test_a_precision_that_disagrees_is_not_chosen(self, pixels, monkeypatch):
        monkeypatch.setattr(engines, "has_bfloat16", lambda: True)
        monkeypatch.setattr(engines, "_least_cosine", lambda *_: 0.9989)
        assert self.choose(pixels).precision == "float32"
        assert self.choose(pixels).cosine == 0.9989
        monkeypatch.setattr(engines, "_least_cosine", lambda *_: 0.9991)
        assert self.choose(pixels).precision == "bfloat16"

    def test_without_bfloat16_instructions_nothing_is_compared(self, pixels, monkeypatch):
        monkeypatch.setattr(engines, "has_bfloat16", lambda: False)
        assert (self.choose(pixels).precision, self.choose(pixels).cosine) == ("float32", None)

    def test_what_is_asked_for_is_taken(self, pixels):
        chosen = self.choose(pixels, engine="tensorflow", precision="float32", batch_size=3)
        assert (chosen.engine, chosen.precision, chosen.batch_size) == ("tensorflow", "float32", 3)
        with pytest.raises(UsageError, match=r"engine\.precision is 'float16'"):
            self.choose(pixels, engine="openvino", precision="float16")

    def test_what_was_compared_is_not_loaded_again(self, pixels, monkeypatch):
        monkeypatch.setattr(engines, "has_bfloat16", lambda: True)
        monkeypatch.setattr(engines, "MIN_COSINE", 0.0)
        chosen = self.choose(pixels)
        assert chosen.cosine is not None
        monkeypatch.setattr(engines, "_create", lambda *_: pytest.fail("it is loaded again"))
        assert load_engine(chosen, available_cores()).precision == "bfloat16"

    def test_no_images_to_compare(self, pixels):
        assert self.choose(pixels[:0]).cosine is None

    def test_tensorflow_switches_its_rewrites_off_again(self):
        def features(precision: str) -> np.ndarray:
            return embed_all(engines._create(choice("tensorflow", precision=precision), 2), PIXELS)

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
from imgindex.models.engines import EngineChoice, load_engine
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


@pytest.fixture
def keras_model(tmp_path):
    """Saves a model of one convolution, of a dtype policy; gives its path."""

    def save(policy: str) -> str:
        with settled_keras() as keras:
            path = tmp_path / f"{policy}.keras"
            layer = keras.layers.Conv2D(4, 3, kernel_initializer="ones", dtype=policy)
            keras.Sequential([keras.Input((32, 32, 3)), layer]).save(path)
        return str(path)

    return save


class TestWhatAnEngineCannotRun:
    def test_openvino_is_named_and_what_to_do(self, keras_model):
        """Its CPU plugin has no conversion to bfloat16."""
        with pytest.raises(
            UsageError, match=r"OpenVINO cannot run keras-model-.* set engine.name to tensorflow"
        ):
            engines._create(choice("openvino", name=keras_model("mixed_bfloat16"), image_size=None), 1)

    def test_tensorflow_runs_it(self, keras_model):
        engine = engines._create(choice("tensorflow", name=keras_model("mixed_bfloat16"), image_size=None), 1)
        assert np.isfinite(embed_all(engine, PIXELS[:1, :32, :32])).all()


class TestCacheKey:
    """Whatever goes into a conversion is in the key of what comes out."""

    def key(self, name="MobileNetV2", weights="none", pooling="avg", image_size=64) -> str:
        return openvino_engine._cache_key(name, weights, pooling, image_size)

    def test_stays(self):
        assert self.key() == self.key()

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "MobileNet"},
            {"weights": "bundled"},
            {"pooling": "max"},
            {"image_size": 65},
            {"image_size": None},
        ],
    )
    def test_of_another_backbone(self, change):
        assert self.key(**change) != self.key()

    @pytest.mark.parametrize("argument", [("name", "m.keras"), ("weights", "w.h5")])
    def test_of_another_content_of_a_file_and_not_of_another_path(self, argument, tmp_path):
        keys = []
        for folder, content in (("a", "one"), ("b", "other"), ("c", "one")):
            path = tmp_path / folder / argument[1]
            path.parent.mkdir()
            path.write_text(content)
            keys.append(self.key(**{argument[0]: str(path)}))
        assert keys[0] == keys[2] != keys[1]

    @pytest.mark.parametrize("library", ["imgindex", "keras", "numpy", "openvino", "tensorflow"])
    def test_of_another_version(self, library, monkeypatch):
        before = self.key()
        real = openvino_engine.version
        for module in (openvino_engine, frameworks):
            monkeypatch.setattr(module, "version", lambda name: "9" if name == library else real(name))
        assert self.key() != before

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("PREPROCESSING", "decoded-2"),
            ("_CONVERSION", "converted-2"),
            ("KERAS_SETTINGS", {"floatx": "float16"}),
        ],
    )
    def test_of_another_way(self, name, value, monkeypatch):
        before = self.key()
        monkeypatch.setattr(openvino_engine, name, value)
        assert self.key() != before

    def test_a_folder_or_file_of_that_name_does_not_matter(self, monkeypatch, tmp_path):
        before = self.key(weights="imagenet")
        for name in ("MobileNetV2", "imagenet"):
            (tmp_path / name).write_text("mine")
        monkeypatch.chdir(tmp_path)
        assert self.key(weights="imagenet") == before


class TestConvertedModel:
    def test_a_second_time_comes_from_the_cache_without_keras(self):
        converted_model("MobileNetV2", "none", "avg", SIZE)
        code = (
            "import sys; from imgindex.models.openvino_engine import converted_model;"
            f"print(converted_model('MobileNetV2', 'none', 'avg', {SIZE}).spec.digest);"
            "print('keras' in sys.modules or 'tensorflow' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        expected = converted_model("MobileNetV2", "none", "avg", SIZE).spec.digest
        assert done.stdout.split() == [expected, "False"]

    @pytest.mark.parametrize("damage", ["{", "{}", "[]", None])
    def test_a_damaged_entry_is_made_anew(self, damage, keras_model, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        name = keras_model("float32")
        path = converted_model(name, "none", "avg", None).path
        spec = path.with_name("spec.json")
        spec.unlink() if damage is None else spec.write_text(damage)
        expected = Spec.of(load_backbone(name, "none", "avg", None))
        assert converted_model(name, "none", "avg", None).spec == expected
        assert path.exists()
        assert spec.read_text() not in ("", damage)

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO])
    def test_an_entry_that_cannot_be_read_is_not_deleted(self, code, keras_model, monkeypatch, tmp_path):
        """Other processes may read it, and this one again later."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        name = keras_model("float32")
        path = converted_model(name, "none", "avg", None).path
        before = path.stat()
        read_bytes = Path.read_bytes

        def fail(file):
            if file.name == "spec.json":
                raise OSError(code, os.strerror(code), str(file))
            return read_bytes(file)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", fail)
            with pytest.raises(OutputError, match=f"cannot read the converted .*: {os.strerror(code)}"):
                converted_model(name, "none", "avg", None)
        assert path.stat() == before
        assert converted_model(name, "none", "avg", None).path == path

    def test_what_a_killed_conversion_has_left_is_deleted_when_it_is_old(
        self, keras_model, monkeypatch, tmp_path
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        old, young = (tmp_path / "imgindex" / "openvino" / f".partial-{name}" for name in ("old", "young"))
        for partial in (old, young):
            partial.mkdir(parents=True)
            (partial / "model.xml").write_text("half of")
        os.utime(old, (0, 0))
        converted_model(keras_model("float32"), "none", "avg", None)
        assert not old.exists()
        assert young.exists()  # another process may be writing it

    def test_a_full_disk_is_said(self, keras_model, monkeypatch, tmp_path):
        """A limit of what a file may hold is as good: the last bytes of the longest are missing."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        name = keras_model("float32")
        whole = converted_model(name, "none", "avg", None).path
        longest = max(whole.stat().st_size, whole.with_name("model.bin").stat().st_size)
        shutil.rmtree(whole.parent)
        ignored, limits = (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.getrlimit(resource.RLIMIT_FSIZE),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (longest - 1, limits[1]))
        try:
            with pytest.raises(OutputError, match=f"cannot keep the converted model in {whole.parents[1]}: "):
                converted_model(name, "none", "avg", None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert list(whole.parents[1].iterdir()) == []

    def test_weights_that_cannot_be_read(self, tmp_path):
        with pytest.raises(UsageError, match=r"mine.h5: cannot be read: No such file"):
            converted_model("MobileNetV2", str(tmp_path / "mine.h5"), "avg", SIZE)

    def test_other_weights_are_another_entry(self, backbone, tmp_path):
        paths = set()
        for seed in (1, 2):
            other = load_backbone("MobileNetV2", "none", "avg", SIZE, seed=seed)
            (core,) = (layer for layer in other.model.layers if layer.name.startswith("mobilenet"))
            weights = tmp_path / "same.weights.h5"
            core.save_weights(weights)
            converted = converted_model("MobileNetV2", str(weights), "avg", SIZE)
            assert converted.spec.weights_sha256 == other.weights_sha256
            paths.add(converted.path)
        assert len(paths) == 2
