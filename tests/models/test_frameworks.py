"""Keras and OpenVINO: a user's settings do not matter, nothing is sent, only the cache is written to."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from imgindex.commands.doctor.machine import check_libraries
from imgindex.errors import MachineError, UsageError
from imgindex.generations.layout import library_versions
from imgindex.models import frameworks
from imgindex.models.backbones import load_backbone
from imgindex.models.cache import cache_folder
from imgindex.models.engines.openvino_conversion import converted_model
from imgindex.models.frameworks import KERAS_SETTINGS, settled_keras
from imgindex.models.spec import Spec

SIZE = 32
CONVERT = (
    "from imgindex.models.engines.openvino_conversion import converted_model; "
    f"print(converted_model('MobileNet', 'none', 'avg', {SIZE}).spec.digest)"
)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code with changed environment variables; an empty one is removed."""
    merged = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env={name: value for name, value in merged.items() if value},
        check=False,
    )


@pytest.fixture(scope="module")
def keras():
    with settled_keras() as keras:
        pass
    return keras


@pytest.fixture
def odd_keras(keras):
    """Keras in a process whose user has set all of it otherwise."""
    odd = {
        "floatx": "float16",
        "epsilon": 0.25,
        "image_data_format": "channels_first",
        "dtype_policy": "mixed_bfloat16",
    }
    before = {name: getattr(keras.config, name)() for name in odd}
    for name, value in odd.items():
        getattr(keras.config, f"set_{name}")(value)
    yield keras
    for name, value in before.items():
        getattr(keras.config, f"set_{name}")(value)


def settings(keras) -> dict:
    found = {name: getattr(keras.config, name)() for name in KERAS_SETTINGS}
    return found | {"dtype_policy": found["dtype_policy"].name}


class TestSettledKeras:
    def test_is_the_same_whatever_the_user_has_set(self, odd_keras):
        with settled_keras() as keras:
            assert settings(keras) == dict(KERAS_SETTINGS)

    def test_leaves_the_users_process_as_it_was(self, odd_keras):
        before = settings(odd_keras)
        assert before != dict(KERAS_SETTINGS)
        with settled_keras(), settled_keras():
            pass
        assert settings(odd_keras) == before
        with pytest.raises(KeyError), settled_keras():
            raise KeyError
        assert settings(odd_keras) == before

    def test_a_backbone_is_the_same_whatever_the_user_has_set(self, odd_keras):
        odd = Spec.of(load_backbone("MobileNet", "none", "avg", SIZE))
        with settled_keras():
            assert Spec.of(load_backbone("MobileNet", "none", "avg", SIZE)) == odd

    @pytest.mark.long
    def test_files_and_variables_of_the_user_do_not_matter(self, tmp_path):
        """Settings in keras.json, a backend that is not installed, and an old Keras that is not, either."""
        values = {"floatx": "float16", "epsilon": 0.25, "image_data_format": "channels_first"}
        (tmp_path / "keras.json").write_text(json.dumps(values | {"backend": "torch"}))
        done = run(
            "import sys\nsys.modules['tf_keras'] = None\n" + CONVERT,
            KERAS_HOME=str(tmp_path),
            KERAS_BACKEND="jax",
            TF_USE_LEGACY_KERAS="1",
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )
        expected = Spec.of(load_backbone("MobileNet", "none", "avg", SIZE)).digest
        assert done.stdout == f"{expected}\n", done.stderr

    def test_another_backend_in_the_same_process_is_refused(self, keras, monkeypatch):
        monkeypatch.setattr("keras.config.backend", lambda: "torch")
        with pytest.raises(
            UsageError, match="with the backend torch: start it with KERAS_BACKEND=tensorflow"
        ):
            load_backbone("MobileNet", "none", "avg", SIZE)

    @pytest.mark.parametrize("content", ['{"floatx": "float99"}', "[]"])
    def test_a_keras_json_that_keras_refuses_is_named(self, content, tmp_path):
        (tmp_path / "keras.json").write_text(content)
        code = (
            "from imgindex.errors import MachineError\n"
            "from imgindex.models.backbones import load_backbone\n"
            "try: load_backbone('MobileNet', 'none', 'avg', 32)\n"
            "except MachineError as error: print(error)"
        )
        done = run(code, KERAS_HOME=str(tmp_path))
        assert done.stdout.startswith("Keras cannot be loaded ("), done.stderr
        assert done.stdout.endswith(f": correct {tmp_path / 'keras.json'}, or delete it\n")

    @pytest.mark.long
    def test_a_conversion_without_docstrings_is_refused(self, tmp_path):
        code = f"from imgindex.errors import MachineError\ntry: {CONVERT}\nexcept MachineError as e: print(e)"
        done = run(code, PYTHONOPTIMIZE="2", XDG_CACHE_HOME=str(tmp_path))
        assert "unset PYTHONOPTIMIZE" in done.stdout, done.stderr

    def test_what_cannot_be_imported_is_named(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "openvino", raising=False)
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(MachineError, match=r"OpenVINO cannot be loaded \(.*: install openvino"):
            frameworks.load_openvino()


