"""Evaluation of more images than memory would hold several times over."""

import errno
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from long_runs import some_long
from outputs import publish_features

import imgindex
from imgindex.errors import MachineError
from imgindex.evaluation import annoy_search, collection, feature_search, judging, quality, sweep, unseen
from imgindex.evaluation.judging import time_exact
from imgindex.evaluation.stacked_rows import StackedRows
from imgindex.models.ann.protocol import METRICS, Metric


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.data())
def test_stacked_rows_are_those_of_one_array(sizes: list[int], data: st.DataObject) -> None:
    whole = np.random.default_rng(0).random((sum(sizes), 3), np.float32)
    stacked = StackedRows(np.split(whole, np.cumsum(sizes)[:-1]))
    assert (len(stacked), stacked.shape, stacked.nbytes) == (len(whole), whole.shape, whole.nbytes)
    asked = data.draw(st.lists(st.integers(0, len(whole) - 1))) if len(whole) else []
    rows = np.array(asked, np.int64)
    assert stacked[rows].tolist() == whole[rows].tolist()
    start, stop = data.draw(st.tuples(st.integers(0, 25), st.integers(0, 25)))
    assert stacked[start:stop].tolist() == whole[start:stop].tolist()


@given(st.integers(1, 20), st.integers(1, 6), st.data())
def test_rows_are_cut_where_they_lie(count: int, width: int, data: st.DataObject) -> None:
    rows = np.random.default_rng(0).random((count, width), np.float32)
    memory, expected = rows, rows.copy()
    for dims in sorted(data.draw(st.lists(st.integers(1, width), max_size=3)), reverse=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "_BLOCK_ROWS", 4)
            rows = sweep._cut_in_place(rows, dims)
        assert rows.tolist() == expected[:, :dims].tolist()
        assert rows.flags.c_contiguous
        assert np.shares_memory(rows, memory)


@pytest.mark.parametrize("metric", METRICS)
def test_the_search_that_is_timed_is_exact(metric: Metric) -> None:
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal((size, 5)).astype(np.float32) for size in (30, 1, 40)]
    parts[0][3] = 0
    queries = generator.standard_normal((8, 5)).astype(np.float32)
    answers: list[np.ndarray] = []

    def keep(search: object, queries: np.ndarray) -> None:
        answers.extend(search(query) for query in queries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgindex.evaluation.judging.time_queries", keep)
        time_exact(parts, queries, metric, 7)
    rows = np.concatenate(parts).astype(np.float64)
    for query, found in zip(queries, answers, strict=True):
        if metric == "angular":
            near = rows @ query / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
        else:
            near = -np.linalg.norm(rows - query, axis=1)
        assert found.tolist() == np.argsort(-near)[:7].tolist()


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    """Has everything done in small blocks, and no features kept."""
    patch.setattr(collection, "_KEPT_BYTES", 0)
    patch.setattr(feature_search, "_KEPT_BYTES", 0)
    for module in (collection, feature_search, sweep, unseen):
        patch.setattr(module, "_BLOCK_ROWS", 512)
    patch.setattr(feature_search, "_SCORES", 1 << 16)
    patch.setattr(feature_search, "_FEATURE_ROWS", 100)
    patch.setattr(feature_search, "_IN_MEMORY", 0)
    patch.setattr(quality, "_RANKED", 1 << 12)


@pytest.mark.parametrize("metric", some_long(METRICS, "angular"))
def test_blocks_do_not_change_the_figures(
    metric: Metric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).random((1500, 8), np.float32)
    uris = [f"{n % 5}/{n}.jpg" for n in range(1500)]
    publish_features(tmp_path, rows, uris, dims=4, metric=metric, shards=3)
    whole = imgindex.evaluate(tmp_path, dims=[2, 6], sample=200)
    small_blocks(monkeypatch)
    blocks = imgindex.evaluate(tmp_path, dims=[2, 6], sample=200)
    assert whole.quality == blocks.quality
    assert [(rung.p_at_k, rung.recall_at_10) for rung in whole.ladder[:3]] == [
        (rung.p_at_k, rung.recall_at_10) for rung in blocks.ladder[:3]
    ]
    assert [(point.dims, point.whiten, point.p_at_k, point.recall_at_10) for point in whole.sweep] == [
        (point.dims, point.whiten, point.p_at_k, point.recall_at_10) for point in blocks.sweep
    ]
    assert whole.unseen_recall is not None
    assert blocks.unseen_recall is not None
    assert whole.unseen_recall.recall == blocks.unseen_recall.recall


def test_annoy_is_asked_less_often_where_each_query_inspects_many_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).random((600, 8), np.float32)
    publish_features(tmp_path, rows, [f"{n % 5}/{n}.jpg" for n in range(600)], shards=2, search_k=50)
    every = imgindex.evaluate(tmp_path, dims=[2])
    assert [rung.note for rung in every.ladder] == [""] * 4
    monkeypatch.setattr(annoy_search, "_INSPECTED", 30 * 100)
    monkeypatch.setattr(annoy_search, "_LEAST_ASKED", 10)
    some = imgindex.evaluate(tmp_path, dims=[2])
    assert some.unseen_recall is not None
    assert some.unseen_recall.queries == 30
    note = "30 queries only, for each inspects up to 50 nodes a shard"
    assert [rung.note for rung in some.ladder] == ["", "", note, note]
    for few, all_of_them in zip(some.ladder[2:], every.ladder[2:], strict=True):
        assert few.recall_at_10 == pytest.approx(all_of_them.recall_at_10, abs=0.1)
        assert few.recall_at_10 != all_of_them.recall_at_10
    monkeypatch.setattr(annoy_search, "_LEAST_ASKED", 40)
    assert "40 queries only" in imgindex.evaluate(tmp_path, dims=[2]).ladder[2].note


def test_a_disk_without_room_for_the_vectors_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publish_features(tmp_path, np.eye(8, dtype=np.float32), [f"{n}.jpg" for n in range(8)])
    monkeypatch.setattr(feature_search, "_IN_MEMORY", 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(
        MachineError, match=r"no room for .* of vectors: No space left on device; have TMPDIR"
    ):
        imgindex.evaluate(tmp_path, dims=[2])


def test_points_are_timed_without_a_copy_of_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_TIMED_QUERIES", 3)
    monkeypatch.setattr(sweep, "_BLOCK_ROWS", 1024)
    images = SimpleNamespace(manifest=SimpleNamespace(metric="angular"))
    vectors = np.random.default_rng(0).random((40_000, 64), np.float32)
    points = [(sweep.SweepPoint(dims, 0.0, None, 1.0, 0.5, 0.0, 1), None) for dims in (2, 32, 64)]
    tracemalloc.start()
    timed = sweep.time_points(
        images,
        np.arange(3),
        SimpleNamespace(vectors=vectors),
        4,
        points,  # type: ignore[arg-type]
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [point.dims for point, _ in timed] == [2, 32, 64]
    assert all(point.ms_per_query > 0 for point, _ in timed)
    assert peak < vectors.nbytes / 2
