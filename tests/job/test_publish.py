"""Publishing: what a generation consists of, and the checks without which none goes live."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from imgindex.config import Config, IndexConfig, PublishConfig
from imgindex.errors import (
    DamagedError,
    ImgindexError,
    InputError,
    OutputError,
    PublishRefusedError,
    SupersededError,
)
from imgindex.features.known_failures import fingerprint
from imgindex.generations import layout, manifest
from imgindex.generations.counters import Counters
from imgindex.generations.failure_lists import FailureList, list_of, write_list
from imgindex.generations.layout import (
    Output,
    current_name,
    delete_unfinished,
    generation_names,
    mark_detached,
    new_name,
    publish,
    read_manifest,
    tell_alive,
)
from imgindex.indexing.shard_backend import SEARCHES
from imgindex.indexing.shards import ShardSummary, write_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.io import filesystem, written_files
from imgindex.io.digest_json import seal
from imgindex.io.output_lock import writer_lock
from imgindex.job.checks import CHECKS
from imgindex.job.description import WrittenBasis
from imgindex.job.plan import Plan, Previous
from imgindex.job.publish import digest_of_failures, finish, nothing_changed, outcome
from imgindex.models.drift import Verdict
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.spec import Spec
from imgindex.records import Failure, WrittenFile

SPEC = Spec("ResNet50", "ab" * 32, (224, 224), "avg", "preprocess", "decode", "cd" * 32)
INDEX = IndexConfig(trees=5)
ODD = "x/\"quoted\" 'é' 猫\n\t\\ \u2028 <b>.jpg"


def previous_of(root: str, name: str, **changes: Any) -> Previous:
    """The live generation, of 100 images, in the eyes of the next build."""
    metadata = (WrittenFile(Output(root).generation(name) + "/metadata/m", 1, X),)
    return replace(
        Previous(name, 100, digest_of_failures(Counters()), metadata, False, None, name, 100), **changes
    )


def plan_of(root: str, previous: str | None = None, force: Collection[str] = (), **limits: float) -> Plan:
    return Plan(
        config=Config(input="/photos", index=INDEX, publish=PublishConfig(**limits)),
        input="/photos",
        output=Output(root),
        generation=new_name(SPEC.digest),
        previous=previous_of(root, previous) if previous else None,
        spec=SPEC,
        feature_dim=2048,
        engine=EngineChoice("ResNet50", "imagenet", "avg", None, "openvino", "bfloat16", 16, 0.9997),
        threads=2,
        started=99.5,
        prepared=100.0,
        force=force,
    )


def shards_of(items: int, *recalls: float) -> list[ShardSummary]:
    """One shard that exists in words alone."""
    recalls = recalls or (1.0,)
    recalls += recalls[-1:] * (len(SEARCHES) - len(recalls))
    file = WrittenFile("index/index-00000-of-00001.ann", 1, X)
    metadata = replace(file, path="metadata/m")
    summary = ShardSummary(
        file, metadata, items, {"trees": 5}, recalls, 103.0, distinct=items, queries=min(items, 7)
    )
    return [summary] if items else []


FITTED = Verdict(True, "there was no basis for this recipe")
X = hashlib.sha256(b"x").hexdigest()
BASIS = WrittenBasis(WrittenFile("pca/basis.npz", 1, X), 2048, 150, 0.9, 102.0)


def failures_of(count: int) -> list[Failure]:
    reasons = ["truncated", "empty"]
    return [Failure(f"{i}.jpg", "decode", reasons[i % 2], "it is damaged") for i in range(count)]


def lists_of(plan: Plan, failures: list[Failure], count: int = 1) -> list[FailureList]:
    """Writes so many lists, the last first."""
    return [
        write_list(plan.directory, number, count, [one for one in failures if list_of(one, count) == number])
        for number in reversed(range(count))
    ]


def run(plan: Plan, listed: int, failed: int, shards: list[ShardSummary]) -> dict[str, Any]:
    """Finishes a build, whose files hold nothing, and returns its outcome."""
    for file in [BASIS.file, *(file for shard in shards for file in (shard.index, shard.metadata))]:
        filesystem.write_bytes(filesystem.join(plan.directory, file.path), b"x" * file.size)
    counts = {"listed": listed, "failed": failed, "embedded": listed - failed, "added": listed - failed}
    counters = Counters(counts, (100.5, 101.5), 0.75)
    lists = lists_of(plan, failures_of(failed))
    finish(plan, counters, lists, [BASIS] if shards else [], [FITTED], shards)
    return outcome(plan).manifest


def publish_before(root: str, items: int) -> str:
    """Publishes a generation of `items` images and returns its name."""
    manifest = run(plan_of(root), items, 0, shards_of(items))
    assert current_name(Output(root)) == manifest["generation"]
    return manifest["generation"]


def test_paths_are_those_of_the_layout() -> None:
    output = Output("/out")
    name = new_name("digest")
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", name)
    assert new_name("digest") != new_name("another digest")
    assert output.current == "/out/CURRENT"
    assert output.store("0123") == "/out/store/0123"
    assert output.generation(name) == f"/out/generations/{name}"
    assert output.manifest(name) == f"/out/generations/{name}/manifest.json"
    assert Output("mem://bucket/out/").current == "mem://bucket/out/CURRENT"


def test_nothing_is_published_yet(place: str) -> None:
    assert current_name(Output(place)) is None
    with pytest.raises(OutputError, match=f"{place} holds no index; `imgindex build` writes one"):
        read_manifest(Output(place))


@pytest.fixture
def published(place: str) -> tuple[Plan, dict[str, Any]]:
    """A generation with two real shards, a basis and failures."""
    plan = plan_of(place)
    generator = np.random.default_rng(0)
    shards = []
    for shard in (1, 0):
        uris = [f"{shard}/{number}.jpg" for number in range(20)]
        columns = {name: pa.array(range(20)) for name in ("size", "width", "height")}
        images = pa.table({"uri": uris, "sha256": ["00" * 32] * 20, **columns})
        vectors = generator.standard_normal((20, 4)).astype(np.float32)
        shards.append(write_shard(plan.directory, shard, 2, [VectorRows(images, vectors)], INDEX))
    with filesystem.staged(filesystem.join(plan.directory, "pca/basis.npz")) as partial:
        partial.write_bytes(b"a basis")
        file = written_files.describe(partial, "pca/basis.npz")
    basis = WrittenBasis(file, 2048, 4, 0.75, 102.0, cut=3, scale_ratio=7.5)
    failures = [Failure("z.jpg", "read", "vanished", "gone"), Failure(ODD, "decode", "empty", ODD, X)]
    parts = [
        Counters({"listed": 42, "failed": 2}),
        Counters({"embedded": 29}, (101.0, 102.0), 0.5),
        Counters({"reused": 10}),
        Counters({"copied": 1}),
        Counters({"added": 40}),
    ]
    finish(plan, sum(parts, Counters()), lists_of(plan, failures), [basis], [FITTED], shards)
    return plan, outcome(plan).manifest


def test_current_names_the_generation_and_the_manifest_tells_its_facts(
    published: tuple[Plan, dict[str, Any]],
) -> None:
    plan, manifest = published
    assert filesystem.read_bytes(plan.output.current) == f"{plan.generation}\n".encode()
    assert current_name(plan.output) == plan.generation
    assert read_manifest(plan.output) == read_manifest(plan.output, plan.generation)
    assert read_manifest(plan.output).content == manifest
    assert manifest["ledger"] == {
        "listed": 42,
        "indexed": 40,
        "failed": 2,
        "failed_by_reason": {"decode/empty": 1, "read/vanished": 1},
        "added": 40,
        "changed": 0,
        "removed": 0,
        "unchanged": 0,
        "embedded": 29,
        "copied": 1,
        "reused": 10,
        "damaged_chunks": 0,
        "environmental": 0,
        "skipped": {},
    }
    assert manifest["pca"] == {
        "refit": True,
        "why": "there was no basis for this recipe",
        "new_images": 0,
        "unexplained": None,
        "tolerated": None,
        "fitted_in": plan.generation,
        "fitted_images": 40,
        "cut": 3,
        "scale_ratio": 7.5,
    }
    assert [shard["trees"] for shard in manifest["shards"]] == [5, 5]
    assert manifest["spec"] | {"image_size": (224, 224)} == {"digest": SPEC.digest, **SPEC.content}
    assert manifest["engine"] == {
        "name": "openvino",
        "precision": "bfloat16",
        "batch_size": 16,
        "cosine_with_float32": 0.9997,
    }
    assert manifest["config"]["index"]["trees"] == 5
    assert (manifest["feature_dim"], manifest["dims"], manifest["metric"]) == (2048, 4, "angular")
    assert (manifest["previous"], manifest["input_root"]) == (None, "/photos")
    assert [(shard["index"][-18:], shard["items"]) for shard in manifest["shards"]] == [
        ("00000-of-00002.ann", 20),
        ("00001-of-00002.ann", 20),
    ]
    assert {"python", "annoy", "keras", "numpy", "tensorflow"} <= set(manifest["libraries"])
    assert manifest["timings"].items() >= {"list": 1.0, "embed": 1.0, "engine": 0.5, "pca": 0.0}.items()


def test_the_manifest_lists_every_file_with_its_size_and_sha256(
    published: tuple[Plan, dict[str, Any]], memory: dict[str, Any]
) -> None:
    plan, manifest = published
    listed = {file["path"]: (file["size"], file["sha256"]) for file in manifest["files"]}
    assert list(listed) == sorted(listed)
    for path, described in listed.items():
        data = filesystem.read_bytes(filesystem.join(plan.directory, path))
        assert described == (len(data), hashlib.sha256(data).hexdigest())
    if filesystem.is_local(plan.directory):
        there = {
            path.relative_to(plan.directory).as_posix()
            for path in Path(plan.directory).rglob("*")
            if path.is_file()
        }
    else:
        there = {
            path.removeprefix(f"{plan.directory}/") for path in memory if path.startswith(plan.directory)
        }
    assert there == {"manifest.json", *listed}
    named = {shard[kind] for shard in manifest["shards"] for kind in ("index", "metadata")}
    assert named | {manifest["basis"], *manifest["failures"]} == set(listed)


def test_failures_are_lines_of_json_in_the_order_of_their_uris(
    published: tuple[Plan, dict[str, Any]],
) -> None:
    plan, manifest = published
    assert manifest["failures"] == ["failures/failures-00000-of-00001.jsonl"]
    lines = filesystem.read_bytes(filesystem.join(plan.directory, *manifest["failures"])).decode().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [
        {"uri": ODD, "stage": "decode", "reason": "empty", "message": ODD, "sha256": X},
        {"uri": "z.jpg", "stage": "read", "reason": "vanished", "message": "gone", "sha256": None},
    ]


def test_a_manifest_names_every_list_of_failures_and_messages_their_folder(place: str) -> None:
    failures = failures_of(30)
    plan = plan_of(place, max_failure_rate=0.5)
    counters = Counters({"listed": 100, "failed": 30, "embedded": 70, "added": 70}, (100.5, 101.5))
    for each in (plan, strict := plan_of(place, max_failure_rate=0.1)):
        filesystem.write_bytes(filesystem.join(each.directory, BASIS.file.path), b"x")
        finish(each, counters, lists_of(each, failures, 3), [BASIS], [FITTED], shards_of(70))
    manifest = outcome(plan).manifest
    assert manifest["failures"] == [f"failures/failures-0000{number}-of-00003.jsonl" for number in range(3)]
    assert manifest["ledger"]["failed_by_reason"] == {"decode/empty": 15, "decode/truncated": 15}
    lists = [filesystem.read_bytes(filesystem.join(plan.directory, path)) for path in manifest["failures"]]
    lines = b"".join(lists).splitlines()
    assert sorted(json.loads(line)["uri"] for line in lines) == sorted(one.uri for one in failures)
    with pytest.raises(PublishRefusedError, match=f"those in {strict.directory}/failures, or go on with"):
        outcome(strict)


@pytest.mark.parametrize(
    ("recalls", "search_k", "recall"),
    [((0.96,), 100, 0.96), ((0.5, 0.94, 0.951), 400, 0.951), ((0.91, 0.92), 200, 0.92)],
)
def test_search_k_is_the_least_that_reaches_the_target(
    recalls: tuple[float, ...], search_k: int, recall: float, tmp_path: Path
) -> None:
    manifest = run(plan_of(str(tmp_path)), 10, 0, shards_of(10, *recalls))
    assert manifest["search_k"] == search_k
    assert manifest["recall"] == {"k": 10, "recall": pytest.approx(recall), "queries": 7, "distinct": 10}


def test_recall_is_weighted_by_the_distinct_images_of_shards(tmp_path: Path) -> None:
    (other,) = shards_of(10, 0.9)
    other = replace(
        other,
        items=5010,  # nearly all of them copies
        index=replace(other.index, path="index/other.ann"),
        metadata=replace(other.metadata, path="metadata/other.parquet"),
    )
    shards = [*shards_of(30, 1.0), other]
    manifest = run(plan_of(str(tmp_path)), 5040, 0, shards)
    assert manifest["recall"]["recall"] == pytest.approx(0.975)
    assert (manifest["recall"]["queries"], manifest["recall"]["distinct"]) == (14, 40)


REFUSALS = {
    "ledger": (
        {}, 100, 2, 97, (1.0,), PublishRefusedError,
        "check ledger: 100 listed, but 97 indexed and 2 failed",
    ),
    "max_failure_rate": (
        {"max_failure_rate": 0.1}, 100, 11, 89, (1.0,), PublishRefusedError,
        r"check max_failure_rate: 11 of 100 images failed \(decode/empty 5, decode/truncated 6\), "
        r"more than publish\.max_failure_rate=0\.1",
    ),
    "max_shrink": (
        {"max_shrink": 0.2}, 79, 0, 79, (1.0,), PublishRefusedError,
        r"check max_shrink: 79 images where the live generation has 100, .*publish\.max_shrink=0\.2",
    ),
    "min_recall": (
        {"min_recall": 0.9}, 100, 0, 100, (0.899,), PublishRefusedError,
        r"check min_recall: recall@10 is 0\.899, less than publish\.min_recall=0\.9",
    ),
    "nothing indexed": (
        {"max_failure_rate": 1.0, "max_shrink": 1.0, "min_recall": 0.0}, 3, 3, 0, (), InputError,
        r"none of the 3 images in /photos could be indexed \(decode/empty 1, decode/truncated 2\); see ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("check", REFUSALS)
def test_a_check_that_refuses_leaves_what_is_live(check: str, place: str) -> None:
    limits, listed, failed, indexed, recalls, kind, message = REFUSALS[check]
    before = publish_before(place, 100)
    plan = plan_of(place, before, **limits)
    with pytest.raises(ImgindexError, match=message) as caught:
        run(plan, listed, failed, shards_of(indexed, *recalls))
    assert type(caught.value) is kind
    assert caught.value.exit_code == (3 if kind is InputError else 4)
    assert "\n" not in str(caught.value)
    assert current_name(plan.output) == before
    assert read_manifest(plan.output).ledger.indexed == 100
    assert not filesystem.exists(plan.output.manifest(plan.generation))
    # The failures stay, for they are what is to be mended; what nobody can use does not.
    listed_failures = filesystem.join(plan.directory, "failures/failures-00000-of-00001.jsonl")
    assert filesystem.read_bytes(listed_failures).count(b"\n") == failed
    assert failed == 0 or check == "ledger" or listed_failures in str(caught.value)
    assert not filesystem.exists(filesystem.join(plan.directory, "pca/basis.npz"))


@pytest.mark.parametrize("check", [name for name in REFUSALS if name != "nothing indexed"])
def test_a_forced_check_does_not_refuse(check: str, tmp_path: Path) -> None:
    limits, listed, failed, indexed, recalls, _, _ = REFUSALS[check]
    before = publish_before(str(tmp_path), 100)
    others = [name for name in CHECKS if name != check]
    with pytest.raises(PublishRefusedError, match=f"check {check}"):
        run(plan_of(str(tmp_path), before, others, **limits), listed, failed, shards_of(indexed, *recalls))
    plan = plan_of(str(tmp_path), before, [check], **limits)
    manifest = run(plan, listed, failed, shards_of(indexed, *recalls))
    assert current_name(plan.output) == plan.generation
    assert manifest["forced"] == [check]


@pytest.mark.parametrize("change", ["gone", "altered"])
@pytest.mark.parametrize("which", ["basis", "failures"])
def test_a_generation_that_lost_a_file_is_not_published(
    which: str, change: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = publish_before(place, 100)
    plan = plan_of(place, before)
    path = {"basis": "pca/basis.npz", "failures": "failures/failures-00000-of-00001.jsonl"}[which]
    read_bytes = filesystem.read_bytes

    def read(of: str) -> bytes:
        if of != filesystem.join(plan.directory, path):
            return read_bytes(of)
        if change == "gone":
            raise FileNotFoundError(2, "No such file or directory")
        return b"y"

    monkeypatch.setattr(filesystem, "read_bytes", read)
    what = "cannot be read: No such file" if change == "gone" else "has other bytes than were written"
    with pytest.raises(
        PublishRefusedError, match=rf"check files: {plan.directory}/{path} {what}.*\(1 in all\); build again"
    ):
        run(plan, 100, 0, shards_of(100))
    assert current_name(plan.output) == before


def test_a_shard_that_was_found_wrong_is_not_published(tmp_path: Path) -> None:
    (shard,) = shards_of(100)
    plan = plan_of(str(tmp_path))
    with pytest.raises(PublishRefusedError, match="check files: it gives no neighbors"):
        run(plan, 100, 0, [replace(shard, problems=("it gives no neighbors",))])
    assert current_name(plan.output) is None


@pytest.mark.parametrize(
    ("changes", "counts", "unchanged"),
    [
        ({}, {"unchanged": 100, "reused": 100}, True),
        ({}, {"unchanged": 100, "copied": 3, "reused": 97}, True),  # touched
        ({"same_recipe": False}, {"unchanged": 100}, False),
        ({}, {"unchanged": 100, "added": 1}, False),
        ({}, {"unchanged": 99, "changed": 1}, False),
        ({}, {"unchanged": 100, "removed": 1}, False),
    ],
)
def test_nothing_is_published_where_nothing_changed(
    changes: dict[str, Any], counts: dict[str, int], unchanged: bool, tmp_path: Path
) -> None:
    before = publish_before(str(tmp_path), 100)
    plan = plan_of(str(tmp_path), before)
    plan = replace(plan, previous=previous_of(str(tmp_path), before, **{"same_recipe": True, **changes}))
    counters = Counters({"listed": counts["unchanged"], **counts})
    assert nothing_changed(plan, counters) == unchanged
    if unchanged:
        finish(plan, counters, [], [], [], [])
        found = outcome(plan)
        assert (found.published, found.manifest["generation"]) == (False, before)
        assert found.ledger["unchanged"] == 100
        assert not Path(plan.directory).exists()
        assert current_name(plan.output) == before


BAD = Failure("a.jpg", "decode", "truncated", "after 7 bytes", "aa")


@pytest.mark.parametrize(
    ("before", "now", "unchanged"),
    [
        ([], [], True),
        ([BAD, replace(BAD, uri="b.jpg")], [replace(BAD, uri="b.jpg"), BAD], True),
        ([BAD], [replace(BAD, message="after 8 bytes")], True),
        ([], [BAD], False),
        ([BAD], [], False),
        ([BAD], [replace(BAD, uri="b.jpg")], False),
        ([BAD], [replace(BAD, stage="read")], False),
        ([BAD], [replace(BAD, reason="undecodable")], False),
        ([BAD], [replace(BAD, sha256="bb")], False),
        ([BAD], [replace(BAD, sha256=None)], False),
        ([BAD], [BAD, BAD], False),
    ],
)
def test_other_failures_are_a_change(
    before: list[Failure], now: list[Failure], unchanged: bool, tmp_path: Path
) -> None:
    def counters_of(failures: list[Failure]) -> Counters:
        counters = (Counters({"failed": 1}, failures=fingerprint(failure)) for failure in failures)
        return sum(counters, Counters({"unchanged": 100}))

    listed = digest_of_failures(counters_of(before))
    previous = previous_of(str(tmp_path), new_name(SPEC.digest), same_recipe=True, failures=listed)
    assert nothing_changed(replace(plan_of(str(tmp_path)), previous=previous), counters_of(now)) == unchanged


@pytest.mark.parametrize(
    ("limits", "listed", "failed"),
    [
        # At the limit, and not past it, where 0.29 * 100 < 29 and (1 - 0.7) * 100 > 30 in floating point.
        ({"max_failure_rate": 0.29}, 100, 29),
        ({"max_failure_rate": 0.0}, 100, 0),
        ({"max_shrink": 0.7}, 30, 0),
        ({"max_shrink": 1.0}, 1, 0),
        ({"max_shrink": 0.0}, 100, 0),
        ({"min_recall": 1.0}, 100, 0),
    ],
)
def test_a_limit_that_is_just_kept_publishes(
    limits: dict[str, float], listed: int, failed: int, tmp_path: Path
) -> None:
    before = publish_before(str(tmp_path), 100)
    plan = plan_of(str(tmp_path), before, **limits)
    manifest = run(plan, listed, failed, shards_of(listed - failed))
    assert manifest["previous"] == before
    assert current_name(plan.output) == plan.generation
    assert filesystem.exists(plan.output.manifest(before))


def test_no_generation_is_published_that_no_reader_accepts(place: str) -> None:
    before = publish_before(place, 100)
    plan = plan_of(place, before)
    for file in (BASIS.file, *(file for shard in shards_of(100) for file in (shard.index, shard.metadata))):
        filesystem.write_bytes(filesystem.join(plan.directory, file.path), b"x")
    # As where a uri is in the index twice.
    counters = Counters({"listed": 100, "embedded": 100, "removed": -1}, (100.5, 101.5))
    finish(plan, counters, lists_of(plan, []), [BASIS], [FITTED], shards_of(100))
    message = (
        r"no reader would accept the manifest .*: ledger\.removed is -1; this is a bug, please report it"
    )
    with pytest.raises(PublishRefusedError, match=message) as caught:
        outcome(plan)
    assert caught.value.exit_code == 4
    assert current_name(plan.output) == before
    assert generation_names(plan.output) == [before]


def test_a_manifest_that_is_longer_than_is_read_is_not_published(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = publish_before(place, 100)
    monkeypatch.setattr(manifest, "MAX_BYTES", 1000)
    with pytest.raises(PublishRefusedError, match=r"more than the 1000 that are read"):
        run(plan_of(place, before), 100, 0, shards_of(100))
    assert current_name(Output(place)) == before


def test_a_manifest_that_the_storage_gives_back_otherwise_is_not_published(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = publish_before(place, 100)
    read_written = filesystem.read_written

    def read(path: str, limit: int) -> bytes:
        data = read_written(path, limit)
        return data if before in path or path.endswith("CURRENT") else data[:-9]

    plan = plan_of(place, before)
    monkeypatch.setattr(filesystem, "read_written", read)
    with pytest.raises(DamagedError, match="cannot be used"):
        run(plan, 100, 0, shards_of(100))
    assert current_name(plan.output) == before
    assert generation_names(plan.output) == [before]


def test_current_is_replaced_after_the_manifest(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = publish_before(place, 100)
    written = []
    write_bytes = filesystem.write_bytes

    def record(path: str, data: bytes, version: str | None = None) -> None:
        if path not in written:
            written.append(path)
        if path.endswith("CURRENT"):
            raise OutputError("the disk is full")
        write_bytes(path, data)

    monkeypatch.setattr(filesystem, "write_bytes", record)
    monkeypatch.setattr(filesystem, "replace_version", record)
    name = new_name("next")
    with pytest.raises(OutputError, match="full"):
        publish(Output(place), replace(read_manifest(Output(place)), generation=name))
    assert written == [Output(place).manifest(name), Output(place).current]
    assert current_name(Output(place)) == before


def whole(plan: Plan) -> bool:
    """Whether the live generation is that of `plan` and lacks no file."""
    manifest = read_manifest(plan.output)
    files = [filesystem.join(plan.directory, file.path) for file in manifest.files]
    return manifest.generation == plan.generation and all(filesystem.exists(file) for file in files)


class TestASupersededBuild:
    """It ends without publishing, and what is live stays so and whole."""

    def refused(self, plan: Plan, match: str) -> None:
        with pytest.raises(SupersededError, match=match) as caught:
            run(plan, 100, 0, shards_of(100))
        assert caught.value.exit_code == 3
        assert not filesystem.exists(plan.output.manifest(plan.generation))

    def test_when_another_has_published(self, place: str) -> None:
        before = publish_before(place, 100)
        late = plan_of(place, before)
        first = plan_of(place, before)
        run(first, 100, 0, shards_of(100))
        self.refused(late, rf"{first.generation} is live in {place} where {before} was")
        assert whole(first)

    def test_when_another_has_published_the_first_generation(self, place: str) -> None:
        late = plan_of(place)
        first = plan_of(place)
        run(first, 100, 0, shards_of(100))
        self.refused(late, rf"{first.generation} is live in {place} where nothing was")
        assert whole(first)

    def test_when_another_has_taken_the_output_over(self, place: str) -> None:
        with writer_lock(place) as claim:
            late = replace(plan_of(place), claim=claim)
            holder = {"owner": "other", "host": "there", "pid": 7, "since": 1e9, "renewed": 1e9}
            filesystem.write_bytes(f"{place}/.lock", json.dumps(holder).encode())
            self.refused(late, "process 7 on there took over")
        assert current_name(Output(place)) is None

    def test_when_another_publishes_while_the_manifest_is_written(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late, first = plan_of(place), plan_of(place)
        write_bytes = filesystem.write_bytes

        def meanwhile(path: str, data: bytes) -> None:
            write_bytes(path, data)
            if path == late.output.manifest(late.generation):
                run(first, 100, 0, shards_of(100))

        monkeypatch.setattr(filesystem, "write_bytes", meanwhile)
        self.refused(late, f"{first.generation} is live")
        assert whole(first)

    def test_when_another_publishes_after_the_last_look(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late, first = plan_of(place), plan_of(place)
        replace_version = filesystem.replace_version

        def meanwhile(path: str, data: bytes, version: str | None) -> str | None:
            if data.startswith(late.generation.encode()):
                run(first, 100, 0, shards_of(100))
            return replace_version(path, data, version)

        monkeypatch.setattr(filesystem, "replace_version", meanwhile)
        monkeypatch.setattr(
            "imgindex.runtime.signals.switching", contextlib.nullcontext
        )  # of another process
        self.refused(late, "in the same moment")
        assert whole(first)

    def test_when_its_last_step_is_tried_again_after_another_has_published(self, place: str) -> None:
        plan = plan_of(place)
        manifest = run(plan, 100, 0, shards_of(100))
        assert (
            run(plan, 100, 0, shards_of(100)) == manifest
        )  # as a runner may, when it has not heard of the first
        later = plan_of(place, plan.generation)
        run(later, 100, 0, shards_of(100))
        with pytest.raises(SupersededError):
            run(plan, 100, 0, shards_of(100))
        assert whole(later)
        assert read_manifest(plan.output, plan.generation).content == manifest

    def test_when_an_attempt_that_did_not_get_to_make_it_live_is_tried_again(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its manifest would make a generation complete that was never live, to which a rollback may lead."""
        late, first = plan_of(place), plan_of(place)
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "replace_version", unwritable)
            with pytest.raises(OutputError, match="cannot write CURRENT"):
                run(late, 100, 0, shards_of(100))
        run(first, 100, 0, shards_of(100))
        self.refused(late, f"{first.generation} is live")
        assert generation_names(late.output) == [first.generation]
        assert whole(first)

    def test_when_only_the_answer_was_lost_and_another_has_followed(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then it was live, and stays a generation: a later one names it as the one before."""
        plan = plan_of(place)
        replace_version, later = filesystem.replace_version, []

        def lose_the_answer(path: str, data: bytes, version: str | None) -> str | None:
            if later or path != plan.output.current:
                return replace_version(path, data, version)
            later.append(None)
            assert replace_version(path, data, version)
            later[0] = plan_of(place, plan.generation)
            run(later[0], 100, 0, shards_of(100))
            return replace_version(path, data, version)  # what is tried again

        monkeypatch.setattr(filesystem, "replace_version", lose_the_answer)
        monkeypatch.setattr(
            "imgindex.runtime.signals.switching", contextlib.nullcontext
        )  # of another process
        with pytest.raises(SupersededError, match="in the same moment"):
            run(plan, 100, 0, shards_of(100))
        assert generation_names(plan.output) == sorted([plan.generation, later[0].generation])
        assert whole(later[0])

    def test_when_the_answer_was_lost_and_nobody_has_followed(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = plan_of(place)
        replace_version = filesystem.replace_version

        def lose_every_answer(path: str, data: bytes, version: str | None) -> str | None:
            replace_version(path, data, version)
            unwritable()

        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "replace_version", lose_every_answer)
            with pytest.raises(OutputError):
                run(plan, 100, 0, shards_of(100))
        run(plan, 100, 0, shards_of(100))
        assert current_name(plan.output) == plan.generation


def unwritable(*_: object) -> None:
    raise OutputError("cannot write CURRENT: Input/output error")


class TestUnfinishedGenerations:
    """What a build deletes of those before it."""

    def unfinished(self, place: str, name: str) -> str:
        path = f"{Output(place).generation(name)}/index/index-00000-of-00001.ann"
        filesystem.write_bytes(path, b"half")
        return path

    def test_on_a_local_filesystem_builds_die_with_their_lock(self, tmp_path: Path) -> None:
        path = self.unfinished(str(tmp_path), new_name("x"))
        delete_unfinished(Output(str(tmp_path)), time.time())
        assert not Path(path).exists()

    @pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
    def test_jobs_may_outlive_it(self, hours: float, stays: bool, tmp_path: Path) -> None:
        name = new_name("x")
        path = self.unfinished(str(tmp_path), name)
        mark_detached(Output(str(tmp_path)), name)
        delete_unfinished(Output(str(tmp_path)), time.time() + hours * 3600)
        assert Path(path).exists() == stays

    def test_a_job_that_writes_to_the_store_alone_for_days_says_that_it_goes_on(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, clock = new_name("x"), [0.0]
        output = Output(place)
        mark_detached(output, name)
        path = self.unfinished(place, name)
        monkeypatch.setattr(layout.time, "monotonic", lambda: clock[0])
        writes = []
        mark = layout.mark_detached
        monkeypatch.setattr(layout, "mark_detached", lambda *given: (writes.append(clock[0]), mark(*given)))
        for minute in range(0, 3 * 24 * 60, 10):
            clock[0] = minute * 60.0
            tell_alive(output, name)
        assert len(writes) == 17  # every four hours
        delete_unfinished(output, filesystem.modified(f"{output.generation(name)}/detached/job") + 23 * 3600)
        assert filesystem.exists(path)

    def test_that_a_job_cannot_say_so_does_not_end_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(layout, "_TELLING_SECONDS", 0.0)
        (tmp_path / "generations").write_bytes(b"")
        tell_alive(Output(str(tmp_path)), new_name("x"))
        assert "could not say that the job" in caplog.text

    @pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
    def test_on_an_object_store_requests_may_arrive_late(
        self, hours: float, stays: bool, memory: dict[str, tuple[bytes, float]]
    ) -> None:
        path = self.unfinished("mem://bucket/out", new_name("x"))
        delete_unfinished(Output("mem://bucket/out"), memory[path][1] + hours * 3600)
        assert (path in memory) == stays


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"../../etc",
        b"20250101T000000Z-0123456",
        b"20250101T000000Z-01234567/..",
        b"x" * 10_000,
    ],
)
def test_a_damaged_current(content: bytes, place: str) -> None:
    publish_before(place, 10)
    filesystem.write_bytes(Output(place).current, content)
    for read in (current_name, read_manifest):
        with pytest.raises(OutputError, match=rf"{Output(place).current} is damaged") as caught:
            read(Output(place))
        assert len(str(caught.value)) < 400


def test_a_current_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").mkdir()
    with pytest.raises(OutputError, match=rf"cannot read {tmp_path}/CURRENT"):
        current_name(Output(str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be used: Expecting value"),
        (b'{"schema_version": 1', "cannot be used: Expecting ','"),
        (b"\xff\xff", "cannot be used: 'utf-8' codec"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "it is no JSON object"),
        (b'{"schema_version": 1}', "do not match its digest"),
        (seal({"schema_version": 2}), "it has schema 2, of another imgindex"),
        (seal({"schema_version": 1}), "it has no generation"),
        (None, "is not there"),
    ],
)
def test_a_damaged_manifest(content: bytes | None, message: str, place: str) -> None:
    name = publish_before(place, 10)
    path = Output(place).manifest(name)
    filesystem.delete(path) if content is None else filesystem.write_bytes(path, content)
    with pytest.raises(DamagedError, match=message) as caught:
        read_manifest(Output(place))
    assert path in str(caught.value)
