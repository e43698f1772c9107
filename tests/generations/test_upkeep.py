"""Verify, roll back, prune: on generations and stores of known content."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import manifest_of

from imgindex.cli import main
from imgindex.config import IndexConfig
from imgindex.errors import DamagedError, OutputError, UsageError
from imgindex.features import feature_store, known_failures
from imgindex.generations import prune as generations_prune
from imgindex.generations import rollback as generations_rollback
from imgindex.generations import verify as generations_verify
from imgindex.generations.failure_lists import write_list
from imgindex.generations.layout import Output, current_name, generation_names, make_current, publish
from imgindex.generations.prune import prune
from imgindex.generations.rollback import rollback
from imgindex.generations.verify import verify
from imgindex.indexing import shards
from imgindex.indexing.shards import write_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.io import content_addressed, filesystem, written_files
from imgindex.io.output_lock import Claim, writer_lock
from imgindex.models.moments import Moments
from imgindex.models.pca import fit_basis, normalize
from imgindex.records import Failure, ImageFile, ImageRow, KnownFailure, StoredImage

FEATURES, _ = normalize(np.random.default_rng(0).random((100, 16), np.float32))
LONG_AGO = "20200101T00000{}Z-01234567"


def keep(output: str, spec: str, uris: str, version: str = "1") -> tuple[StoredImage, ...]:
    """A chunk of the images `uris`, a letter each; their bytes are their letter and version."""
    rows = [ImageRow(uri, 1, version, f"{uri}{version}", 5, 6) for uri in uris]
    return feature_store.write_rows(
        Output(output).store(spec), rows, FEATURES[[ord(uri) % 100 for uri in uris]]
    )


def fail(output: str, spec: str, uris: str, version: str = "1") -> None:
    """A file of remembered failures of the images `uris`, a letter each."""
    known = [KnownFailure(failure_of(uri, version), 1, version) for uri in uris]
    known_failures.write(Output(output).store(spec), known)


def failure_of(uri: str, version: str = "1") -> Failure:
    return Failure(uri, "decode", "truncated", "it is cut short", f"{uri}{version}")


def remembered(output: str, spec: str = "spec") -> list[str]:
    """The uris of the failures that the store remembers, sorted; those of a file together."""
    directory = Output(output).store(spec)
    files = [known_failures.read(directory, name) for name in known_failures.names(directory)]
    return sorted("".join(known.uri for known in file) for file in files)


def generate(
    output: str, number: int, uris: str, spec: str = "spec", version: str = "1", failed: str = ""
) -> str:
    """Publishes a generation of the images `uris`, and of the failures of `failed`."""
    layout, name = Output(output), LONG_AGO.format(number)
    directory = layout.generation(name)
    columns = {column: pa.array([1] * len(uris)) for column in ("size", "width", "height")}
    images = pa.table({"uri": list(uris), "sha256": [f"{uri}{version}" for uri in uris], **columns})
    moments = Moments.empty(16)
    moments.add(FEATURES)
    basis = fit_basis(moments, 4)
    rows = VectorRows(images, basis.project(FEATURES[: len(uris)]))
    shard = write_shard(directory, 0, 1, [rows], IndexConfig(trees=2))
    listed = [
        write_list(directory, number, 2, map(failure_of, failed[number::2])).file for number in range(2)
    ]
    file = written_files.write_described(directory, "pca/basis.npz", basis.to_npz())
    publish(layout, manifest_of(name, [shard], file, listed, spec=spec, previous=current_name(layout)))
    return name


def rows_of(output: str, spec: str = "spec") -> list[tuple[str, str]]:
    """The uri and version of every row of the store, sorted."""
    directory = Output(output).store(spec)
    return sorted(
        (image.uri, image.version)
        for name in content_addressed.names(directory)
        for image in feature_store.read_keys(directory, name)
    )


def set_age(folder: Path, seconds: float) -> None:
    """Lets every file below `folder` be written so long ago."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


