"""Shards: metadata row i describes Annoy item i, and the bytes depend on the rows alone."""

import hashlib
import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annoy import AnnoyIndex
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.config import IndexConfig
from imgindex.indexing.shards import ShardSummary, check_shard, labels_of, write_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.io import object_stores
from imgindex.models.ann.annoy import AnnoyShard

DIMS = 5
URIS = [f"{folder}{number}.jpg" for number in range(14) for folder in ("b/", "", "a/ä/", "a/")]
VECTORS = np.random.default_rng(1).standard_normal((len(URIS), DIMS)).astype(np.float32)
CONFIG = IndexConfig(trees=6)


def rows_of(members: list[int]) -> VectorRows:
    images = pa.table(
        {
            "uri": [URIS[member] for member in members],
            "sha256": [hashlib.sha256(URIS[member].encode()).hexdigest() for member in members],
            "size": pa.array([2**33 + member for member in members], pa.int64()),
            "width": pa.array([100 + member for member in members], pa.int32()),
            "height": pa.array([200 + member for member in members], pa.int32()),
        }
    )
    return VectorRows(images, VECTORS[members])


def write(directory: Path, members: list[list[int]], config: IndexConfig = CONFIG) -> ShardSummary:
    return write_shard(str(directory), 3, 12, [rows_of(batch) for batch in members], config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardSummary]:
    """A shard of all rows in one batch, and its generation's directory."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, write(directory, [list(range(len(URIS)))])


def test_metadata_row_i_describes_annoy_item_i(whole: tuple[Path, ShardSummary]) -> None:
    directory, shard = whole
    metadata = pq.read_table(directory / shard.metadata.path).to_pylist()
    index = AnnoyIndex(DIMS, "angular")
    index.load(str(directory / shard.index.path))
    assert index.get_n_items() == len(metadata) == shard.items == len(URIS)
    assert index.get_n_trees() == CONFIG.trees
    assert [row["uri"] for row in metadata] == sorted(URIS)
    for item, row in enumerate(metadata):
        member = URIS.index(row["uri"])
        np.testing.assert_array_equal(index.get_item_vector(item), VECTORS[member])
        folder = Path(row["uri"]).parent.name
        assert row == {
            "item": item,
            "uri": URIS[member],
            "sha256": hashlib.sha256(URIS[member].encode()).hexdigest(),
            "size": 2**33 + member,
            "width": 100 + member,
            "height": 200 + member,
            "label": folder or None,
        }


def test_columns_and_names_are_those_of_the_layout(whole: tuple[Path, ShardSummary]) -> None:
    directory, shard = whole
    assert shard.index.path == "index/index-00003-of-00012.ann"
    assert shard.metadata.path == "metadata/metadata-00003-of-00012.parquet"
    schema = pq.read_schema(directory / shard.metadata.path)
    assert {field.name: str(field.type) for field in schema} == {
        "item": "int32",
        "uri": "string",
        "sha256": "string",
        "size": "int64",
        "width": "int32",
        "height": "int32",
        "label": "string",
    }


def test_the_summary_is_true(whole: tuple[Path, ShardSummary]) -> None:
    directory, shard = whole
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    assert files == [shard.index.path, shard.metadata.path]
    for file in (shard.index, shard.metadata):
        data = (directory / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert list(shard.recalls) == sorted(shard.recalls)
    assert shard.recalls[-1] == 1.0  # that effort inspects all of so few items


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(len(URIS))), st.sets(st.integers(1, len(URIS) - 1), max_size=6))
def test_bytes_do_not_depend_on_batches_or_their_order(
    whole: tuple[Path, ShardSummary], tmp_path_factory: Any, order: list[int], cuts: set[int]
) -> None:
    edges = [0, *sorted(cuts), len(URIS)]
    batches = [order[start:stop] for start, stop in itertools.pairwise(edges)]
    again = write(tmp_path_factory.mktemp("again"), batches)
    assert (again.index, again.metadata, again.recalls) == (
        whole[1].index,
        whole[1].metadata,
        whole[1].recalls,
    )


def test_seed_and_metric_decide_the_index_too(whole: tuple[Path, ShardSummary], tmp_path: Path) -> None:
    members = [list(range(len(URIS)))]
    seeded = write(tmp_path / "seed", members, IndexConfig(trees=6, seed=1))
    euclidean = write(tmp_path / "metric", members, IndexConfig(trees=6, metric="euclidean"))
    assert len({whole[1].index.sha256, seeded.index.sha256, euclidean.index.sha256}) == 3
    assert len({whole[1].metadata, seeded.metadata, euclidean.metadata}) == 1


def test_a_shard_of_one_image(tmp_path: Path) -> None:
    shard = write(tmp_path, [[1]])
    assert shard.items == 1
    assert set(shard.recalls) == {1.0}
    assert pq.read_table(tmp_path / shard.metadata.path)["label"].to_pylist() == [None]


def test_recall_is_measured_with_distinct_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, ShardSummary]
) -> None:
    assert (whole[1].distinct, whole[1].queries) == (len(URIS), len(URIS))
    given: list[np.ndarray] = []
    monkeypatch.setattr("imgindex.models.ann.recall.RECALL_SAMPLE", 6)
    monkeypatch.setattr(
        "imgindex.indexing.shards.measure_recall",
        lambda shard, contents, target: given.append(contents) or [1.0],
    )
    # Every other image has the bytes of the first one.
    images = rows_of(list(range(len(URIS)))).images
    digests = ["a" * 64 if row % 2 else digest for row, digest in enumerate(images["sha256"].to_pylist())]
    images = images.set_column(images.schema.get_field_index("sha256"), "sha256", [digests])
    shard = write_shard(str(tmp_path), 0, 1, [VectorRows(images, VECTORS)], CONFIG)
    assert (shard.distinct, shard.queries) == (len(URIS) // 2 + 1, 6)
    of_uri = dict(zip(images["uri"].to_pylist(), digests, strict=True))
    by_content = defaultdict(set)
    for uri, content in zip(sorted(of_uri), given[0].tolist(), strict=True):
        by_content[content].add(of_uri[uri])
    assert [len(found) for found in by_content.values()] == [1] * shard.distinct


def test_another_filesystem_gets_the_same_bytes(
    whole: tuple[Path, ShardSummary], memory: dict[str, tuple[bytes, float]]
) -> None:
    shard = write_shard("mem://bucket/g", 3, 12, [rows_of(list(range(len(URIS))))], CONFIG)
    assert (shard.index, shard.metadata) == (whole[1].index, whole[1].metadata)
    for file in (shard.index, shard.metadata):
        assert memory[f"mem://bucket/g/{file.path}"][0] == (whole[0] / file.path).read_bytes()


def test_auto_takes_the_fewest_nodes_and_then_the_fewest_trees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recalls = {
        10: [0.5, 0.6, 0.97, 0.99],
        20: [0.5, 0.96, 0.97, 0.99],
        40: [0.5, 0.97, 0.98, 0.99],
        80: [0.94, 0.98, 0.99, 1.0],
    }
    monkeypatch.setattr(
        "imgindex.indexing.shards.measure_recall", lambda shard, *_: recalls[shard._index.get_n_trees()]
    )
    members = [list(range(len(URIS)))]
    shard = write(tmp_path, members, IndexConfig(trees="auto", target_recall=0.95))
    assert shard.settings["trees"] == 20
    assert shard.recalls == tuple(recalls[20])
    assert shard.index.sha256 == write(tmp_path / "20", members, IndexConfig(trees=20)).index.sha256
    assert (
        write(tmp_path / "all", members, IndexConfig(trees="auto", target_recall=1.0)).settings["trees"] == 80
    )
    # Where none reaches the target, it is the one that comes nearest to it at the least effort.
    monkeypatch.setattr("imgindex.indexing.shards.measure_recall", lambda shard, *_: [0.3, 0.2])
    assert write(tmp_path / "none", members, IndexConfig(trees="auto")).settings["trees"] == 10


def problems_of(directory: str, shard: ShardSummary) -> list[str]:
    return check_shard(directory, shard.index, shard.metadata, items=shard.items, dims=DIMS, metric="angular")


class TestCheckShard:
    def problems(self, directory: Path, shard: ShardSummary) -> list[str]:
        return problems_of(str(directory), shard)

    def test_a_good_shard(self, whole: tuple[Path, ShardSummary], place: str) -> None:
        assert self.problems(*whole) == []
        shard = write_shard(place, 3, 12, [rows_of(list(range(len(URIS))))], CONFIG)
        assert problems_of(place, shard) == []

    def test_of_an_object_store_no_file_is_whole_in_memory(
        self, memory: dict[str, tuple[bytes, float]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int | None] = []

        class Files(object_stores._BeamFiles):
            def read(self, path: str, start: int, size: int | None) -> bytes:
                sizes.append(size)
                return super().read(path, start, size)

        shard = write_shard("mem://bucket/g", 3, 12, [rows_of(list(range(len(URIS))))], CONFIG)
        monkeypatch.setattr(object_stores, "_BeamFiles", Files)
        monkeypatch.setattr("imgindex.io.written_files._PIECE_BYTES", 1000)
        assert problems_of("mem://bucket/g", shard) == []
        assert len(sizes) == shard.index.size // 1000 + shard.metadata.size // 1000 + 2
        assert all(size is not None and size <= 1000 for size in sizes)

    @pytest.mark.parametrize("kind", ["index", "metadata"])
    def test_other_bytes(self, kind: str, tmp_path: Path) -> None:
        shard = write(tmp_path, [list(range(len(URIS)))])
        path = tmp_path / getattr(shard, kind).path
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        (problem,) = self.problems(tmp_path, shard)
        assert problem == f"{path} has other bytes than were written"
        path.unlink()
        (problem,) = self.problems(tmp_path, shard)
        assert "cannot be read: No such file" in problem

    def test_fewer_items_than_promised(self, whole: tuple[Path, ShardSummary]) -> None:
        (problem,) = self.problems(whole[0], replace(whole[1], items=len(URIS) + 1))
        assert f"holds {len(URIS)} items; its manifest promises {len(URIS) + 1}" in problem

    def test_fewer_neighbors_than_asked_for(
        self, whole: tuple[Path, ShardSummary], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As Annoy builds of some compilers do (spotify/annoy #679).
        def nearest(self: AnnoyShard, queries: np.ndarray, k: int, settings: Any = None) -> Any:
            return [(np.array([0]), np.array([0.0])) for _ in queries]

        monkeypatch.setattr(AnnoyShard, "nearest", nearest)
        (problem,) = self.problems(*whole)
        assert problem == f"{whole[0]}/{whole[1].index.path} gives fewer than 10 neighbors to 20 queries"


@pytest.mark.parametrize(
    ("uri", "label"), [("a.jpg", None), ("cats/a.jpg", "cats"), ("x/cats and dogs/a.jpg", "cats and dogs")]
)
def test_the_label_is_the_parent_folder(uri: str, label: str | None) -> None:
    assert labels_of(pa.chunked_array([[uri]])).to_pylist() == [label]


@given(st.lists(st.text("ab/ä.\n\\$", max_size=12), min_size=1))
def test_labels_are_the_parent_folders(uris: list[str]) -> None:
    folders = [uri.rpartition("/")[0].rpartition("/")[2] or None for uri in uris]
    labels = labels_of(pa.chunked_array([uris[:2], uris[2:]], pa.string()))
    assert (labels.type, labels.to_pylist()) == (pa.string(), folders)
