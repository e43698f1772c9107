"""Shards within a budget of memory: on disk where it is small, and the same bytes either way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.config import IndexConfig
from imgindex.indexing import shard_budget
from imgindex.indexing.shard_backend import SHARD_BACKEND
from imgindex.indexing.shard_budget import bytes_in_memory, bytes_on_disk, default_limit, write_within
from imgindex.indexing.vector_files import Parts, PartWriter, VectorRows
from imgindex.models.ann.annoy import Annoy
from imgindex.runtime.resources import MemoryBudget


@settings(max_examples=25)
@given(
    items=st.integers(1, 400),
    dims=st.integers(1, 12),
    metric=st.sampled_from(["angular", "euclidean"]),
    trees=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_annoy_builds_the_same_bytes_on_disk(
    tmp_path_factory: Any, items: int, dims: int, metric: Any, trees: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("annoy")
    vectors = np.random.default_rng(seed).standard_normal((items, dims)).astype(np.float32)
    built = []
    for on_disk in (False, True):
        path = folder / f"{on_disk}.ann"
        Annoy().build_blocks(
            [(np.arange(items), vectors)], path, items=items, dims=dims, metric=metric,
            settings={"trees": trees, "seed": seed}, on_disk=on_disk,
        )  # fmt: skip
        built.append(path)
    memory, disk = built
    assert memory.read_bytes() == disk.read_bytes()
    assert memory.stat().st_mode == disk.stat().st_mode


def test_what_a_build_takes_is_estimated(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((20_000, 30)).astype(np.float32)
    path = tmp_path / "a.ann"
    settings = {"trees": 10, "seed": 0}
    Annoy().build(vectors, path, metric="angular", settings=settings)
    assert path.stat().st_size < Annoy().build_bytes(20_000, 30, settings) < 2 * path.stat().st_size


def parts_of(generation: Path, rows: int, dims: int = 8) -> Parts:
    """A shard's projected rows, in two parts."""
    uris = [f"{number:05}.jpg" for number in range(rows)]
    numbers = {name: pa.array(range(rows)) for name in ("size", "width", "height")}
    images = pa.table({"uri": uris, "sha256": uris, **numbers})
    vectors = np.random.default_rng(0).standard_normal((rows, dims)).astype(np.float32)
    writer = PartWriter(str(generation))
    written = []
    for start, stop in ((0, rows // 2), (rows // 2, rows)):
        batch = VectorRows(images.slice(start, stop - start), vectors[start:stop])
        written += [part for _, part in [*writer.add(0, batch), *writer.flush()]]
    return Parts(str(generation), written)


@pytest.mark.parametrize("trees", [6, pytest.param("auto", marks=pytest.mark.long)])
def test_a_shard_above_the_budget_is_built_on_disk(
    trees: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IndexConfig(trees=trees, target_recall=0.5)
    built: list[bool] = []

    def build(*args: Any, on_disk: bool, **named: Any) -> None:
        built.append(on_disk)
        Annoy().build_blocks(*args, on_disk=on_disk, **named)

    monkeypatch.setattr(SHARD_BACKEND, "build_blocks", build)
    needed = bytes_in_memory(300, 8, config)
    shards = []
    for limit in (needed, needed - 1, 1):
        folder = tmp_path / str(limit)
        shards.append(write_within(limit, str(folder), 0, 1, parts_of(folder, 300), config))
    assert built == [on_disk for on_disk in (False, True, True) for _ in range(1 if trees == 6 else 5)]
    assert len({(shard.index, shard.metadata, shard.recalls) for shard in shards}) == 1
    assert all(shard.problems == () for shard in shards)


def test_what_a_shard_holds_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    class Recorded(MemoryBudget):
        def held(self, wanted: int) -> Any:
            held.append(wanted)
            return super().held(wanted)

    monkeypatch.setattr(shard_budget, "budget_of", Recorded)
    config = IndexConfig(trees=6)
    needed = bytes_in_memory(300, 8, config)
    for limit in (needed, needed - 1):
        write_within(limit, str(tmp_path), 0, 1, parts_of(tmp_path, 300), config)
    assert held == [needed, bytes_on_disk(300)]
    assert bytes_on_disk(300) < needed
    assert bytes_in_memory(300, 8, replace(config, trees="auto")) > needed


def test_the_default_is_half_of_a_workers_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_budget, "available_memory", lambda: 1000)
    monkeypatch.setattr(shard_budget, "available_cores", lambda: 4)
    assert [default_limit(threads) for threads in (4, 2, 1, 8)] == [500, 250, 125, 500]


def test_no_room_on_the_disk_is_said_before_annoy_maps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("imgindex.models.ann.annoy.shutil.disk_usage", lambda path: usage)
    from imgindex.errors import OutputError

    with pytest.raises(OutputError, match=rf"{tmp_path} has 100 bytes free, of \d+ that a shard is built in"):
        Annoy().build_blocks(
            [(np.arange(9), np.ones((9, 4), np.float32))], tmp_path / "a", items=9, dims=4, metric="angular",
            settings={"trees": 3, "seed": 0}, on_disk=True,
        )  # fmt: skip
