"""Storage: files appear whole or not at all, on the local filesystem and on others."""

import errno
import hashlib
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from apache_beam.io.filesystems import FileSystems

from imgindex.errors import DamagedError, OutputError
from imgindex.io import filesystem, object_stores, written_files
from imgindex.records import WrittenFile


def everything_below(place: str, memory: dict[str, Any]) -> list[str]:
    """Every file that is there, hidden or not."""
    if place.startswith("mem:"):
        return sorted(memory)
    return sorted(str(path) for path in Path(place).rglob("*") if path.is_file())


@pytest.mark.parametrize("data", [b"", b"one\n", bytes(range(256)) * 9000])
def test_what_is_written_is_read(data: bytes, place: str, tmp_path: Path, memory: dict[str, Any]) -> None:
    path = filesystem.join(place, "folder", "file.gz")  # not to be taken for compressed
    assert not filesystem.exists(path)
    filesystem.write_bytes(path, data)
    assert filesystem.exists(path)
    assert filesystem.read_bytes(path) == data
    assert everything_below(place, memory) == [path]
    assert (
        written_files.localize_checked(written_files.describe_bytes(data, path), tmp_path).read_bytes()
        == data
    )


@pytest.mark.parametrize("path", ["/", "a", "/x/://", "x/gs://b", "1://x", "://", "C:/x", "ü://x", " "])
def test_a_path_that_begins_with_no_scheme_is_local(path: str) -> None:
    assert filesystem.is_local(path)
    assert FileSystems.get_scheme(path) is None


@pytest.mark.parametrize("path", ["gs://b/x", "mem://", "HDFS://x/:/", "a+b.c-1://x://"])
def test_a_path_that_begins_with_a_scheme_is_not_local(path: str) -> None:
    assert not filesystem.is_local(path)
    assert FileSystems.get_scheme(path) is not None


def written(path: str, data: bytes) -> WrittenFile:
    filesystem.write_bytes(path, data)
    return written_files.describe_bytes(data, path)


def test_a_local_file_is_not_copied_to_be_local(tmp_path: Path) -> None:
    file = written(f"{tmp_path}/file", b"data")
    assert written_files.localize_checked(file, tmp_path / "unused") == tmp_path / "file"


def test_copies_of_files_of_one_name_do_not_meet(memory: dict[str, Any], tmp_path: Path) -> None:
    paths = ["mem://bucket/a/file", "mem://bucket/b/file"]
    files = [written(path, path.encode()) for path in paths]
    copies = [written_files.localize_checked(file, tmp_path) for file in files]
    assert [copy.read_bytes().decode() for copy in copies] == paths


