"""What has changed: against the store by name, time and content; against a generation by content."""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline as BeamTestPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.config import ImagesConfig, IndexConfig
from imgindex.errors import DamagedError, MachineError, OutputError
from imgindex.features import diff as features_diff
from imgindex.features import duplicates, feature_store, join, known_failures
from imgindex.features.transforms import DiffAgainstStore, GroupByChunk
from imgindex.generations.counters import Counters
from imgindex.generations.transforms import CompareGenerations
from imgindex.indexing.shards import write_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.inputs import local_files
from imgindex.io import written_files
from imgindex.models.pca import normalize
from imgindex.records import Failure, ImageFile, ImageRow, KnownFailure, StoredImage

# What the workers of a pipeline, which run in this process, leave of each of its collections.
KEPT: dict[str, list[Any]] = {}


def keep(element: Any, name: str) -> None:
    KEPT[name].append(element)


def outputs(source: Sequence[Any], transform: beam.PTransform, *names: str) -> dict[str, list[Any]]:
    """The elements of the collections `names` that `transform` makes of `source`."""
    KEPT.clear()
    with BeamTestPipeline(runner=FnApiRunner()) as p:
        made = p | beam.Create(source) | transform
        for name in names:
            KEPT[name] = []
            _ = getattr(made, name) | f"Keep {name}" >> beam.Map(keep, name)
    return dict(KEPT)


class Folder:
    """Files by name, as a listing gives them, and a store of some of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = str(root / "store")
        (root / "in").mkdir()

    def file(self, uri: str, content: bytes, version: str = "1") -> ImageFile:
        path = self.root / "in" / hashlib.sha256(f"{uri} {version}".encode()).hexdigest()
        path.write_bytes(content)
        os.utime(path, ns=(0, int(version)))
        return ImageFile(uri, str(path), len(content), version)

    def keep(self, *files: ImageFile) -> tuple[StoredImage, ...]:
        rows = [
            ImageRow(file.uri, file.size, file.version, sha256(file), 10 + n, 20)
            for n, file in enumerate(files)
        ]
        features, _ = normalize(np.random.default_rng(0).random((len(files), 8), np.float32))
        return feature_store.write_rows(self.store, rows, features)

    def condemn(self, *files: ImageFile) -> None:
        """Has the store remember that `files` are bad."""
        known_failures.write(
            self.store, [KnownFailure(failure_of(file), file.size, file.version) for file in files]
        )

    def failed(
        self, files: Sequence[ImageFile], retry_failed: bool = False
    ) -> tuple[list[str], list[Failure]]:
        """The uris of the new files and the failures without another try, sorted."""
        made = outputs(
            files, DiffAgainstStore(self.store, threads=2, retry_failed=retry_failed), "new", "failed"
        )
        return sorted(file.uri for file in made["new"]), sorted(
            made["failed"], key=lambda failure: failure.uri
        )

    def diff(
        self, files: Sequence[ImageFile]
    ) -> tuple[list[ImageFile], list[StoredImage], list[StoredImage]]:
        """The new files, the images that were found, the images that were copied."""
        made = outputs(files, DiffAgainstStore(self.store, threads=2), "new", "found", "copied")
        found = [image for images in made["found"] for image in images]
        return made["new"], found, [image for unit in made["copied"] for image in unit.images]


def failure_of(file: ImageFile) -> Failure:
    return Failure(file.uri, "decode", "truncated", f"{sha256(file)} is cut short", sha256(file))


def sha256(file: ImageFile) -> str:
    return hashlib.sha256(Path(file.path).read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions are what tests say, and no test can say when attributes were changed."""
    monkeypatch.setattr(local_files, "local_version", lambda status: str(status.st_mtime_ns))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_listing_is_split_by_name_time_and_content(folder: Folder) -> None:
    same = [folder.file(f"{n}.jpg", b"%03d" % n) for n in range(20)]
    before = [folder.file(name, name.encode()) for name in ("touched", "renamed", "removed")]
    stored = {image.uri: image for image in folder.keep(*same, *before)}
    listing = [
        *same[1:],
        folder.file("0.jpg", b"xyz", "2"),  # changed, and of the size that others have
        folder.file("touched", b"touched", "2"),
        folder.file("another name", b"renamed"),
        folder.file("a copy", b"renamed"),
        folder.file("fresh", b"of a size that no other has"),
    ]
    new, found, copied = folder.diff(listing)
    assert sorted((file.uri, file.duplicates) for file in new) == [("0.jpg", ()), ("fresh", ())]
    assert sorted(found, key=lambda image: image.uri) == sorted(
        (stored[file.uri] for file in same[1:]), key=lambda image: image.uri
    )
    originals = {"touched": "touched", "another name": "renamed", "a copy": "renamed"}
    assert sorted(image.uri for image in copied) == sorted(originals)
    for image in copied:
        original = stored[originals[image.uri]]
        assert (image.sha256, image.version) == (original.sha256, "2" if image.uri == "touched" else "1")
        rows = [feature_store.read_rows(folder.store, at.chunk, [at.row]) for at in (image, original)]
        np.testing.assert_array_equal(rows[0][1], rows[1][1])
        assert rows[0][0]["width"] == rows[1][0]["width"]
    # The store holds them under their own names now.
    new, found, copied = folder.diff(listing)
    assert (len(new), len(found), copied) == (2, 22, [])


