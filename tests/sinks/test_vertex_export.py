"""The export `vertex`: what Vertex AI Vector Search documents, whole or as what changes an earlier one."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
from vector_outputs import publish_vectors

import imgindex
from imgindex.cli import main
from imgindex.errors import OutputError, RecipeChangedError, UsageError
from imgindex.sinks import vertex

OLD, NEW = "20260101T000000Z-00000001", "20260101T000000Z-00000002"
URIS = [f"{'ab'[n % 2]}/{n:02}.jpg" for n in range(11)] + ["top.jpg"]
VECTORS = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)

# After https://cloud.google.com/vertex-ai/docs/vector-search/setup/format-structure, for dense vectors.
RESTRICT = {
    "type": "object",
    "properties": {
        "namespace": {"type": "string", "minLength": 1},
        "allow": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "deny": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
    "required": ["namespace"],
    "additionalProperties": False,
}
RECORD = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "minLength": 1},
        "embedding": {"type": "array", "items": {"type": "number"}, "minItems": 6, "maxItems": 6},
        "restricts": {"type": "array", "items": RESTRICT},
        "crowding_tag": {"type": "string"},
    },
    "required": ["id", "embedding"],
    "additionalProperties": False,
}

Records = dict[str, dict[str, Any]]


def read(folder: Path) -> tuple[Records, list[str]]:
    """The records and the removed ids of a batch, as the documentation has them read."""
    batch = folder / "batch"
    records: Records = {}
    for path in batch.glob("*.json"):
        for line in path.read_text("utf-8").split("\n")[:-1]:
            record = json.loads(line)
            jsonschema.validate(record, RECORD)
            assert record["id"] not in records
            records[record["id"]] = record
    removed = [line for path in batch.glob("delete/*") for line in path.read_text("utf-8").split("\n")[:-1]]
    assert not set(removed) & set(records)
    found = {path.relative_to(batch).as_posix() for path in batch.rglob("*")}
    assert found <= {"vectors.json", "delete", "delete/removed.txt"}
    return records, removed


def exported(output: Path, folder: Path, **options: Any) -> tuple[Records, list[str]]:
    imgindex.export(output, "vertex", folder, **options)
    return read(folder)


def publish(
    output: Path, name: str, rows: dict[str, npt.NDArray[np.float32]], shards: int, **more: Any
) -> None:
    publish_vectors(str(output), name, list(rows), np.array(list(rows.values())), shards=shards, **more)


class TestAll:
    def test_every_image_is_a_record_as_documented(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NEW, URIS, VECTORS, shards=3)
        records, removed = exported(tmp_path / "index", tmp_path / "out")
        assert removed == []
        assert sorted(records) == sorted(URIS)
        for n, uri in enumerate(URIS):
            assert records[uri]["crowding_tag"] == f"{n:064x}"
            label = [{"namespace": "label", "allow": ["ab"[n % 2]]}]
            assert records[uri].get("restricts") == (None if uri == "top.jpg" else label)
            assert np.array_equal(np.array(records[uri]["embedding"], np.float32), VECTORS[n])

    def test_normalized(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NEW, URIS, VECTORS)
        records, _ = exported(tmp_path / "index", tmp_path / "out", normalize=True)
        lengths = [np.linalg.norm(record["embedding"]) for record in records.values()]
        assert lengths == pytest.approx([1] * 12, abs=1e-6)

    def test_any_name_and_any_float(self, tmp_path: Path) -> None:
        uris = ['q"u\\o/t\te.jpg', "line\nbreak/\u2028.jpg", "caf\U0010dce9.jpg", "猫/猫.jpg"]
        vectors = np.array([[1e-38, -0.0, 1e30, 1, 0.1, 1 / 3]] * 4, np.float32) * np.array(
            [[1], [2], [3], [-4]], np.float32
        )
        publish_vectors(str(tmp_path / "index"), NEW, uris, vectors)
        records, _ = exported(tmp_path / "index", tmp_path / "out")
        assert set(records) == set(uris)
        assert records["猫/猫.jpg"]["restricts"] == [{"namespace": "label", "allow": ["猫"]}]
        for uri, vector in zip(uris, vectors, strict=True):
            assert np.array_equal(np.array(records[uri]["embedding"], np.float32), vector)


class TestSince:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_changes_make_the_new_generation_of_the_old_one(
        self, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vertex, "_MERGED_ROWS", 3)
        generator = np.random.default_rng(seed)
        rows = dict(zip(URIS, VECTORS, strict=True))
        kept = [uri for uri in URIS if generator.random() < 0.7] + ["a/new.jpg", "z/new.jpg"]
        later = {uri: rows.get(uri, VECTORS[0]) for uri in kept}
        later[kept[0]] = later[kept[0]] + 1
        publish(tmp_path / "index", OLD, rows, shards=2)
        publish(tmp_path / "index", NEW, later, shards=3)
        before, _ = exported(tmp_path / "index", tmp_path / "before", generation=OLD)
        after, _ = exported(tmp_path / "index", tmp_path / "after")
        changes, removed = exported(tmp_path / "index", tmp_path / "changes", since=OLD)
        assert {uri: before[uri] for uri in before if uri not in removed} | changes == after
        assert sorted(removed) == sorted(set(before) - set(after))
        assert all(before.get(uri) != record for uri, record in changes.items())
        description = json.loads((tmp_path / "changes/export.json").read_text())
        assert {key: description[key] for key in ("images", "removed", "since", "generation")} == {
            "images": len(changes), "removed": len(removed), "since": OLD, "generation": NEW,
        }  # fmt: skip

    def test_without_a_change_there_is_nothing_to_send(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in (OLD, NEW):
            publish_vectors(str(tmp_path / "index"), name, URIS, VECTORS)
        command = ["export", str(tmp_path / "index"), "--format", "vertex", str(tmp_path / "out")]
        assert main([*command, "--since", OLD]) == 0
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["export.json"]
        assert capsys.readouterr().out == (
            f"{tmp_path}/out holds 0 vectors of 6 dimensions, of generation {NEW}, and 0 ids to delete\n"
        )

    def test_other_recipes_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "index"
        publish_vectors(str(output), OLD, URIS, VECTORS)
        publish_vectors(str(output), NEW, URIS, VECTORS[:, :5])
        with pytest.raises(
            RecipeChangedError, match=f"PCA basis of generation {NEW} differs from that of {OLD}"
        ):
            exported(output, tmp_path / "out", since=OLD)
        later = "20260101T000000Z-00000003"
        publish_vectors(str(output), later, URIS, VECTORS[:, :5], metric="euclidean")
        command = ["export", str(output), "--format", "vertex", str(tmp_path / "out"), "--since", NEW]
        assert main(command) == 4
        assert capsys.readouterr().err == (
            f"imgindex: the metric of generation {later} differs from that of {NEW}, so all vectors have "
            "changed; export without --since and replace the whole index\n"
        )
        assert not (tmp_path / "out").exists()

    def test_a_removed_name_that_no_line_can_hold(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), OLD, ["a\nb.jpg", "c.jpg"], VECTORS[:2])
        publish_vectors(str(tmp_path / "index"), NEW, ["c.jpg"], VECTORS[1:2])
        with pytest.raises(
            OutputError, match=r"the image 'a\\nb\.jpg' is gone, and its name has a line break"
        ):
            exported(tmp_path / "index", tmp_path / "out", since=OLD)

    def test_what_is_no_generation(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NEW, URIS, VECTORS)
        with pytest.raises(UsageError, match="'yesterday' is no generation's name"):
            exported(tmp_path / "index", tmp_path / "out", since="yesterday")
        with pytest.raises(UsageError, match=f"index has no generation {OLD}, or no longer"):
            exported(tmp_path / "index", tmp_path / "out", since=OLD)


def test_the_same_generations_give_the_same_bytes(tmp_path: Path) -> None:
    publish_vectors(str(tmp_path / "index"), OLD, URIS[:5], VECTORS[:5])
    publish_vectors(str(tmp_path / "index"), NEW, URIS, VECTORS, shards=2)
    for since in (None, OLD):
        texts = set()
        for name in ("one", "two"):
            exported(tmp_path / "index", tmp_path / name, since=since)
            texts.add((tmp_path / name / "batch/vectors.json").read_bytes())
        assert len(texts) == 1