class TestCopiesOfObjects:
    PIECE = 1 << 16

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The sizes of the reads that were asked for, of pieces of `PIECE` bytes."""
        sizes: list[int] = []

        class Files(object_stores._BeamFiles):
            def read(self, path: str, start: int, size: int | None) -> bytes:
                assert size is not None
                sizes.append(size)
                return super().read(path, start, size)

        monkeypatch.setattr(object_stores, "_BeamFiles", Files)
        monkeypatch.setattr(written_files, "_PIECE_BYTES", self.PIECE)
        return sizes

    @pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE])
    def test_they_are_read_in_pieces(
        self, size: int, memory: dict[str, Any], reads: list[int], tmp_path: Path
    ) -> None:
        data = np.random.default_rng(size).bytes(size)
        file = written("mem://bucket/file", data)
        assert written_files.localize_checked(file, tmp_path).read_bytes() == data
        assert max(reads) <= self.PIECE
        assert len(reads) == size // self.PIECE + 1

    def test_they_are_never_whole_in_memory(
        self, memory: dict[str, Any], reads: list[int], tmp_path: Path
    ) -> None:
        file = written("mem://bucket/file", bytes(64 * self.PIECE))
        written_files.localize_checked(file, tmp_path)  # what is imported and kept at the first time
        tracemalloc.start()
        try:
            written_files.localize_checked(file, tmp_path)
            assert tracemalloc.get_traced_memory()[1] < 8 * self.PIECE
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("every_byte", [True, False])
    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-1],
            lambda data: data + b"x",
            lambda data: data * 50,
            lambda data: b"",
            lambda data: data[:9] + b"x" + data[10:],
        ],
        ids=["shorter", "longer", "much longer", "empty", "other bytes"],
    )
    def test_other_bytes_are_damage_and_no_copy_of_them_stays(
        self, damage: Any, every_byte: bool, memory: dict[str, Any], reads: list[int], tmp_path: Path
    ) -> None:
        data = np.random.default_rng(0).bytes(2 * self.PIECE)
        file = written("mem://bucket/file", data)
        filesystem.write_bytes(file.path, damage(data))
        with pytest.raises(DamagedError, match="other bytes than were written"):
            written_files.localize_checked(file, tmp_path, every_byte=every_byte)
        assert list(tmp_path.iterdir()) == []
        assert sum(reads) <= len(data) + 1

    def test_a_missing_object_is_damage(self, memory: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(DamagedError, match=r"mem://bucket/no cannot be read: No such file|Not found"):
            written_files.localize_checked(written_files.describe_bytes(b"x", "mem://bucket/no"), tmp_path)

    def test_no_room_for_a_copy_is_not_blamed_on_the_object(
        self, memory: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = written("mem://bucket/file", b"data")

        def full(self: Path, mode: str) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(OutputError, match=f"copied to {tmp_path}.* 4 bytes: No space.*TMPDIR") as caught:
            written_files.localize_checked(file, tmp_path)
        assert not isinstance(caught.value, DamagedError)

    def test_only_so_many_are_under_way_at_once(
        self, memory: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        under_way: list[int] = []
        most = [0]

        class Files(object_stores._BeamFiles):
            def read(self, path: str, start: int, size: int | None) -> bytes:
                under_way.append(1)
                most[0] = max(most[0], len(under_way))
                time.sleep(0.01)
                under_way.pop()
                return super().read(path, start, size)

        monkeypatch.setattr(object_stores, "_BeamFiles", Files)
        monkeypatch.setattr(written_files, "_DOWNLOADS", threading.BoundedSemaphore(2))
        files = [written(f"mem://bucket/{number}", b"data") for number in range(12)]
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda file: written_files.localize_checked(file, tmp_path), files))
        assert most[0] <= 2


def test_a_file_shows_when_its_block_has_ended(place: str) -> None:
    path = filesystem.join(place, "file.txt")
    filesystem.write_bytes(path, b"old")
    with filesystem.staged(path) as partial:
        partial.write_bytes(b"new and longer")
        assert filesystem.read_bytes(path) == b"old"
        assert filesystem.list_names(place, ".txt") == ["file.txt"]
    assert filesystem.read_bytes(path) == b"new and longer"


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_block_that_fails_changes_nothing(old: bytes | None, place: str, memory: dict[str, Any]) -> None:
    path = filesystem.join(place, "file.txt")
    if old is not None:
        filesystem.write_bytes(path, old)

    def fail() -> None:
        with filesystem.staged(path) as partial:
            partial.write_bytes(b"half")
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert everything_below(place, memory) == ([] if old is None else [path])
    assert not filesystem.exists(path) if old is None else filesystem.read_bytes(path) == old


def test_what_a_process_that_died_left_is_not_listed(tmp_path: Path) -> None:
    staged = filesystem.staged(f"{tmp_path}/file.txt")
    partial = staged.__enter__()  # and never left
    partial.write_bytes(b"half")
    assert [path.name for path in tmp_path.iterdir()] == [partial.name]
    assert filesystem.list_names(str(tmp_path), ".txt") == []
    filesystem.write_bytes(f"{tmp_path}/file.txt", b"whole")
    assert filesystem.list_names(str(tmp_path), ".txt") == ["file.txt"]
    staged.gen.close()


def test_names_are_listed_sorted_by_suffix_and_not_from_below(place: str) -> None:
    assert filesystem.list_names(place, ".txt") == []
    for name in ("b.txt", "a.txt", "c.csv", "deep/d.txt", "txt"):
        filesystem.write_bytes(filesystem.join(place, name), b"")
    assert filesystem.list_names(place, ".txt") == ["a.txt", "b.txt"]
    assert filesystem.list_names(f"{place}/", ".csv") == ["c.csv"]


def test_deletion(place: str, memory: dict[str, Any]) -> None:
    for name in ("a/1", "a/2", "a/deep/3", "ab/4", "5"):
        filesystem.write_bytes(filesystem.join(place, name), b"")
    filesystem.delete(filesystem.join(place, "a/1"))
    assert not filesystem.exists(filesystem.join(place, "a/1"))
    filesystem.delete_tree(filesystem.join(place, "a"))
    filesystem.delete_tree(filesystem.join(place, "missing"))
    assert everything_below(place, memory) == [filesystem.join(place, "5"), filesystem.join(place, "ab/4")]


def test_a_missing_file(place: str) -> None:
    with pytest.raises(OSError, match="missing"):
        filesystem.read_bytes(filesystem.join(place, "missing"))


def test_an_output_that_cannot_be_written(tmp_path: Path, memory: dict[str, Any]) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    places = {f"{tmp_path}/file/x": "", "mem://readonly/x": "read-only", "nosuch://bucket/x": ""}
    for path, reason in places.items():
        with pytest.raises(OutputError, match=rf"cannot write {path}: .*{reason}"):
            filesystem.write_bytes(path, b"data")
    assert (tmp_path / "file").read_bytes() == b"in the way"


def test_a_scheme_that_no_filesystem_serves() -> None:
    path = "nosuch://bucket/x"
    with pytest.raises(OSError, match="nosuch"):
        filesystem.read_bytes(path)
    for operation in (filesystem.exists, filesystem.modified, filesystem.delete, filesystem.delete_tree):
        with pytest.raises(OutputError, match="nosuch"):
            operation(path)
    with pytest.raises(OutputError, match="cannot list nosuch"):
        filesystem.list_names(path, ".txt")


@pytest.mark.parametrize(
    ("scheme", "extra", "module"), [("s3", "aws", "boto3"), ("gs", "gcp", "apache_beam.io.gcp.gcsio")]
)
def test_a_store_whose_client_is_not_installed(
    scheme: str, extra: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(object_stores, "_KEPT", {"s3": SimpleNamespace(), "gs": SimpleNamespace()})
    with pytest.raises(
        OutputError, match=rf"{scheme}:// needs the extra {extra}: pip install 'imgindex\[{extra}\]'"
    ):
        filesystem.exists(f"{scheme}://bucket/x")


def test_folders(place: str) -> None:
    assert filesystem.list_folders(filesystem.join(place, "nowhere")) == []
    for name in ("b/c/file", "a/file", "file", "b/file"):
        filesystem.write_bytes(filesystem.join(place, name), b"")
    assert filesystem.list_folders(place) == ["a", "b"]


def test_when_a_file_was_written(place: str) -> None:
    first, second = (filesystem.join(place, name) for name in ("first", "second"))
    filesystem.write_bytes(first, b"data")
    filesystem.write_bytes(second, b"data")
    assert filesystem.modified(first) <= filesystem.modified(second)
    with pytest.raises(OutputError, match=r"cannot look at .*missing"):
        filesystem.modified(filesystem.join(place, "missing"))


def test_a_file_is_described_by_its_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    digest = hashlib.sha256(b"data").hexdigest()
    assert written_files.describe(tmp_path / "file", "a/b") == WrittenFile("a/b", 4, digest)


def test_paths_are_joined_with_one_slash() -> None:
    assert filesystem.join("/a/", "b", "c") == "/a/b/c"
    assert filesystem.join("/", "b") != "b"
    assert filesystem.join("mem://bucket/", "b") == "mem://bucket/b"
