"""The folder of an export: whole or as it was, whatever happens meanwhile, and nobody else's."""

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_outputs import publish_vectors

import imgindex
from imgindex.cli import main
from imgindex.errors import OutputError, UsageError
from imgindex.runtime.progress import Progress
from imgindex.sinks.base import transfer
from imgindex.sinks.folder import FolderSink, NewFiles
from imgindex.sinks.source import Source, opened

NAME = "20260101T000000Z-00000001"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("output"))
    vectors = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    publish_vectors(folder, NAME, [f"{n:03}.jpg" for n in range(200)], vectors)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def text_writer(text: str) -> Callable[[NewFiles, Source], None]:
    def write(files: NewFiles, source: Source) -> None:
        with files.open("a.txt") as file:
            file.write(text.encode())

    return write


def put(output: str, folder: Path, write: Callable[[NewFiles, Source], None]) -> None:
    with opened(output, None, normalize=False, progress=Progress()) as source:
        transfer(source, FolderSink(str(folder), "text", write))


def content(folder: Path) -> list[str]:
    """All that lies in `folder`, hidden files included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class TestWhatIsReplaced:
    def test_a_new_folder_and_those_above_it(self, output: str, out: Path) -> None:
        put(output, out / "deep" / "er", text_writer("one"))
        assert content(out) == ["deep", "deep/er", "deep/er/a.txt", "deep/er/export.json"]

    def test_an_empty_folder(self, output: str, out: Path) -> None:
        out.mkdir()
        put(output, out, text_writer("one"))
        assert content(out.parent) == ["out", "out/a.txt", "out/export.json"]

    def test_an_earlier_export_of_any_format(self, output: str, out: Path) -> None:
        imgindex.export(output, "npy", out)
        put(output, out, text_writer("two"))
        assert content(out.parent) == ["out", "out/a.txt", "out/export.json"]

    def test_where_a_link_leads_and_not_the_link(self, output: str, out: Path) -> None:
        out.symlink_to("elsewhere")
        put(output, out, text_writer("one"))
        put(output, out, text_writer("two"))
        assert out.is_symlink()
        assert (out.parent / "elsewhere" / "a.txt").read_text() == "two"

    @pytest.mark.parametrize(
        "name",
        ["notes.txt", ".hidden", "img_emb/mine.npy", "empty/", "metadata/metadata_0001.parquet", "link"],
    )
    def test_not_an_export_that_holds_something_else(self, name: str, output: str, out: Path) -> None:
        imgindex.export(output, "npy", out)
        mine = out / name
        if name == "link":
            mine.symlink_to(out.parent)
        elif name.endswith("/"):
            mine.mkdir()
        else:
            mine.write_text("mine")
        before = content(out.parent)
        with pytest.raises(UsageError, match=rf"{out} holds {name.strip('/')}, which no export has written"):
            imgindex.export(output, "npy", out)
        assert content(out.parent) == before

    @pytest.mark.parametrize(
        ("mine", "fault"),
        [
            ("mine", "has 4 bytes and not the 3 that were written"),
            ("two", "has other bytes than were written"),
        ],
    )
    def test_not_an_export_whose_files_were_replaced(
        self, mine: str, fault: str, output: str, out: Path
    ) -> None:
        put(output, out, text_writer("one"))
        (out / "a.txt").write_text(mine)
        with pytest.raises(UsageError, match=rf"{out}/a\.txt {fault}.*; move it away, or name a new folder"):
            put(output, out, text_writer("new"))
        assert (out / "a.txt").read_text() == mine
        (out / "a.txt").rename(out.parent / "mine")
        put(output, out, text_writer("new"))
        assert (out / "a.txt").read_text() == "new"

    def test_not_an_export_whose_files_grow_meanwhile(self, output: str, out: Path) -> None:
        def write(files: NewFiles, source: Source) -> None:
            (out / "a.txt").write_text("mine")

        put(output, out, text_writer("one"))
        with pytest.raises(UsageError, match="has 4 bytes and not the 3"):
            put(output, out, write)
        assert (out / "a.txt").read_text() == "mine"

    @pytest.mark.parametrize("below", ["", "img_emb"])
    def test_not_the_current_directory(
        self, below: str, output: str, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        imgindex.export(output, "npy", out)
        monkeypatch.chdir(out / below)
        with pytest.raises(UsageError, match=rf"the current directory lies in {out}, .* change to another"):
            imgindex.export(output, "npy", out if below else ".")
        assert content(out.parent)[0] == "out"

    @pytest.mark.parametrize("mode", [0o700, 0o2750, 0o555])
    def test_the_permissions_of_the_folder_stay(self, mode: int, output: str, out: Path) -> None:
        seen = []

        def write(files: NewFiles, source: Source) -> None:
            (partial,) = out.parent.glob(".out.*.partial")
            seen.append(stat.S_IMODE(partial.stat().st_mode) & 0o077)

        out.mkdir()
        out.chmod(mode)
        put(output, out, write)
        assert stat.S_IMODE(out.stat().st_mode) == mode
        assert seen == [0]  # nobody else sees what is being written

    @pytest.mark.parametrize("description", [None, b"", b"{}", b'{"files": [], "digest": ""}', b"\xff" * 100])
    def test_not_a_folder_whose_description_is_not_ours(
        self, description: bytes | None, output: str, out: Path
    ) -> None:
        imgindex.export(output, "npy", out)
        (out / "export.json").unlink()
        if description is not None:
            (out / "export.json").write_bytes(description)
        with pytest.raises(UsageError, match="which no export has written"):
            imgindex.export(output, "npy", out)

    def test_not_what_came_while_it_was_written(self, output: str, out: Path) -> None:
        def write(files: NewFiles, source: Source) -> None:
            out.mkdir()
            (out / "mine").write_text("mine")

        with pytest.raises(UsageError, match="holds mine, which no export has written"):
            put(output, out, write)
        assert content(out.parent) == ["out", "out/mine"]

    def test_not_a_folder_that_cannot_be_looked_into(
        self, output: str, out: Path, forbid_listing: Callable[[str], None]
    ) -> None:
        put(output, out, text_writer("one"))
        forbid_listing("out")
        with pytest.raises(OutputError, match=rf"cannot list {out}: Permission denied"):
            put(output, out, text_writer("two"))
        assert (out / "a.txt").read_text() == "one"


class TestFailures:
    def test_an_error_leaves_what_was_there(self, output: str, out: Path) -> None:
        def fail(files: NewFiles, source: Source) -> None:
            text_writer("half")(files, source)
            raise OutputError("in between")

        with pytest.raises(OutputError, match="in between"):
            put(output, out, fail)
        assert content(out.parent) == []
        put(output, out, text_writer("one"))
        with pytest.raises(OutputError, match="in between"):
            put(output, out, fail)
        assert content(out.parent) == ["out", "out/a.txt", "out/export.json"]
        assert (out / "a.txt").read_text() == "one"

    def test_bytes_that_are_not_read_back_as_they_were_written(self, output: str, out: Path) -> None:
        def flip(files: NewFiles, source: Source) -> None:
            text_writer("right")(files, source)
            (partial,) = out.parent.glob(".out.*.partial")
            (partial / "a.txt").write_text("wrong")

        with pytest.raises(OutputError, match=r"cannot be read back: .*a\.txt has other bytes"):
            put(output, out, flip)
        assert content(out.parent) == []

    @pytest.mark.parametrize("limit", [100, 2_000, 3_500])
    def test_a_full_disk(
        self,
        limit: int,
        output: str,
        out: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A limit of the size of files, which stops the writing of each kind of file in turn."""
        # Python would keep the first bytes of what it compiles, and other processes would read them.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            code = main(["export", output, "--format", "npy", str(out)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert code == 3
        assert capsys.readouterr().err == f"imgindex: cannot write {out}: File too large\n"
        assert content(out.parent) == []

    def test_what_was_replaced_and_cannot_be_deleted(
        self, output: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(output, out, text_writer("one"))

        rmtree = shutil.rmtree

        def refuse(path: Path, **options: Any) -> None:
            if str(path).endswith(".replaced"):
                raise PermissionError(13, "Permission denied", str(path))
            rmtree(path, **options)

        monkeypatch.setattr("imgindex.sinks.folder.shutil.rmtree", refuse)
        assert main(["export", output, "--format", "npy", str(out)]) == 0
        monkeypatch.undo()
        assert capsys.readouterr().err.startswith(
            f"imgindex: generation {NAME} is in place, but cannot delete what it replaced beside {out}: Perm"
        )
        assert (out / "img_emb").is_dir()
        put(output, out, text_writer("two"))
        assert content(out.parent) == ["out", "out/a.txt", "out/export.json"]


# Exports with a writer that writes a file and then runs a line of Python.
EXPORT = """
import os, signal, sys, time
from pathlib import Path
from imgindex import cli
from imgindex.sinks import npy

def write(files, source, options):
    with files.open("half") as file:
        file.write(b"half")
    {}

npy.write = write
cli.run()
"""


def start(work: str, output: str, out: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", EXPORT.format(work), "export", output, "--format", "npy", str(out)],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


class TestEnds:
    def test_what_a_killed_export_leaves_goes_with_the_next_one(self, output: str, out: Path) -> None:
        put(output, out, text_writer("one"))
        start("os.kill(os.getpid(), signal.SIGKILL)", output, out).communicate()
        assert (out / "a.txt").read_text() == "one"
        (left,) = out.parent.glob(".out.*.partial")
        assert (left / "half").is_file()
        put(output, out, text_writer("two"))
        assert content(out.parent) == ["out", "out/a.txt", "out/export.json"]

    def test_killed_while_it_replaces_an_export_it_leaves_both_hidden_and_whole(
        self, output: str, out: Path
    ) -> None:
        put(output, out, text_writer("one"))
        kill = "Path.rename = lambda *names: (os.rename(*names), os.kill(os.getpid(), 9))"
        start(kill, output, out).communicate()
        assert not out.exists()
        (replaced,), (partial,) = out.parent.glob(".out.*.replaced"), out.parent.glob(".out.*.partial")
        assert (content(replaced), content(partial)) == (["a.txt", "export.json"], ["export.json", "half"])
        put(output, out, text_writer("two"))
        assert content(out.parent) == ["out", "out/a.txt", "out/export.json"]

    def test_a_signal_leaves_what_was_there_and_nothing_else(self, output: str, out: Path) -> None:
        put(output, out, text_writer("one"))
        temporary = out.parent / "temporary"
        temporary.mkdir()
        work = "print('ready', file=sys.stderr, flush=True); time.sleep(60)"
        process = start(work, output, out, TMPDIR=str(temporary))
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        assert list(temporary.iterdir()) != []  # where shards of an object store are copied to
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
        assert process.returncode == 143
        assert said == "imgindex: stopped by SIGTERM\n"
        assert content(out.parent) == ["out", "out/a.txt", "out/export.json", "temporary"]
        assert (out / "a.txt").read_text() == "one"

    def test_one_that_goes_on_loses_nothing_to_another(self, output: str, out: Path) -> None:
        with opened(output, None, normalize=False, progress=Progress()) as source:
            slow = FolderSink(str(out), "text", text_writer("slow"))
            slow.create(source)
            put(output, out, text_writer("quick"))
            slow.verify()
            slow.switch()
            slow.prune()
        assert (out / "a.txt").read_text() == "slow"
        assert content(out.parent) == ["out", "out/a.txt", "out/export.json"]

    def test_files_beside_it_that_only_look_like_ours_stay(self, output: str, out: Path) -> None:
        theirs = [".out.1234.partial", f".other.{'0' * 32}.partial", f"out.{'0' * 32}.replaced"]
        for name in theirs:
            (out.parent / name).mkdir()
        put(output, out, text_writer("one"))
        assert {path.name for path in out.parent.iterdir()} == {*theirs, "out"}