def test_of_new_files_with_the_same_bytes_one_is_embedded(folder: Folder) -> None:
    contents = zip("abcdef", ("x", "y", "x", "x", "y", "z"), strict=True)
    files = [folder.file(name, content.encode()) for name, content in contents]
    new, found, copied = folder.diff(files)
    assert (found, copied) == ([], [])
    assert {file.uri: [duplicate.uri for duplicate in file.duplicates] for file in new} == {
        "a": ["c", "d"],
        "b": ["e"],
        "f": [],
    }


@settings(max_examples=10)
@given(data=st.data())
@pytest.mark.long
def test_every_file_of_a_listing_comes_out_once(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = Folder(tmp_path_factory.mktemp("folder"))
    contents = st.sampled_from([b"", b"a", b"b", b"cc", b"dd", b"unique"])
    files = st.builds(folder.file, st.sampled_from("pqrstuvw"), contents, st.sampled_from("12"))
    listings = st.lists(files, unique_by=lambda file: file.uri)
    stored = data.draw(listings)
    if stored:
        folder.keep(*stored)
    folder.condemn(*data.draw(listings))
    listing = data.draw(listings)
    # Drawn later, a name may have other bytes by now than it was stored with: what it says is what it held.
    made = outputs(listing, DiffAgainstStore(folder.store, threads=2), "new", "found", "copied", "failed")
    new = made["new"]
    uris = [file.uri for first in new for file in (first, *first.duplicates)]
    uris += [image.uri for images in made["found"] for image in images]
    uris += [image.uri for unit in made["copied"] for image in unit.images]
    uris += [failure.uri for failure in made["failed"]]
    assert Counter(uris) == Counter(file.uri for file in listing)
    for first in new:
        assert first.duplicates == () or first.sha256 is not None


def test_many_copies_of_one_image_are_cut(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_MAX_COPIES", 4)
    new, _, _ = folder.diff([folder.file(f"{n}.jpg", b"same") for n in range(10)])
    assert sorted(1 + len(file.duplicates) for file in new) == [2, 4, 4]


def test_a_file_that_cannot_be_hashed_is_left_to_fail_where_images_are_loaded(folder: Folder) -> None:
    files = [folder.file("a", b"same"), folder.file("b", b"same"), folder.file("c", b"same")]
    Path(files[0].path).unlink()
    new, _, _ = folder.diff(files)
    assert sorted((file.uri, len(file.duplicates)) for file in new) == [("a", 0), ("b", 1)]


def test_known_failures_are_told_without_reading(folder: Folder) -> None:
    bad = [folder.file(f"{n}.jpg", b"bad %d" % n) for n in range(5)]
    folder.condemn(*bad[:3])
    expected = [failure_of(file) for file in bad[:3]]
    for file in bad:
        Path(file.path).unlink()
    new, failed = folder.failed(bad)
    assert (new, failed) == (["3.jpg", "4.jpg"], expected)
    assert folder.failed(bad, retry_failed=True) == ([file.uri for file in bad], [])


def test_bytes_that_are_known_to_be_bad_are_under_any_name_and_time(folder: Folder) -> None:
    bad = folder.file("bad.jpg", b"bad")
    folder.condemn(bad, folder.file("also bad.jpg", b"bad"))
    files = [
        folder.file("bad.jpg", b"bad", "2"), folder.file("renamed.jpg", b"bad"),
        folder.file("copy.jpg", b"bad"), folder.file("same size.jpg", b"xyz"),
        folder.file("other.jpg", b"of another size"),
    ]  # fmt: skip
    new, failed = folder.failed(files)
    assert new == ["other.jpg", "same size.jpg"]
    assert [(failure.uri, failure.reason, failure.sha256) for failure in failed] == [
        (uri, "truncated", sha256(bad)) for uri in ("bad.jpg", "copy.jpg", "renamed.jpg")
    ]
    # And from then on under their own names, without being read.
    for file in files:
        Path(file.path).unlink()
    assert folder.failed(files) == (new, failed)


def test_a_failure_loses_against_a_feature(folder: Folder) -> None:
    files = [folder.file("same.jpg", b"good after all"), folder.file("copy.jpg", b"good after all")]
    folder.condemn(*files)
    folder.keep(files[0])
    new, found, copied = folder.diff([files[0], folder.file("another copy.jpg", b"good after all")])
    assert (new, [image.uri for image in found]) == ([], ["same.jpg"])
    assert [image.uri for image in copied] == ["another copy.jpg"]


def test_failures_that_are_damaged_are_forgotten(folder: Folder) -> None:
    files = [folder.file("a.jpg", b"bad"), folder.file("b.jpg", b"worse")]
    folder.condemn(files[0])
    (damaged,) = known_failures.names(folder.store)
    folder.condemn(files[1])
    Path(folder.store, damaged).write_bytes(b"x")
    new, failed = folder.failed(files)
    assert (new, [failure.uri for failure in failed]) == (["a.jpg"], ["b.jpg"])
    assert damaged not in known_failures.names(folder.store)


def rewrite(file: ImageFile, content: bytes) -> None:
    """Other bytes in the place of a file's, of the same size and with the same times."""
    Path(file.path).write_bytes(content)
    os.utime(file.path, ns=(0, int(file.version)))


class TestRehash:
    """An edit that no time tells is found by the bytes, and from then on without being asked for."""

    def diff(self, folder: Folder, files: Sequence[ImageFile], rehash: bool) -> dict[str, list[str]]:
        """The uris of the files by what has become of each."""
        names = ("new", "found", "copied", "failed")
        made = outputs(files, DiffAgainstStore(folder.store, threads=2, rehash=rehash), *names)
        listed = {
            "new": made["new"], "failed": made["failed"],
            "found": [image for images in made["found"] for image in images],
            "copied": [image for unit in made["copied"] for image in unit.images],
        }  # fmt: skip
        return {name: sorted(one.uri for one in listed[name]) for name in names}

    def test_nothing_has_changed(self, folder: Folder) -> None:
        files = [folder.file(f"{n}.jpg", b"%d" % n) for n in range(4)]
        folder.keep(*files[:3])
        folder.condemn(files[3])
        before = sorted(Path(folder.store).iterdir())
        expected = {"new": [], "found": ["0.jpg", "1.jpg", "2.jpg"], "copied": [], "failed": ["3.jpg"]}
        assert self.diff(folder, files, rehash=True) == expected
        assert sorted(Path(folder.store).iterdir()) == before

    def test_an_edit_that_kept_size_and_times(self, folder: Folder) -> None:
        files = [folder.file(f"{n}.jpg", b"%d" % n) for n in range(6)]
        folder.keep(*files[:4])
        folder.condemn(*files[4:])
        rewrite(files[0], b"x")
        rewrite(files[1], b"2")  # the bytes that another image has
        rewrite(files[4], b"y")
        unseen = {"new": [], "found": [f"{n}.jpg" for n in range(4)], "copied": [],
                  "failed": ["4.jpg", "5.jpg"]}  # fmt: skip
        assert self.diff(folder, files, rehash=False) == unseen
        seen = {"new": ["0.jpg", "4.jpg"], "found": ["2.jpg", "3.jpg"], "copied": ["1.jpg"],
                "failed": ["5.jpg"]}  # fmt: skip
        assert self.diff(folder, files, rehash=True) == seen
        # When these are embedded, the store says two things of one version. The bytes decide.
        folder.keep(files[0], files[4])
        found = {"new": [], "found": [f"{n}.jpg" for n in range(5)], "copied": [], "failed": ["5.jpg"]}
        assert self.diff(folder, files, rehash=False) == found
        rewrite(files[0], b"0")
        rewrite(files[4], b"4")
        found |= {"found": [f"{n}.jpg" for n in range(4)], "failed": ["4.jpg", "5.jpg"]}
        assert self.diff(folder, files, rehash=False) == found

    def test_a_file_that_cannot_be_read(self, folder: Folder) -> None:
        file = folder.file("a.jpg", b"a")
        folder.keep(file)
        Path(file.path).unlink()
        # It fails where images are loaded.
        assert self.diff(folder, [file], rehash=True)["new"] == ["a.jpg"]


class TestRepeatedUris:
    def test_one_counts_and_the_others_fail_in_whatever_order_they_come(self, folder: Folder) -> None:
        plain = folder.file("a.tar/x.jpg", b"plain")
        member = replace(folder.file("a.tar", b"the tar"), uri="a.tar/x.jpg", offset=512)
        again = folder.file("b.jpg", b"listed twice")
        files = [member, plain, again, replace(again)]
        for order in itertools.permutations(files):
            kept, failed = features_diff.each_uri_once(order)
            assert sorted((file.uri, file.path) for file in kept) == [
                ("a.tar/x.jpg", plain.path), ("b.jpg", again.path),
            ]  # fmt: skip
            failed.sort(key=lambda failure: failure.uri)
            assert [(f.uri, f.stage, f.reason) for f in failed] == [
                ("a.tar/x.jpg", "list", "duplicate_uri"), ("b.jpg", "list", "duplicate_uri"),
            ]  # fmt: skip
            assert plain.path in failed[0].message
            assert member.path in failed[0].message
            assert "listed twice" in failed[1].message
        folder.keep(plain)
        made = outputs(files, DiffAgainstStore(folder.store, threads=1), "new", "found", "failed")
        assert [file.path for file in made["new"]] == [again.path]
        assert [image.uri for images in made["found"] for image in images] == ["a.tar/x.jpg"]
        assert sorted(made["failed"], key=lambda failure: failure.uri) == failed


class TestFailuresThatMayPass:
    def first(self, files: Sequence[ImageFile], known: Sequence[KnownFailure]) -> ImageFile | None:
        """What is to be embedded of files of the same bytes, of which failures are known."""
        read = [replace(file, sha256=sha256(file)) for file in files]
        first, *others = duplicates.match_digests((0, [(0, read), (1, list(known))]))
        if isinstance(first, ImageFile):
            assert others == []
            return first
        assert len([first, *others]) == len(files)
        return None

    def test_are_tried_again_with_a_bound(self, folder: Folder) -> None:
        files = [folder.file("a.jpg", b"bytes"), folder.file("b.jpg", b"bytes")]
        known: list[KnownFailure] = []
        for tries in range(known_failures.MAX_TRIES):
            first = self.first(files, known)
            assert first is not None
            assert (first.tries, len(first.duplicates)) == (tries, 1)
            failure = Failure(first.uri, "decode", "killed", "signal 9", sha256(first))
            known += known_failures.to_remember(failure, [first, *first.duplicates], first.tries)
        # The bytes count, whatever their names.
        assert self.first([folder.file("c.jpg", b"bytes")], known) is None
        assert self.first(files, known) is None
        # As the store keeps them.
        known_failures.write(folder.store, known[:4])
        new, failed = folder.failed(files)
        assert (new, failed) == (["a.jpg"], [])
        known_failures.write(folder.store, known[4:])
        new, failed = folder.failed(files)
        assert (new, [failure.reason for failure in failed]) == ([], ["killed", "killed"])


class TestAMachineThatLacksSomething:
    """Only what does not match its digest is deleted."""

    @pytest.mark.parametrize(
        "error", [MemoryError(), pa.ArrowMemoryError("malloc of size 64 failed"), OSError(12, "no memory"),
                  pa.ArrowInvalid("whatever")],
    )  # fmt: skip
    @pytest.mark.parametrize("kind", ["chunk", "failed"])
    def test_loses_no_chunk(
        self, kind: str, error: Exception, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = folder.file("a.jpg", b"bytes")
        (folder.keep if kind == "chunk" else folder.condemn)(file)
        before = sorted(Path(folder.store).iterdir())

        def refuse(*_: Any, **__: Any) -> None:
            raise error

        (path,) = before
        with monkeypatch.context() as patch:
            patch.setattr(pq.ParquetFile, "read", refuse)
            with pytest.raises((MachineError, OutputError), match=path.name) as caught:
                list(features_diff.read_keys(path.name, folder.store, None, ImagesConfig()))
        assert not isinstance(caught.value, DamagedError)
        assert sorted(Path(folder.store).iterdir()) == before
        assert len(list(features_diff.read_keys(path.name, folder.store, None, ImagesConfig()))) == 1


def image(uri: str, digest: str) -> StoredImage:
    return StoredImage(uri, 1, "1", digest, f"chunk-{uri[0]}", 0)


def compare(place: str, before: dict[str, str], now: dict[str, str]) -> tuple[dict[str, int], list[str]]:
    """The counts, and the uris of what is new, against a generation of two shards."""
    paths = []
    for shard, uris in enumerate((sorted(before)[::2], sorted(before)[1::2])):
        if not uris:
            continue
        columns = {name: pa.array([1] * len(uris)) for name in ("size", "width", "height")}
        table = pa.table({"uri": uris, "sha256": [before[uri] for uri in uris], **columns})
        vectors = np.random.default_rng(0).random((len(uris), 2), np.float32)
        written = write_shard(place, shard, 2, [VectorRows(table, vectors)], IndexConfig(trees=1))
        paths.append(written_files.placed(place, written.metadata))
    held = [[image(uri, digest)] for uri, digest in now.items()]
    made = outputs(held, CompareGenerations(paths), "counts", "changes")
    return dict(sum(made["counts"], Counters()).counts), sorted(
        image.uri for images in made["changes"] for image in images
    )


def test_a_listing_against_a_generation(place: str) -> None:
    before = {"a": "1", "b": "2", "c": "3", "d/ä": "4"}
    now = {"a": "1", "b": "other", "d/ä": "4", "new": "1"}
    counts, changes = compare(place, before, now)
    assert counts == {"added": 1, "changed": 1, "removed": 1, "unchanged": 2}
    assert changes == ["b", "new"]


def test_against_no_generation_all_is_added(place: str) -> None:
    counts, changes = compare(place, {}, {"a": "1", "b": "1"})
    assert counts == {"added": 2, "changed": 0, "removed": 0, "unchanged": 0}
    assert changes == ["a", "b"]


def test_against_no_images_all_is_removed(place: str) -> None:
    assert compare(place, {"a": "1", "b": "1"}, {})[0]["removed"] == 2


def test_no_element_that_a_join_gives_holds_a_whole_bucket(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "JOIN_BUCKETS", 1)
    monkeypatch.setattr(join, "_ELEMENT_IMAGES", 3)
    files = [folder.file(f"{n}.jpg", b"%d" % n) for n in range(10)]
    stored = folder.keep(*files)
    found = outputs(files, DiffAgainstStore(folder.store, threads=1), "found")["found"]
    changes = outputs([list(stored)], CompareGenerations([]), "changes")["changes"]
    for elements in (found, changes):
        assert sorted(map(len, elements)) == [1, 3, 3, 3]
        assert {image for images in elements for image in images} == set(stored)


def test_rows_are_grouped_by_chunk() -> None:
    images = [StoredImage(str(n), 1, "1", "", f"chunk-{n % 3}", n) for n in range(20)]
    KEPT["grouped"] = []
    with BeamTestPipeline(runner=FnApiRunner()) as p:
        grouped = p | beam.Create([images[5:], images[:5]]) | GroupByChunk()
        _ = grouped | "Keep" >> beam.Map(keep, "grouped")
    assert sorted(KEPT["grouped"]) == [(f"chunk-{n}", list(range(n, 20, 3))) for n in range(3)]