class TestVerify:
    def test_a_generation_that_is_pruned_meanwhile_is_no_damage(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(place, "spec", "abcdef")
        generate(place, 1, "abcdef")
        check, checked = shards.check_shard, list[Any]()

        def prune_first(*arguments: Any, **named: Any) -> list[str]:
            checked.append(arguments)
            if len(checked) == 1:
                generate(place, 2, "abc")
                prune(place, keep=1, grace_seconds=0)
            return check(*arguments, **named)

        monkeypatch.setattr(shards, "check_shard", prune_first)
        found = verify(place)
        assert found.problems == ()
        assert found.rows == 3

    def test_a_live_generation_that_is_pruned_before_its_manifest_is_read(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generate(place, 1, "abc")
        read, names = generations_verify.read_manifest, []

        def publish_first(layout: Output, name: str) -> dict[str, Any]:
            names.append(name)
            if len(names) == 1:
                generate(place, 2, "abc")
                filesystem.delete(layout.manifest(name))
            return read(layout, name)

        monkeypatch.setattr(generations_verify, "read_manifest", publish_first)
        assert verify(place).problems == ()
        assert names == [LONG_AGO.format(1), LONG_AGO.format(2)]

    def test_chunks_that_prune_writes_again_meanwhile_are_verified_where_they_are_then(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for uris in ("ax", "by", "cz"):
            keep(place, "spec", uris)
        fail(place, "spec", "pq")
        generate(place, 1, "abc")
        read_keys, reads = feature_store.read_keys, []

        def prune_first(folder: str, name: str, *arguments: Any) -> Iterator[StoredImage]:
            reads.append(name)
            if len(reads) == 1:
                with monkeypatch.context() as patch:
                    patch.setattr(feature_store, "read_keys", read_keys)
                    assert prune(place, keep=1, grace_seconds=0).rows == 3
            return read_keys(folder, name, *arguments)

        monkeypatch.setattr(feature_store, "read_keys", prune_first)
        found = verify(place)
        assert found.problems == ()
        assert (found.chunks, found.rows) == (1, 3)

    def test_it_ends_though_a_build_goes_on_adding_to_the_store(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(place, "spec", "abc")
        generate(place, 1, "abc")
        read_keys, reads = feature_store.read_keys, []

        def add_first(folder: str, name: str, *arguments: Any) -> Iterator[StoredImage]:
            reads.append(name)
            assert len(reads) == 1
            keep(place, "spec", "de")
            return read_keys(folder, name, *arguments)

        monkeypatch.setattr(feature_store, "read_keys", add_first)
        assert verify(place).problems == ()

    def test_an_undamaged_output(self, place: str) -> None:
        keep(place, "spec", "abc")
        keep(place, "other", "de")
        generate(place, 1, "abc")
        found = verify(place)
        assert found.problems == ()
        assert (found.files, found.chunks, found.rows) == (5, 2, 5)

    @pytest.mark.parametrize("which", ["index", "metadata", "pca", "failures", "store"])
    @pytest.mark.parametrize("damage", ["one bit", "shorter", "gone"])
    def test_any_damage_is_named(self, which: str, damage: str, tmp_path: Path) -> None:
        keep(str(tmp_path), "spec", "abc")
        generate(str(tmp_path), 1, "abc", failed="xyz")
        path = next(path for path in sorted(tmp_path.rglob(f"{which}/**/*")) if path.is_file())
        data = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        else:
            data[len(data) // 2] ^= 1
            path.write_bytes(data if damage == "one bit" else data[:-1])
        problems = verify(str(tmp_path)).problems
        if which == "store" and damage == "gone":
            assert problems == ()  # a chunk that is not there is one that was never written
        else:
            assert len(problems) == 1
            assert path.name in problems[0]

    @pytest.mark.parametrize("damage", ["one bit", "shorter"])
    def test_damage_of_remembered_failures_is_named(self, damage: str, tmp_path: Path) -> None:
        generate(str(tmp_path), 1, "abc")
        fail(str(tmp_path), "spec", "xyz")
        assert verify(str(tmp_path)).problems == ()
        (path,) = tmp_path.rglob("failed-*.parquet")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "one bit" else data[:-1])
        (problem,) = verify(str(tmp_path)).problems
        assert path.name in problem

    def test_nothing_to_verify(self, place: str) -> None:
        with pytest.raises(OutputError, match="holds no index"):
            verify(place)

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        keep(str(tmp_path), "spec", "abc")
        generate(str(tmp_path), 1, "abc")
        assert main(["verify", str(tmp_path)]) == 0
        assert "all bytes are as they were written" in capsys.readouterr().out
        (path,) = tmp_path.rglob("*.ann")
        path.write_bytes(b"x")
        assert main(["verify", str(tmp_path)]) == 3
        printed = capsys.readouterr()
        assert f"damaged: {path} has other bytes" in printed.out
        assert ": 1 problem;" in printed.err


def lock_that_waits_for(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Has `change` happen to the output just before the lock is taken, as by another process."""

    @contextlib.contextmanager
    def lock(output: str) -> Iterator[Claim]:
        change()
        with writer_lock(output) as claim:
            yield claim

    monkeypatch.setattr(generations_prune, "writer_lock", lock)
    monkeypatch.setattr(generations_rollback, "writer_lock", lock)


class TestRollback:
    def test_what_another_process_has_made_live_meanwhile_counts(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second, _ = (generate(place, number, "abc") for number in (1, 2, 3))
        lock_that_waits_for(monkeypatch, lambda: make_current(Output(place), second))
        assert rollback(place) == (second, first)

    def test_to_the_one_before_and_to_any(self, place: str) -> None:
        first, second, third = (generate(place, number, "abc") for number in (1, 2, 3))
        assert rollback(place) == (third, second)
        assert current_name(Output(place)) == second
        assert rollback(place, third) == (second, third)
        assert rollback(place, first) == (third, first)
        with pytest.raises(UsageError, match="no generation before the live one"):
            rollback(place)

    def test_away_from_what_is_damaged(self, place: str) -> None:
        first, second = (generate(place, number, "abc") for number in (1, 2))
        filesystem.write_bytes(Output(place).manifest(second), b"{")
        with pytest.raises(DamagedError, match="cannot be used"):
            rollback(place)
        assert rollback(place, first) == (second, first)

    def test_nothing_to_roll_back(self, place: str) -> None:
        with pytest.raises(OutputError, match="holds no index"):
            rollback(place)

    def test_not_to_what_is_not_there(self, place: str) -> None:
        name = generate(place, 1, "abc")
        with pytest.raises(UsageError, match=f"has no generation nonsense; it has {name}"):
            rollback(place, "nonsense")

    def test_not_to_what_was_pruned(self, place: str) -> None:
        _, live = (generate(place, number, "abc") for number in (1, 2))
        assert len(prune(place, 1, 0).generations) == 1
        told = f"no generation before the live one, which was pruned; it has {live}$"
        with pytest.raises(UsageError, match=told):
            rollback(place)

    def test_not_to_what_is_damaged(self, tmp_path: Path) -> None:
        first, second = (generate(str(tmp_path), number, "abc") for number in (1, 2))
        (path,) = (tmp_path / "generations" / first).rglob("*.npz")
        path.write_bytes(b"x")
        with pytest.raises(OutputError, match=f"generation {first} is damaged: .*basis.npz"):
            rollback(str(tmp_path))
        assert current_name(Output(str(tmp_path))) == second

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        first, second = (generate(str(tmp_path), number, "abc") for number in (1, 2))
        assert main(["rollback", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{first} is live; it was {second}\n"
        assert main(["rollback", str(tmp_path), "x"]) == 2


class TestPrune:
    def test_what_a_rollback_has_just_made_live_stays(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [generate(place, number, "abc") for number in range(3)]
        lock_that_waits_for(monkeypatch, lambda: make_current(Output(place), names[0]))
        assert prune(place, keep=1).generations == (names[1],)
        assert verify(place).problems == ()

    def test_what_is_no_output_does_not_become_one(self, place: str, memory: dict[str, Any]) -> None:
        for command in (lambda: prune(place, keep=1), lambda: rollback(place)):
            with pytest.raises(OutputError, match="holds no index"):
                command()
        assert memory == {}
        assert not Path(place).exists()

    def test_the_newest_and_the_live_one_stay(self, place: str) -> None:
        names = [generate(place, number, "abc") for number in range(5)]
        rollback(place, names[1])
        pruned = prune(place, keep=2)
        assert pruned.generations == (names[0], names[2])
        assert generation_names(Output(place)) == [names[1], names[3], names[4]]
        assert prune(place, keep=2).generations == ()
        assert verify(place).problems == ()

    def test_what_is_young_stays(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        names = [generate(place, number, "abc") for number in range(3)]
        born = generations_prune._created(names[0])
        monkeypatch.setattr(time, "time", lambda: born + 100)
        assert prune(place, keep=1, grace_seconds=99.5).generations == (names[0],)
        assert prune(place, keep=1, grace_seconds=0).generations == (names[1],)

    def test_rows_that_no_generation_describes_go(self, place: str) -> None:
        keep(place, "spec", "abcd")
        keep(place, "spec", "ef")
        keep(place, "spec", "gh")
        generate(place, 0, "abcdef")
        generate(place, 1, "aceg")
        features = {uri: FEATURES[ord(uri) % 100] for uri in "aceg"}
        pruned = prune(place, keep=1, grace_seconds=0)
        assert (len(pruned.generations), pruned.chunks, pruned.rows) == (1, 3, 4)
        assert rows_of(place) == [(uri, "1") for uri in "aceg"]
        directory = Output(place).store("spec")
        assert len(content_addressed.names(directory)) == 1
        for name in content_addressed.names(directory):
            for image in feature_store.read_keys(directory, name):
                images, found = feature_store.read_rows(directory, name, [image.row])
                np.testing.assert_array_equal(found[0], features[image.uri])
                assert images.to_pylist()[0] == {
                    "uri": image.uri, "sha256": f"{image.uri}1", "size": 1, "width": 5, "height": 6,
                }  # fmt: skip
        assert prune(place, keep=1, grace_seconds=0) == generations_prune.Pruned((), 0, 0, 0)

    @settings(max_examples=20)
    @given(data=st.data())
    def test_what_stays_is_what_a_generation_describes(
        self, tmp_path_factory: pytest.TempPathFactory, data: Any
    ) -> None:
        output = str(tmp_path_factory.mktemp("output"))
        letters = st.sets(st.sampled_from("abcdefgh"), min_size=1).map("".join)
        stored = [(data.draw(letters), data.draw(st.sampled_from("123"))) for _ in range(4)]
        for uris, version in stored:
            keep(output, "spec", "".join(sorted(uris)), version)
        used, version = data.draw(letters), data.draw(st.sampled_from("123"))
        generate(output, 1, "".join(sorted(used)), version=version)
        prune(output, 1, grace_seconds=-1)
        directory = Output(output).store("spec")
        left = [
            image
            for name in content_addressed.names(directory)
            for image in feature_store.read_keys(directory, name)
        ]
        expected = {(uri, version) for uris, of in stored for uri in uris if of == version and uri in used}
        assert sorted((image.uri, image.version) for image in left) == sorted(expected)

    def test_a_whole_chunk_is_left_as_it_is(self, place: str) -> None:
        images = keep(place, "spec", "abc")
        generate(place, 1, "abc")
        assert prune(place, keep=1, grace_seconds=0).chunks == 0
        assert content_addressed.names(Output(place).store("spec")) == [images[0].chunk]

    def test_the_store_of_a_spec_that_nothing_uses_goes(self, place: str) -> None:
        keep(place, "spec", "abc")
        keep(place, "old", "abc")
        generate(place, 0, "abc", spec="old")
        generate(place, 1, "abc")
        assert prune(place, keep=2, grace_seconds=0).rows == 0
        assert prune(place, keep=1, grace_seconds=0).rows == 3
        assert rows_of(place, "old") == []

    @pytest.mark.parametrize(
        "versions",
        [
            ("9", "10"),
            ("10", "9-5"),  # of an earlier version of imgindex, which noted one time
            ("9-8", "7-9"),  # the second time only grows
            ("99-abc", "100-1d"),
            ("1700000000.123456", "1700000000123456"),
            ("5-6+512", "5-7+1024"),
        ],
    )
    def test_of_versions_of_the_same_bytes_the_newest_stays(
        self, versions: tuple[str, str], place: str
    ) -> None:
        directory = Output(place).store("spec")
        (old,) = keep(place, "spec", "a")
        touched = [ImageFile("a", "", 1, version) for version in versions]
        for file in touched:
            copier = feature_store.RowCopier(directory)
            _ = [*copier.copy(old.chunk, [(file, old)]), *copier.flush()]
        generate(place, 1, "a")
        assert prune(place, keep=1, grace_seconds=0).rows == 2
        assert rows_of(place) == [("a", versions[1])]

    def test_a_chunk_that_is_written_again_as_another_lies_there_is_not_lost(self, place: str) -> None:
        # What is left of "ab" has the bytes of the chunk of "a" alone.
        keep(place, "spec", "ab")
        keep(place, "spec", "a")
        generate(place, 1, "a")
        prune(place, keep=1, grace_seconds=0)
        assert rows_of(place) == [("a", "1")]

    def test_failures_that_no_generation_lists_are_forgotten_by_the_file(self, place: str) -> None:
        generate(place, 0, "abc", failed="pqrs")
        generate(place, 1, "abc", failed="rt")
        for uris in ("pq", "qr", "tu", "v"):
            fail(place, "spec", uris)
        fail(place, "old", "rt")
        assert prune(place, keep=2, grace_seconds=0).failures == 3  # v, and r and t under another spec
        assert remembered(place) == ["pq", "qr", "tu"]
        assert prune(place, keep=1, grace_seconds=0).failures == 2
        assert remembered(place) == ["qr", "tu"]
        assert remembered(place, "old") == []
        assert verify(place).problems == ()

    def test_a_failure_of_other_bytes_is_another(self, place: str) -> None:
        generate(place, 1, "abc", failed="r")
        fail(place, "spec", "r", version="2")
        assert prune(place, keep=1, grace_seconds=0).failures == 1

    def test_young_failures_stay(self, tmp_path: Path) -> None:
        generate(str(tmp_path), 1, "abc")
        fail(str(tmp_path), "spec", "xyz")
        assert prune(str(tmp_path), keep=1).failures == 0
        assert remembered(str(tmp_path)) == ["xyz"]

    def test_damaged_failures_are_in_nobodys_way(self, place: str) -> None:
        generate(place, 1, "abc")
        fail(place, "spec", "xyz")
        directory = Output(place).store("spec")
        (name,) = known_failures.names(directory)
        filesystem.write_bytes(filesystem.join(directory, name), b"x")
        assert prune(place, keep=1, grace_seconds=0).failures == 0
        assert remembered(place) == []

    def test_a_damaged_list_of_failures_is_named(self, place: str) -> None:
        name = generate(place, 1, "abc", failed="xyz")
        fail(place, "spec", "xyz")
        path = filesystem.join(Output(place).generation(name), "failures/failures-00000-of-00002.jsonl")
        for damage in (b"{", b"[]\n", b'{"uri": "x"}\n', b"\xff\n"):
            filesystem.write_bytes(path, damage)
            with pytest.raises(OutputError, match=f"{path} has other bytes"):
                prune(place, keep=1, grace_seconds=0)
        assert remembered(place) == ["xyz"]

    @pytest.mark.parametrize("which", ["metadata/*", "failures/*", "manifest.json"])
    def test_where_an_older_generation_is_damaged_the_store_stays_as_it_is(
        self, which: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        keep(str(tmp_path), "spec", "abcx")
        names = [generate(str(tmp_path), number, "abc", failed="p") for number in range(3)]
        path = min((tmp_path / "generations" / names[1]).glob(which))
        path.write_bytes(b"x")
        pruned = prune(str(tmp_path), keep=2, grace_seconds=0)
        assert (pruned.generations, pruned.rows) == ((names[0],), 0)
        assert len(rows_of(str(tmp_path))) == 4
        assert path.name in caplog.text
        assert "the store stays as it is" in caplog.text
        # Once it is not among the newest any more.
        pruned = prune(str(tmp_path), keep=1, grace_seconds=0)
        assert (pruned.generations, pruned.rows) == ((names[1],), 1)

    def test_young_chunks_are_a_build_under_way(self, tmp_path: Path) -> None:
        keep(str(tmp_path), "spec", "xyz")
        generate(str(tmp_path), 1, "abc")
        assert prune(str(tmp_path), keep=1).rows == 0
        assert len(rows_of(str(tmp_path))) == 3

    def test_what_a_killed_build_has_stored_stays_for_a_week(self, tmp_path: Path) -> None:
        keep(str(tmp_path), "spec", "xyz")
        fail(str(tmp_path), "spec", "pq")
        generate(str(tmp_path), 1, "abc")
        set_age(tmp_path / "store", generations_prune.FEATURE_GRACE - 100)
        pruned = prune(str(tmp_path), keep=1)
        assert (pruned.rows, pruned.failures, pruned.young_files) == (0, 0, 2)
        set_age(tmp_path / "store", generations_prune.FEATURE_GRACE + 100)
        pruned = prune(str(tmp_path), keep=1)
        assert (pruned.rows, pruned.failures, pruned.young_files) == (3, 2, 0)

    def test_the_grace_is_said_and_can_be_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = [generate(str(tmp_path), number, "abc") for number in range(2)]
        keep(str(tmp_path), "spec", "xyz")
        keep(str(tmp_path), "spec", "abc")
        born = generations_prune._created(names[0])
        monkeypatch.setattr(time, "time", lambda: born + 1800)
        set_age(tmp_path / "store", 1800)
        assert main(["prune", str(tmp_path), "--keep", "1"]) == 0
        assert capsys.readouterr().out == (
            f"kept generation {names[0]}: it is not older than 1h\n"
            "deleted 0 generations, and from 0 files of the store the features of 0 images that no other "
            "generation uses; forgot 0 failures\n"
            "kept 2 files of the store, used or not: not older than 7d\n"
        )
        assert main(["prune", str(tmp_path), "--keep", "1", "--grace", "45m"]) == 0
        printed = capsys.readouterr().out
        assert f"kept generation {names[0]}: it is not older than 45m\n" in printed
        assert "kept 2 files of the store, used or not: not older than 45m\n" in printed
        assert main(["prune", str(tmp_path), "--keep", "1", "--grace", "29m"]) == 0
        assert capsys.readouterr().out == (
            f"deleted generation {names[0]}\n"
            "deleted 1 generation, and from 1 file of the store the features of 3 images that no other "
            "generation uses; forgot 0 failures\n"
        )

    @pytest.mark.parametrize("grace", ["", "7", "1w", "-1d", "1.5h", "d", "1 d", "9999999d"])
    def test_what_is_no_duration(
        self, grace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["prune", str(tmp_path), "--keep", "1", f"--grace={grace}"])
        assert caught.value.code == 2
        assert f"{grace!r} is no duration; expected one such as 30m, 12h or 7d" in capsys.readouterr().err

    def test_the_help_states_the_grace(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["prune", "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        hours, days = generations_prune.GENERATION_GRACE / 3600, generations_prune.FEATURE_GRACE / 24 / 3600
        assert f"(default: {hours:.0f}h for generations, {days:.0f}d for the features" in printed

    @pytest.mark.long
    def test_while_a_build_runs(self, place: str) -> None:
        generate(place, 1, "abc")
        with writer_lock(place), pytest.raises(OutputError, match="is being written"):
            prune(place, keep=1)

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        names = [generate(str(tmp_path), number, "abc") for number in range(3)]
        assert main(["prune", str(tmp_path), "--keep", "0"]) == 2
        assert main(["prune", str(tmp_path), "--keep", "1"]) == 0
        printed = capsys.readouterr().out
        assert f"deleted generation {names[0]}\ndeleted generation {names[1]}\n" in printed
        with pytest.raises(SystemExit):
            main(["prune", str(tmp_path)])
