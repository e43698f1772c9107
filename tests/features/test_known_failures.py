"""Failures that the bytes alone decide: remembered, told again without a read, and forgotten on request."""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline as BeamTestPipeline
from hypothesis import given
from hypothesis import strategies as st
from relocated import relocate

import imgindex
from imgindex.cli import main
from imgindex.errors import OutputError, PublishRefusedError
from imgindex.features import known_failures
from imgindex.generations.layout import Output, current_name
from imgindex.inputs.local_files import local_version
from imgindex.io import filesystem
from imgindex.job.dry_run import describe_build
from imgindex.job.launch import refresh
from imgindex.job.publish import Outcome
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodeError
from imgindex.records import Failure, ImageFile, KnownFailure

ODD = "ä 猫/b\n.png"


def known(uri: str, size: int = 3, version: str = "1", sha256: str = "aa", message: str = "") -> KnownFailure:
    return KnownFailure(Failure(uri, "decode", "truncated", message, sha256), size, version)


class TestFiles:
    def test_failures_come_back(self, place: str) -> None:
        written = [known("b"), known(ODD, 2**40, "etag-'x'", "bb", "it says\n'ä'"), known("a", 0)]
        known_failures.write(place, written)
        (name,) = known_failures.names(place)
        assert set(known_failures.read(place, name)) == set(written)
        # In another order they are the same file.
        known_failures.write(place, written[::-1])
        assert known_failures.names(place) == [name]
        known_failures.write(place, written[:1])
        assert len(known_failures.names(place)) == 2

    def test_tries_come_back(self, place: str) -> None:
        written = [known("a"), replace(known("a"), tries=2), replace(known("b"), tries=3)]
        known_failures.write(place, written)
        (name,) = known_failures.names(place)
        assert set(known_failures.read(place, name)) == set(written)
        assert [known_failures.is_final(one) for one in written] == [True, False, True]

    def test_of_no_failures_there_is_no_file(self, place: str) -> None:
        known_failures.write(place, [])
        assert known_failures.names(place) == []

    @pytest.mark.parametrize("how", ["altered", "truncated", "empty", "missing"])
    def test_a_damaged_file_is_refused_by_name(self, how: str, place: str) -> None:
        known_failures.write(place, [known("a")])
        (name,) = known_failures.names(place)
        path = filesystem.join(place, name)
        data = filesystem.read_bytes(path)
        middle = len(data) // 2
        filesystem.delete(path)
        if how != "missing":
            altered = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            filesystem.write_bytes(path, {"altered": altered, "truncated": data[:-1], "empty": b""}[how])
        with pytest.raises(OutputError, match=path):
            list(known_failures.read(place, name))


@pytest.mark.parametrize(
    ("stage", "reason", "lasts"),
    [
        *(("decode", reason, True) for reason in ("empty", "not_an_image", "truncated", "undecodable")),
        *(("decode", reason, True) for reason in ("crashed", "timed_out", "out_of_memory")),
        ("embed", "no_direction", True),
        *(("decode", reason, False) for reason in ("killed", "stalled", "no_memory")),
        ("list", "duplicate_uri", False),
        ("decode", "too_many_pixels", False),
        ("embed", "engine_error", False),
        *(
            ("read", reason, False)
            for reason in ("vanished", "changed", "permission_denied", "unreadable", "too_many_bytes")
        ),
        ("list", "not_a_file", False),
    ],
)
def test_what_lasts(stage: str, reason: str, lasts: bool) -> None:
    assert known_failures.is_lasting(Failure("a", stage, reason, "", "aa")) is lasts
    # Nothing lasts that is not known to be of these bytes.
    assert not known_failures.is_lasting(Failure("a", stage, reason, ""))


