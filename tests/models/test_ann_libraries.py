"""Every library that can be compared with Annoy answers what NumPy finds by brute force."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from imgindex.errors import OutputError
from imgindex.models.ann.families import FAMILIES
from imgindex.models.ann.protocol import METRICS, Metric

ITEMS, DIMS, K = 1200, 25, 10
EXACT = {"faiss-flat", "kdtree", "balltree"}
# Those that do without distances of the vectors themselves, or with few bits of them.
BOUNDS = {"faiss-pq": 0.7, "faiss-lsh": 0.8}
# ScaNN cannot be loaded beside TensorFlow, which other tests load; tests/evaluation runs it on its own.
NAMES = [name for name in FAMILIES if name != "scann"]


def vectors() -> np.ndarray:
    """Rows [ITEMS, DIMS] in groups of 12, of different lengths; a tenth as far apart as the groups are."""
    generator = np.random.default_rng(2)
    centers = generator.standard_normal((ITEMS // 12, DIMS))
    rows = np.repeat(centers, 12, axis=0) + 0.1 * generator.standard_normal((ITEMS, DIMS))
    return np.float32(rows * generator.uniform(0.98, 1.02, (ITEMS, 1)))


def distances_to(query: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """The distance of each of `rows` from `query`."""
    rows, query = np.float64(rows), np.float64(query)
    if metric == "angular":
        cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        return np.sqrt(np.maximum(2 - 2 * cosines, 0))
    return np.linalg.norm(rows - query, axis=1)


def backend_of(name: str):
    pytest.importorskip(FAMILIES[name].package)
    module, _, wanted = FAMILIES[name].backend.partition(":")
    return getattr(importlib.import_module(module), wanted)()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_brute_force(name: str, metric: Metric, tmp_path: Path) -> None:
    backend, rows = backend_of(name), vectors()
    for number, (build, searches) in enumerate(FAMILIES[name].trials(ITEMS, DIMS)):
        path = tmp_path / str(number)
        backend.build(rows, path, metric=metric, settings=build)
        index = backend.open(path, metric=metric, dims=DIMS, items=ITEMS)
        hits = 0
        for query in rows[::40]:
            items, distances = index.search(query, K, searches[-1])
            every = distances_to(query, rows, metric)
            nearest = np.argsort(every)[:K]
            assert len(items) == len(distances) == len(set(items.tolist())) == K
            if name in EXACT:
                assert items.tolist() == nearest.tolist()
            if name != "faiss-pq":  # whose distances are those of the compressed vectors
                # A small distance is the root of a difference of float32.
                np.testing.assert_allclose(distances, every[items], atol=5e-3, rtol=1e-3)
            hits += len(set(items.tolist()) & set(nearest.tolist()))
        assert hits >= BOUNDS.get(name, 0.95) * K * len(rows[::40])


@pytest.mark.parametrize("name", NAMES)
def test_fewer_items_than_are_asked_for(name: str, tmp_path: Path) -> None:
    backend, rows = backend_of(name), vectors()[:3]
    build, searches = (
        ({"factory": "HNSW16"}, ({},)) if name == "faiss-pq" else FAMILIES[name].trials(3, DIMS)[0]
    )
    backend.build(rows, tmp_path / "index", metric="euclidean", settings=build)
    index = backend.open(tmp_path / "index", metric="euclidean", dims=DIMS, items=3)
    items, distances = index.search(rows[1], 10, searches[-1])
    assert items[0] == 1
    assert 1 <= len(items) == len(distances) <= 3


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    backend, rows = backend_of(name), vectors()[:300]
    (tmp_path / "text").write_text("this is no index\n" * 100)
    with pytest.raises(OutputError, match="text is no "):
        backend.open(tmp_path / "text", metric="angular", dims=DIMS, items=300)
    build, _ = FAMILIES[name].trials(300, DIMS)[0]
    backend.build(rows, tmp_path / "index", metric="angular", settings=build)
    with pytest.raises(OutputError, match="index holds 300 "):
        backend.open(tmp_path / "index", metric="angular", dims=DIMS, items=299)


@pytest.mark.parametrize("items", [1, 2, 300, 10**6])
@pytest.mark.parametrize("dims", [1, 2, 150])
def test_settings_suit_any_number_of_items_and_dimensions(items: int, dims: int) -> None:
    for name, family in FAMILIES.items():
        trials = family.trials(items, dims)
        assert 1 <= len(trials) <= 3, name
        assert len({str(build) for build, _ in trials}) == len(trials), name
        assert all(searches for _, searches in trials), name
    lists = [build["factory"] for build, _ in FAMILIES["faiss-ivf"].trials(items, dims)]
    assert all(int(each[3:].split(",")[0]) <= items for each in lists)
    assert lists[0] == f"IVF{round(math.sqrt(items))},Flat"