class TestPrivacy:
    WATCH = (
        "import os, sys\n"
        "def watch(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.sendto', 'socket.sendmsg', 'socket.getaddrinfo',\n"
        "                 'socket.gethostbyname'):\n"
        "        with open(os.environ['SEEN'], 'a') as file: print(event, arguments, file=file)\n"
        "sys.addaudithook(watch)\n"
    )

    @pytest.mark.long
    def test_a_conversion_sends_nothing_and_writes_to_the_cache_alone(self, tmp_path):
        """Watched in that process and in all that it starts."""
        home, seen = tmp_path / "home", tmp_path / "seen"
        home.mkdir()
        (tmp_path / "sitecustomize.py").write_text(self.WATCH)
        environment = {"PYTHONPATH": str(tmp_path), "SEEN": str(seen), "HOME": str(home)}
        done = run(CONVERT, XDG_CACHE_HOME="", KERAS_HOME="", CI="", **environment)
        assert done.returncode == 0, done.stderr
        assert not seen.exists(), seen.read_text()
        assert [path.relative_to(home).as_posix() for path in home.iterdir()] == [".cache"]
        assert [path.name for path in (home / ".cache").iterdir()] == ["imgindex"]
        run("import socket; socket.getaddrinfo('127.0.0.1', 9)", **environment)
        assert "getaddrinfo" in seen.read_text(), "the test would see one"

    @pytest.mark.long
    def test_a_users_own_keras_home_stays_his(self, tmp_path):
        """His downloads are there."""
        (tmp_path / ".keras").mkdir()
        code = (
            "from imgindex.models.frameworks import settled_keras\n"
            "with settled_keras() as keras: print(keras.src.backend.config.keras_home())"
        )
        done = run(code, HOME=str(tmp_path), XDG_CACHE_HOME="", KERAS_HOME="")
        assert done.stdout == f"{tmp_path / '.keras'}\n", done.stderr


class TestCache:
    def test_lies_where_the_environment_says(self, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
        assert cache_folder() == Path("/elsewhere/imgindex")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/home/someone")
        assert cache_folder() == Path("/home/someone/.cache/imgindex")

    def test_without_a_home_directory(self, monkeypatch):
        def homeless():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        monkeypatch.delenv("XDG_CACHE_HOME")
        with pytest.raises(MachineError, match=r"has no home directory .* set XDG_CACHE_HOME"):
            converted_model("MobileNet", "none", "avg", SIZE)


class TestVersions:
    @pytest.mark.parametrize(
        ("library", "name"),
        [
            ("tensorflow", "tensorflow"), ("tensorflow", "tensorflow-cpu"), ("annoy", "annoy"),
            ("annoy", "annoy-mm"),
        ],
    )  # fmt: skip
    def test_is_that_of_whichever_distribution_is_installed(self, library, name, monkeypatch):
        def version(asked):
            if asked == name:
                return "2.99"
            if asked in frameworks._DISTRIBUTIONS[library]:
                raise PackageNotFoundError(asked)
            return "1.0"

        monkeypatch.setattr(frameworks, "version", version)
        assert frameworks.version_of(library) == "2.99"
        assert library_versions()[library] == "2.99"
        assert f"{library} 2.99" in check_libraries().found

    def test_none_is_named(self, monkeypatch):
        monkeypatch.setitem(frameworks._DISTRIBUTIONS, "tensorflow", ("no-such-tensorflow",))
        with pytest.raises(MachineError, match=r"not installed, .* no-such-tensorflow: pip"):
            frameworks.tensorflow_version()
        assert check_libraries().found == "tensorflow is not installed"