def test_the_reasons_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "failures.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (.*?) \| .*? \| (.*?) \|$", text, re.M)[1:]
    named = {(stage, reason): then for stage, cell, then in rows for reason in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 15
    for (stage, reason), then in named.items():
        assert (then == "remembers") is known_failures.is_lasting(Failure("a", stage, reason, "", "aa")), (
            reason
        )
        assert ("builds" in then) is known_failures.is_environmental(stage, reason), reason
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    exec(compile(example, "docs/failures.md", "exec"), {})


FILES = st.builds(ImageFile, st.sampled_from("abc"), st.just(""), st.integers(0, 1), st.sampled_from("12"))
KNOWN = st.builds(
    known, st.sampled_from("abc"), st.integers(0, 1), st.sampled_from("12"), message=st.sampled_from("xy")
)


@given(st.lists(FILES, unique_by=lambda file: file.uri), st.lists(KNOWN, max_size=20), st.data())
def test_every_missing_image_is_tried_or_has_failed_whatever_the_order(
    missing: list[ImageFile], bad: list[KnownFailure], data: Any
) -> None:
    untried, failed = known_failures.split(missing, bad)
    keys = {(one.uri, one.size, one.version) for one in bad}
    assert [(f.uri, f.size, f.version) in keys for f in missing] == [f not in untried for f in missing]
    assert sorted([f.uri for f in untried] + [f.uri for f in failed]) == sorted(f.uri for f in missing)
    again = known_failures.split(data.draw(st.permutations(missing)), data.draw(st.permutations(bad)))
    assert (set(again[0]), set(again[1])) == (set(untried), set(failed))


def test_of_several_failures_of_the_same_bytes_the_choice_does_not_depend_on_their_order() -> None:
    bad = [known("b", message="y"), known("b", message="x"), known("a", message="z")]
    for several in itertools.permutations(bad):
        assert min(several, key=known_failures.order) == bad[2]


CONFIG = imgindex.Config(
    backbone=imgindex.BackboneConfig(name="MobileNetV2", weights="none", image_size=32),
    engine=imgindex.EngineConfig(precision="float32"),
    pca=imgindex.PcaConfig(dims=4),
    publish=imgindex.PublishConfig(min_recall=0.0, max_failure_rate=0.9),
)
GOOD = 12


class Build:
    """A folder of good and bad images, builds of it, and what they read."""

    def __init__(self, folder: Path, reads: list[str]) -> None:
        self.photos, self.output, self._reads = folder / "photos", folder / "index", reads
        self.config = replace(CONFIG, input=str(self.photos), output=str(self.output))

    def run(self, config: imgindex.Config | None = None, **options: Any) -> tuple[Outcome, list[str]]:
        """The outcome, and the uris of the files that were read."""
        self._reads.clear()
        outcome = refresh(config or self.config, **options)
        ledger = outcome.ledger
        assert ledger["listed"] == ledger["indexed"] + ledger["failed"]
        assert ledger["failed"] == sum(ledger["failed_by_reason"].values())
        return outcome, sorted(Path(path).relative_to(self.photos).as_posix() for path in self._reads)

    def remembered(self) -> dict[str, str]:
        """The reason of each remembered failure by its uri."""
        (store,) = (self.output / "store").iterdir()
        found = (
            one for name in known_failures.names(str(store)) for one in known_failures.read(str(store), name)
        )
        return {one.uri: one.failure.reason for one in found}

    def listed(self) -> dict[str, str]:
        """The reason of each failure of the live generation by its uri."""
        layout = Output(str(self.output))
        path = filesystem.join(
            layout.generation(str(current_name(layout))), "failures/failures-00000-of-00001.jsonl"
        )
        rows = map(json.loads, filesystem.read_bytes(path).splitlines())
        return {row["uri"]: f"{row['stage']}/{row['reason']}" for row in rows}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """An index of a folder in which some images are bad for good."""
    folder = tmp_path_factory.mktemp("base")
    photos = folder / "photos"
    photos.mkdir()
    for number in range(GOOD):
        (photos / f"{number:02}.png").write_bytes(image_bytes(number, (30 + number, 25)))
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_bytes(b"no image at all")
    (photos / "page-1.jpg").write_bytes(b"<html>404 Not Found</html>")
    (photos / "page-2.jpg").write_bytes(b"<html>404 Not Found</html>")
    (photos / "cut.jpg").write_bytes(image_bytes(99, (90, 90), "JPEG")[:900])
    (photos / "link.jpg").symlink_to("nowhere")
    first, _ = Build(folder, []).run()
    assert first.ledger["failed_by_reason"] == {
        "decode/empty": 1, "decode/not_an_image": 3, "decode/truncated": 1, "list/unreadable": 1,
    }  # fmt: skip
    return folder


BAD = {
    "empty.jpg": "empty", "text.jpg": "not_an_image", "page-1.jpg": "not_an_image",
    "page-2.jpg": "not_an_image", "cut.jpg": "truncated",
}  # fmt: skip


@pytest.fixture
def build(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    copy = tmp_path / "copy"
    relocate(base, copy)
    reads: list[str] = []
    read_regular = filesystem.read_regular

    def read(path: str, limit: int) -> bytes:
        reads.append(path)
        return read_regular(path, limit)

    monkeypatch.setattr(filesystem, "read_regular", read)
    return Build(copy, reads)


@pytest.mark.long
def test_where_the_same_files_fail_again_nothing_is_read_nor_published(build: Build) -> None:
    assert build.remembered() == BAD
    before = sorted(build.output.rglob("*"))
    outcome, read = build.run()
    assert not outcome.published
    assert read == []
    assert outcome.ledger["failed"] == len(BAD) + 1
    assert sorted(build.output.rglob("*")) == before


@pytest.mark.long
def test_one_bad_file_in_the_place_of_another_is_published(build: Build) -> None:
    (build.photos / "text.jpg").rename(build.photos / "other.jpg")
    outcome, read = build.run()
    assert (outcome.published, read) == (True, ["other.jpg"])
    expected = BAD | {"other.jpg": "not_an_image"}
    del expected["text.jpg"]
    assert build.listed() == {
        "link.jpg": "list/unreadable", **{uri: f"decode/{reason}" for uri, reason in expected.items()},
    }  # fmt: skip
    outcome, read = build.run()
    assert (outcome.published, read) == (False, [])


@pytest.mark.long
def test_bad_bytes_are_known_under_any_name_and_time(build: Build, image_bytes: Callable[..., bytes]) -> None:
    (build.photos / "text.jpg").rename(build.photos / "renamed.jpg")
    os.utime(build.photos / "cut.jpg", (1e9, 1e9))
    shutil.copyfile(build.photos / "page-1.jpg", build.photos / "page-3.jpg")
    (build.photos / "new.png").write_bytes(image_bytes(50, (77, 66)))
    outcome, read = build.run()
    # To be recognized, but the new image, which has a size of its own: it is read to be embedded.
    assert read == ["cut.jpg", "new.png", "page-3.jpg", "renamed.jpg"]
    assert outcome.published
    assert outcome.ledger["indexed"] == GOOD + 1
    named = {**BAD, "renamed.jpg": "not_an_image", "page-3.jpg": "not_an_image"}
    expected = {uri: f"decode/{reason}" for uri, reason in named.items() if uri != "text.jpg"}
    assert build.listed() == {**expected, "link.jpg": "list/unreadable"}
    outcome, read = build.run()
    assert (outcome.published, read) == (False, [])


@pytest.mark.long
def test_bytes_that_are_mended_are_indexed(build: Build, image_bytes: Callable[..., bytes]) -> None:
    (build.photos / "cut.jpg").write_bytes(image_bytes(99, (90, 90), "JPEG"))
    outcome, read = build.run()
    assert read == ["cut.jpg"]
    assert (outcome.ledger["indexed"], outcome.ledger["failed"]) == (GOOD + 1, len(BAD))


@pytest.mark.long
def test_what_fails_for_a_limit_is_tried_again(build: Build, image_bytes: Callable[..., bytes]) -> None:
    (build.photos / "wide.png").write_bytes(image_bytes(50, (200, 100)))
    (build.photos / "long.png").write_bytes(image_bytes(51) + bytes(90_000))
    limits = imgindex.ImagesConfig(max_pixels=10_000, max_bytes=80_000)
    outcome, _ = build.run(replace(build.config, images=limits))
    assert outcome.ledger["failed_by_reason"]["decode/too_many_pixels"] == 1
    assert outcome.ledger["failed_by_reason"]["read/too_many_bytes"] == 1
    assert build.remembered() == BAD
    outcome, read = build.run()
    assert read == ["long.png", "wide.png"]
    assert outcome.ledger["indexed"] == GOOD + 2


@pytest.mark.long
def test_cut_photos_are_taken_where_they_are_accepted(build: Build) -> None:
    (build.photos / "cut.png").write_bytes((build.photos / "00.png").read_bytes()[:-30])
    build.run()
    accepting = replace(build.config, images=imgindex.ImagesConfig(truncated="accept"))
    outcome, read = build.run(accepting)
    assert read == ["cut.jpg", "cut.png"]
    assert outcome.ledger["indexed"] == GOOD + 1
    assert build.listed()["cut.png"] == "decode/truncated"
    outcome, read = build.run(accepting)  # what is still no image is tried each time
    assert (outcome.published, read) == (False, ["cut.png"])
    outcome, read = build.run()  # the features of the other stay
    assert (outcome.ledger["indexed"], read) == (GOOD + 1, [])
    outcome, read = build.run(rehash=True)
    assert outcome.ledger["indexed"] == GOOD + 1
    (build.photos / "cut.jpg").write_bytes((build.photos / "cut.jpg").read_bytes()[:-9])
    outcome, read = build.run()
    assert (outcome.ledger["indexed"], read) == (GOOD, ["cut.jpg"])
    assert build.listed()["cut.jpg"] == "decode/truncated"


@pytest.mark.long
def test_what_is_beyond_a_limit_that_was_lowered_fails(
    build: Build, image_bytes: Callable[..., bytes]
) -> None:
    heavy, wide = build.photos / "heavy.png", build.photos / "wide.png"
    heavy.write_bytes(image_bytes(100) + bytes(20_000))
    wide.write_bytes(image_bytes(101, (70, 70)))
    (build.photos / "garbage.png").write_bytes(bytes(30_000))
    outcome, _ = build.run()
    assert outcome.ledger["indexed"] == GOOD + 2
    lower = replace(build.config, images=imgindex.ImagesConfig(max_bytes=19_000, max_pixels=4899))
    assert f"to embed     3; {GOOD} are in the store, {len(BAD)} failed before" in describe_build(lower)
    outcome, read = build.run(lower)
    assert outcome.ledger["indexed"] == GOOD
    assert read == ["wide.png"]
    expected = {
        "heavy": "read/too_many_bytes",
        "garbage": "read/too_many_bytes",
        "wide": "decode/too_many_pixels",
    }
    listed = build.listed()
    assert {uri: listed[f"{uri}.png"] for uri in expected} == expected
    outcome, read = build.run()  # the features are still there
    assert (outcome.ledger["indexed"], outcome.ledger["embedded"], read) == (GOOD + 2, 0, [])


@pytest.mark.long
def test_what_may_pass_is_tried_again(
    build: Build, image_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {
        "denied.png": PermissionError(13, "Permission denied"),
        "gone.png": FileNotFoundError(2, "No such file or directory"),
        "spoilt.png": OSError(5, "Input/output error"),
    }
    for number, name in enumerate(errors):
        (build.photos / name).write_bytes(image_bytes(50 + number, (77, 66 + number)))
    read_regular = filesystem.read_regular

    def refuse(path: str, limit: int) -> bytes:
        error = errors.get(Path(path).name)
        if error is not None:
            raise error
        return read_regular(path, limit)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_regular", refuse)
        outcome, _ = build.run()
    passing = {"read/permission_denied": 1, "read/vanished": 1, "read/unreadable": 1}
    assert passing.items() <= outcome.ledger["failed_by_reason"].items()
    assert build.remembered() == BAD
    outcome, again = build.run()
    assert again == sorted(errors)
    assert outcome.ledger["indexed"] == GOOD + 3


@pytest.mark.long
def test_what_the_machine_has_caused_is_told_apart_and_tried_again_with_a_bound(
    build: Build, image_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (build.photos / "new.png").write_bytes(image_bytes(50, (77, 66)))
    monkeypatch.setattr(known_failures, "MAX_TRIES", 2)
    decode = DecoderProcess.decode

    def stall(self: DecoderProcess, data: bytes, *arguments: Any) -> Any:
        if data == image_bytes(50, (77, 66)):
            raise DecodeError("stalled", "the machine is too busy")
        return decode(self, data, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DecoderProcess, "decode", stall)
        outcome, read = build.run()
        assert (outcome.published, set(read)) == (True, {"new.png"})
        assert outcome.ledger["failed_by_reason"]["decode/stalled"] == 1
        assert outcome.ledger["environmental"] == 1
        outcome, read = build.run()
        assert (outcome.published, set(read)) == (False, {"new.png"})
        outcome, read = build.run()
        assert (outcome.published, read, outcome.ledger["environmental"]) == (False, [], 1)
    assert main(["inspect", str(build.output)]) == 0
    assert "1 environmental, which 3 builds try" in capsys.readouterr().out


@pytest.mark.long
def test_retrying_what_still_fails_publishes_nothing(build: Build) -> None:
    before = sorted((build.output / "store").rglob("*"))
    outcome, read = build.run(retry_failed=True)
    assert not outcome.published
    # Those that share their size are read twice, to be compared and to be decoded.
    assert set(read) == set(BAD)
    assert build.remembered() == BAD
    assert sorted((build.output / "store").rglob("*")) == before


@pytest.mark.long
def test_what_is_good_now_is_indexed_when_it_is_retried(
    build: Build, image_bytes: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    # As if an older Pillow had not been able to decode it.
    path = build.photos / "new.png"
    path.write_bytes(image_bytes(50, (77, 66)))
    status = path.stat()
    (store,) = (build.output / "store").iterdir()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known_failures.write(str(store), [known("new.png", status.st_size, local_version(status), digest)])
    outcome, read = build.run()
    assert (outcome.ledger["failed_by_reason"]["decode/truncated"], read) == (2, [])
    arguments = ["--input", str(build.photos), "--output", str(build.output), "--retry_failed"]
    settings = build.output.parent / "config.yaml"
    settings.write_text(
        "{backbone: {name: MobileNetV2, weights: none, image_size: 32}, engine: {precision: float32}, "
        "pca: {dims: 4}, publish: {min_recall: 0, max_failure_rate: 0.9}}"
    )
    assert main(["build", *arguments, "--config", str(settings), "--dry_run"]) == 0
    assert f"to embed     {len(BAD) + 1}; {GOOD} are in the store, 0 failed before" in capsys.readouterr().out
    assert main(["build", *arguments, "--config", str(settings)]) == 0
    assert "1 added" in capsys.readouterr().out
    assert "new.png" not in build.listed()
    # From now on its feature counts, and not what is remembered of it.
    outcome, read = build.run()
    assert (outcome.published, read, outcome.ledger["indexed"]) == (False, [], GOOD + 1)


@pytest.mark.long
def test_a_build_that_ends_early_has_remembered(build: Build) -> None:
    shutil.rmtree(build.output)
    strict = replace(build.config, publish=replace(CONFIG.publish, max_failure_rate=0.1))
    with pytest.raises(PublishRefusedError):
        build.run(strict)
    assert build.remembered() == BAD
    outcome, read = build.run()
    assert (outcome.published, read) == (True, [])
    assert outcome.ledger["reused"] == GOOD


@pytest.mark.long
def test_a_storage_that_is_gone_ends_the_build_and_keeps_what_is_embedded(
    build: Build, image_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for number in range(60):
        (build.photos / f"more-{number}.png").write_bytes(image_bytes(100 + number, (40 + number, 33)))
    before = current_name(Output(str(build.output)))
    with monkeypatch.context() as patch:

        def refuse(path: str, limit: int) -> bytes:
            raise OSError(107, "Transport endpoint is not connected")

        patch.setattr(filesystem, "read_regular", refuse)
        arguments = ["build", "--input", str(build.photos), "--output", str(build.output)]
        backbone = ["backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32"]
        settings = [*backbone, "engine.precision=float32", "pca.dims=4"]
        code = main([*arguments, *(word for setting in settings for word in ("--set", setting))])
    assert code == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert "32 reads in a row have failed" in message
    assert str(build.photos) in message
    assert "Transport endpoint is not connected" in message
    assert current_name(Output(str(build.output))) == before
    assert build.remembered() == BAD
    outcome, read = build.run()
    assert outcome.ledger["indexed"] == GOOD + 60
    assert set(read) == {f"more-{number}.png" for number in range(60)}


@pytest.mark.long
def test_failures_are_counted_by_reason_for_beam(build: Build) -> None:
    def counters(**options: Any) -> dict[str, int]:
        (store,) = (build.output / "store").iterdir()
        pipeline = BeamTestPipeline(runner=FnApiRunner())
        listed = pipeline | imgindex.ListImages(str(build.photos))
        _ = listed.files | imgindex.DiffAgainstStore(str(store), **options)
        result = pipeline.run()
        result.wait_until_finish()
        found = result.metrics().query(MetricsFilter().with_namespace("imgindex"))["counters"]
        return {counter.key.metric.name: counter.committed for counter in found}

    assert counters() == {
        "failed_unreadable": 1, "failed_empty": 1, "failed_not_an_image": 3, "failed_truncated": 1,
    }  # fmt: skip
    assert counters(retry_failed=True) == {"failed_unreadable": 1}
