"""The doctor: what it says of this machine, and that it notices each thing that it looks for."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import annoy
import numpy as np
import pytest
from fake_engine import FakeFactory, QuartersEngine, registered
from PIL import features

from imgindex.cli import main
from imgindex.commands.doctor import annoy as doctor_annoy
from imgindex.commands.doctor import engine as doctor_engine
from imgindex.commands.doctor import examine
from imgindex.commands.doctor import output as doctor_output
from imgindex.commands.doctor.annoy import check_annoy
from imgindex.commands.doctor.engine import check_engine, check_gpu
from imgindex.commands.doctor.findings import Finding
from imgindex.commands.doctor.machine import check_formats, check_libraries, check_memory
from imgindex.commands.doctor.output import check_output
from imgindex.errors import OutputError
from imgindex.io import filesystem

# An Annoy that does what the installed one does, but for what a test puts below it.
STAND_IN = f"""
import os, signal
__path__.append({str(Path(annoy.__file__).parent)!r})
from annoy.annoylib import Annoy

class AnnoyIndex(Annoy):
"""
FAULTS = {
    "one neighbor": (
        """
        def get_nns_by_vector(self, *args, **options):
            items, distances = super().get_nns_by_vector(*args, **options)
            return items[:1], distances[:1]
        """,
        "gives 1 neighbors where 10 are asked for",
    ),
    "the same neighbor again": (
        """
        def get_nns_by_vector(self, *args, **options):
            items, distances = super().get_nns_by_vector(*args, **options)
            return items[:1] * len(items), distances
        """,
        "gives 1 neighbors where 10 are asked for",
    ),
    "far neighbors": (
        """
        def get_nns_by_vector(self, vector, k, **options):
            items, distances = super().get_nns_by_vector(vector, 2 * k, **options)
            return items[k:], distances[k:]
        """,
        "finds 0% of the nearest when it inspects all",
    ),
    "another CPU's instructions": (
        """
        def build(self, *args, **options):
            os.kill(os.getpid(), signal.SIGILL)
        """,
        "ends its process with SIGILL",
    ),
    "a seed of its own": (
        """
        def set_seed(self, seed):
            super().set_seed(int.from_bytes(os.urandom(3)))
        """,
        "makes other bytes of the same vectors and seed",
    ),
    "another layout": (
        """
        def get_item_vector(self, item):
            return super().get_item_vector(item)[::-1]
        """,
        "the installed Annoy lays out its nodes in another way",
    ),
}


class TestAnnoy:
    def test_the_installed_one(self) -> None:
        assert check_annoy().level == "ok"

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_broken_one(self, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        methods, expected = FAULTS[fault]
        (tmp_path / "annoy").mkdir()
        (tmp_path / "annoy" / "__init__.py").write_text(STAND_IN + methods.replace("\n    ", "\n"))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        found = check_annoy()
        assert found.level == "problem"
        assert expected in found.found
        assert "pip install" in found.advice

    def test_the_stand_in_alone_is_no_fault(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "annoy").mkdir()
        (tmp_path / "annoy" / "__init__.py").write_text(f"{STAND_IN}    pass\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert check_annoy().level == "ok"

    def test_one_that_cannot_be_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "annoy.py").write_text("raise ImportError('no annoylib here')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert check_annoy().found == "cannot be used: ImportError: no annoylib here"

    def test_a_file_of_the_same_name_in_the_current_directory_does_not_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "annoy.py").write_text("raise ImportError('somebody else')")
        monkeypatch.chdir(tmp_path)
        assert check_annoy().level == "ok"

    def test_one_that_does_not_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(command: list[str], **options: object) -> None:
            raise subprocess.TimeoutExpired(command, 60)

        monkeypatch.setattr(doctor_annoy, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": run}))
        assert check_annoy().found == "does not end within 60 seconds"


class TestEngine:
    @pytest.mark.long
    def test_what_a_build_would_choose(self) -> None:
        found = check_engine()
        assert found.level == "ok"
        assert "float32" in found.found or "bfloat16" in found.found

    def test_one_that_gives_no_features(self) -> None:
        class Dark(QuartersEngine):
            def embed(self, pixels: np.ndarray) -> np.ndarray:
                return 0 * super().embed(pixels)

        dark = FakeFactory(lambda choice, threads: Dark(choice.batch_size), gpu=True)  # `auto` takes it
        with registered("dark", dark):
            found = check_engine()
        assert (found.level, found.advice) == ("problem", "set engine.name to another")
        assert "dark float32 for MobileNetV2 gives no features" in found.found

    @pytest.mark.parametrize(
        ("driver", "sees", "level"), [(False, True, "ok"), (True, True, "ok"), (True, False, "warning")]
    )
    def test_a_gpu(self, driver: bool, sees: bool, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor_engine, "gpu_driver", lambda: driver)
        monkeypatch.setattr(doctor_engine, "has_gpu", lambda: sees)
        assert check_gpu().level == level


class TestMachine:
    def test_libraries(self) -> None:
        found = check_libraries()
        assert found.level == "ok"
        assert f"annoy {annoy_version()}" in found.found

    def test_a_library_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("imgindex.generations.layout._LIBRARIES", ("annoy", "no-such-library"))
        found = check_libraries()
        assert (found.level, found.found) == ("problem", "no-such-library is not installed")

    def test_formats(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert check_formats().level == "ok"
        monkeypatch.setattr(features, "check", lambda feature: feature not in ("avif", "webp"))
        found = check_formats()
        assert found.level == "warning"
        assert "reads no AVIF and no WebP" in found.found

    @pytest.mark.parametrize(
        ("free_kib", "limit", "used", "level", "expected"),
        [
            (8 << 20, None, None, "ok", "8.0 GiB are free of the machine"),
            (8 << 20, "max", "1000", "ok", "8.0 GiB are free of the machine"),
            (8 << 20, str(9 << 30), "0", "ok", "8.0 GiB are free of the machine"),
            (8 << 20, str(4 << 30), str(1 << 30), "ok", "3.0 GiB are free within the control group's limit"),
            (8 << 20, str(2 << 30), str(1 << 29), "warning", "1.5 GiB are free within"),
            (8 << 20, str(1 << 30), str(2 << 30), "problem", "0.0 GiB are free within"),
            (3 << 19, None, None, "warning", "1.5 GiB are free of the machine"),
            (1 << 19, None, None, "problem", "0.5 GiB are free of the machine"),
        ],
    )
    def test_memory(
        self, free_kib: int, limit: str | None, used: str | None, level: str, expected: str, tmp_path: Path
    ) -> None:
        text = f"MemTotal:  99999999 kB\nMemAvailable:  {free_kib} kB\nHugePages_Total:  0\n"
        (tmp_path / "meminfo").write_text(text)
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "cgroup").write_text("0::/\n")
        if limit is not None and used is not None:
            (tmp_path / "memory.max").write_text(f"{limit}\n")
            (tmp_path / "memory.current").write_text(f"{used}\n")
        found = check_memory(proc=tmp_path, cgroup=tmp_path)
        assert found.level == level
        assert expected in found.found

    @pytest.mark.parametrize(
        ("groups", "folders", "names"),
        [
            ("0::/a/b\n", ["a", "a/b"], ("memory.max", "memory.current")),
            (
                "4:memory:/a/b\n",
                ["memory/a", "memory/a/b"],
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ),
        ],
    )
    def test_the_fullest_of_nested_control_groups_counts(
        self, groups: str, folders: list[str], names: tuple[str, str], tmp_path: Path
    ) -> None:
        (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {8 << 20} kB\n")
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "cgroup").write_text(groups)
        for folder, used in zip(folders, (3 << 30, 1 << 30), strict=True):
            (tmp_path / folder).mkdir(parents=True)
            for name, value in zip(names, (4 << 30, used), strict=True):
                (tmp_path / folder / name).write_text(f"{value}\n")
        found = check_memory(proc=tmp_path, cgroup=tmp_path)
        assert found.level == "warning"
        assert found.found == "1.0 GiB are free within the control group's limit"
        for folder in folders:  # most of what the fullest uses is page cache
            (tmp_path / folder / "memory.stat").write_text(
                f"anon 7\ninactive_file {1 << 30}\nactive_file {1 << 30}\n"
            )
        found = check_memory(proc=tmp_path, cgroup=tmp_path)
        assert (found.level, found.found) == ("ok", "3.0 GiB are free within the control group's limit")


def annoy_version() -> str:
    from importlib.metadata import version

    return version("annoy")


def levels(output: str | None) -> dict[str, str]:
    return {found.check: found.level for found in check_output(output)}


class TestOutput:
    FINE = dict.fromkeys(("space", "replacing", "syncing", "locking"), "ok")

    def test_a_directory_and_one_that_is_yet_to_be_made(self, tmp_path: Path) -> None:
        before = list(tmp_path.rglob("*"))
        assert levels(str(tmp_path)) == self.FINE
        assert levels(str(tmp_path / "new" / "index")) == self.FINE
        assert list(tmp_path.rglob("*")) == before

    def test_the_current_directory_or_where_that_is_read_only_the_temporary_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert f"free in {tmp_path}" in next(iter(check_output(None))).found
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path.parent))
        assert f"free in {tmp_path.parent}" in next(iter(check_output(None))).found

    def test_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        for place in (str(tmp_path / "file"), "/proc"):
            with pytest.raises(OutputError, match=f"cannot write {place}"):
                levels(place)

    @pytest.mark.parametrize(("free", "level"), [(2 << 30, "ok"), (1 << 29, "warning"), (1 << 20, "problem")])
    def test_room(self, free: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
        assert levels(str(tmp_path))["space"] == level

    @pytest.mark.parametrize(("hole", "expected"), [(None, "No such file"), (b"aaa", "half of it")])
    def test_a_filesystem_that_replaces_in_steps(
        self, hole: bytes | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked, read_bytes = threading.Event(), Path.read_bytes
        holes = []

        def read(path: Path) -> bytes:
            try:
                data = read_bytes(path)
            except FileNotFoundError:
                looked.set()
                raise
            if hole is not None and len(data) < 4096:  # the hole, or the file before it is in there
                looked.set()
            return data

        def write(path: str, data: bytes) -> None:
            file = Path(path)
            if file.exists() and not holes:
                file.unlink() if hole is None else file.write_bytes(hole)
                holes.append(path)
                assert looked.wait(60)
            file.write_bytes(data)

        monkeypatch.setattr(Path, "read_bytes", read)
        found = doctor_output.check_replacing(tmp_path, write)
        assert found.level == "problem"
        assert expected in found.found

    def test_without_fsync(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fsync(file: int) -> None:
            raise OSError(22, "Invalid argument")

        monkeypatch.setattr(os, "fsync", fsync)
        found = doctor_output.check_syncing(tmp_path)
        assert (found.level, found.found) == ("problem", "fsync does not work: Invalid argument")

    def test_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(file: object, how: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", flock)
        found = doctor_output.check_locking(str(tmp_path))
        assert found.level == "problem"
        assert "its filesystem has no locks" in found.found

    def test_with_locks_that_hold_nobody_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fcntl.flock", lambda file, how: None)
        found = doctor_output.check_locking(str(tmp_path))
        assert (found.level, found.found) == ("problem", "two builds could write at once")

    @pytest.mark.parametrize(
        ("kind", "options", "level", "said"),
        [
            ("ext4", "rw,errors=remount-ro", "ok", "on this machine is refused"),
            ("nfs4", "rw,vers=4.2,local_lock=none", "ok", "so is one on another"),
            ("nfs4", "rw,vers=4.2,local_lock=all", "warning", "nfs4 on {} with local_lock=all may not share"),
            ("nfs", "rw,vers=3,nolock", "warning", "nfs on {} with nolock may not share its locks"),
            ("cifs", "rw,nobrl", "warning", "cifs on {} with nobrl may not share its locks"),
            ("fuse.s3fs", "rw", "warning", "fuse.s3fs on {} may not share its locks"),
        ],
    )
    def test_locks_of_other_machines(
        self, kind: str, options: str, level: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = tmp_path / "a place"
        place.mkdir()
        mounts = f"21 1 0:20 / / rw shared:1 - ext4 /dev/sda1 rw\n22 21 0:21 / {tmp_path}/a\\040place rw "
        mounts += (
            f"shared:2 master:1 - {kind} server:/export {options}\n23 21 0:22 / {tmp_path}/a rw - xfs x rw\n"
        )
        read_text = Path.read_text
        monkeypatch.setattr(
            Path, "read_text",
            lambda path: mounts if path == Path("/proc/self/mountinfo") else read_text(path),
        )  # fmt: skip
        found = doctor_output.check_locking(str(place))
        assert found.level == level
        assert said.format(place) in found.found

    def test_an_object_store_that_overwrites_whatever_is_there(
        self, memory: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(filesystem, "replace_version", lambda path, data, version: "1")
        assert levels("mem://bucket/index") == {"store": "problem"}

    def test_an_object_store(self, memory: dict[str, object]) -> None:
        assert levels("mem://bucket/index") == {"store": "ok"}
        assert levels("mem://readonly/index") == {"store": "problem"}
        assert levels("nosuch://bucket/index") == {"store": "problem"}
        assert not memory

    def test_an_object_store_that_forgets(
        self, memory: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(filesystem, "read_bytes", lambda path: b"old")
        assert levels("mem://bucket/index") == {"store": "problem"}


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, **checks: Callable[[], Finding]) -> None:
        monkeypatch.setattr(examine, "_MACHINE", checks)

    def test_a_machine_that_will_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.run(
            monkeypatch,
            good=lambda: Finding("ok", "good", "it is well"),
            fair=lambda: Finding("warning", "fair", "it is slow", "buy another"),
        )
        assert main(["doctor", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [
            "ok       good       it is well",
            "warning  fair       it is slow; buy another",
        ]
        assert [line.split()[1] for line in lines[2:6]] == ["space", "replacing", "syncing", "locking"]
        assert lines[6:] == ["a build can run here"]

    def test_a_problem_and_what_breaks_do_not_end_the_rest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken() -> Finding:
            raise ImportError("libgomp.so.1: cannot\nopen")

        def refused() -> Finding:
            raise OutputError("cannot keep the converted model")

        self.run(monkeypatch, broken=broken, refused=refused)
        assert main(["doctor", str(tmp_path)]) == 3
        printed = capsys.readouterr()
        assert printed.err == "imgindex: a build would fail here: 2 problems\n"
        lines = printed.out.splitlines()
        assert lines[0].startswith("problem  broken     ImportError: libgomp.so.1: cannot\\nopen; ")
        assert lines[1] == "problem  refused    cannot keep the converted model"
        assert len(lines) == 6

    @pytest.mark.long
    def test_all_of_it_on_this_machine(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "imgindex", "doctor", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        checked = [line.split()[1] for line in done.stdout.splitlines()]
        assert {"libraries", "annoy", "engine", "gpu", "formats", "cores", "memory", "locking"} <= set(
            checked
        )
        assert "Traceback" not in done.stderr
        assert done.returncode == (3 if "problem " in done.stdout else 0)


def test_the_probe_ends_by_a_signal_only_where_annoy_does(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "imgindex.models.ann.annoy_probe"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (tmp_path / "annoy.py").write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == -signal.SIGSEGV
