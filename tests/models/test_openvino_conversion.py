"""Backbones converted for OpenVINO: what names one in the cache, and that a damaged one is made anew."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imgindex.errors import OutputError, UsageError
from imgindex.models import frameworks
from imgindex.models.backbones import load_backbone
from imgindex.models.engines import openvino_conversion
from imgindex.models.engines.openvino_conversion import converted_model
from imgindex.models.spec import Spec

SIZE = 64


class TestCacheKey:
    """Whatever goes into a conversion is in the key of what comes out."""

    def key(self, name="MobileNetV2", weights="none", pooling="avg", image_size=64) -> str:
        return openvino_conversion._cache_key(name, weights, pooling, image_size)

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
        real = openvino_conversion.version
        for module in (openvino_conversion, frameworks):
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
        monkeypatch.setattr(openvino_conversion, name, value)
        assert self.key() != before

    def test_a_folder_or_file_of_that_name_does_not_matter(self, monkeypatch, tmp_path):
        before = self.key(weights="imagenet")
        for name in ("MobileNetV2", "imagenet"):
            (tmp_path / name).write_text("mine")
        monkeypatch.chdir(tmp_path)
        assert self.key(weights="imagenet") == before


class TestConvertedModel:
    @pytest.mark.long
    def test_a_second_time_comes_from_the_cache_without_keras(self):
        converted_model("MobileNetV2", "none", "avg", SIZE)
        code = (
            "import sys; from imgindex.models.engines.openvino_conversion import converted_model;"
            f"print(converted_model('MobileNetV2', 'none', 'avg', {SIZE}).spec.digest);"
            "print('keras' in sys.modules or 'tensorflow' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        expected = converted_model("MobileNetV2", "none", "avg", SIZE).spec.digest
        assert done.stdout.split() == [expected, "False"]

    @pytest.mark.parametrize("damage", ["{", "{}", "[]", None])
    @pytest.mark.long
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
    @pytest.mark.long
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

    @pytest.mark.long
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

    @pytest.mark.long
    def test_a_full_disk_is_said(self, keras_model, monkeypatch, tmp_path):
        """A limit of what a file may hold is as good: the last bytes of the longest are missing."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # half of a file would be read by others
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

    @pytest.mark.long
    def test_other_weights_are_another_entry(self, tmp_path):
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
