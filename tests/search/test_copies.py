"""Search among copies: how many stand behind an answer, and answers in which each image stands once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import manifest_of

from imgindex.commands.descriptions import describe_generation
from imgindex.config import IndexConfig
from imgindex.errors import UsageError
from imgindex.generations.layout import Output, publish
from imgindex.generations.manifest import decode
from imgindex.indexing.shards import write_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.io import written_files
from imgindex.io.digest_json import seal
from imgindex.models.ann.protocol import Metric
from imgindex.models.pca import Basis
from imgindex.search.index import Index
from imgindex.search.neighbors import Neighbor
from imgindex.search.pages import result_page
from imgindex.search.results import result_table, to_json

NAME = "20200101T000000Z-01234567"


def index_of(
    folder: Path, vectors: np.ndarray, contents: list[int], shards: int = 1, metric: Metric = "angular"
) -> Index:
    """An index of images whose vectors are those of their contents; image i is in shard i % `shards`."""
    layout = Output(str(folder))
    directory = layout.generation(NAME)
    dims = vectors.shape[1]
    basis = Basis(np.zeros(dims, np.float32), np.eye(dims, dtype=np.float32), *np.ones((2, dims), np.float32))
    written = []
    for shard in range(shards):
        members = range(shard, len(contents), shards)
        images = pa.table(
            {
                "uri": [f"{member:05}.jpg" for member in members],
                "sha256": [f"{contents[member]:064x}" for member in members],
                **{name: pa.array([1] * len(members)) for name in ("size", "width", "height")},
            }
        )
        rows = VectorRows(images, vectors[[contents[member] for member in members]].astype(np.float32))
        written.append(write_shard(directory, shard, shards, [rows], IndexConfig(trees=2, metric=metric)))
    file = written_files.write_described(directory, "pca/basis.npz", basis.to_npz())
    manifest = manifest_of(NAME, written, file, root=str(folder), metric=metric, dims=dims, feature_dim=dims)
    publish(layout, manifest)
    return Index.open(folder)


def brute_force(
    vectors: np.ndarray, contents: list[int], query: np.ndarray, metric: str
) -> list[tuple[int, int, float]]:
    """Each content that is there, how often, and its distance in float64, nearest first."""
    found = {}
    for content in contents:
        a, b = vectors[content].astype(np.float64), query.astype(np.float64)
        if metric == "angular":
            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        found[content] = (content, contents.count(content), float(np.linalg.norm(a - b)))
    return sorted(found.values(), key=lambda content: content[2])


def told(neighbors: tuple[Neighbor, ...]) -> list[tuple[int, int, float]]:
    return [(int(n.sha256, 16), n.copies + 1, pytest.approx(n.distance, abs=1e-6)) for n in neighbors]


@given(data=st.data())
@settings(max_examples=20)
def test_distinct_answers_and_copies_are_those_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shards = data.draw(st.integers(1, 3))
    contents = data.draw(st.lists(st.integers(0, 11), min_size=shards, max_size=40))
    metric: Metric = data.draw(st.sampled_from(["angular", "euclidean"]))
    k, exact = data.draw(st.integers(1, 14)), data.draw(st.booleans())
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors, query = generator.standard_normal((12, 3)).astype(np.float32), generator.standard_normal(3)
    index = index_of(tmp_path_factory.mktemp("index"), vectors, contents, shards, metric)
    expected = brute_force(vectors, contents, query, metric)
    vector = query[np.newaxis].astype(np.float32)
    (distinct,) = index.search_vectors(vector, k, exact=exact, distinct=True)
    assert told(distinct.neighbors) == expected[:k]
    assert [n.rank for n in distinct.neighbors] == list(range(1, len(distinct.neighbors) + 1))
    # Without it each copy stands for itself.
    (all_of_them,) = index.search_vectors(vector, k, exact=exact)
    repeated = [content for content in expected for _ in range(content[1])]
    assert told(all_of_them.neighbors) == repeated[:k]


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """12 images, and before them 6,000 copies of one that is nearest to all."""
    vectors = np.random.default_rng(0).standard_normal((13, 8)) + 5
    vectors[0] = 5
    contents = [0] * 6000 + list(range(1, 13))
    return index_of(tmp_path_factory.mktemp("flooded"), vectors, contents, shards=2)


def test_thousands_of_copies_hide_no_other_image(flooded: Index) -> None:
    query = np.full((1, 8), 5, np.float32)
    (full,) = flooded.search_vectors(query, 10)
    assert {int(n.sha256, 16) for n in full.neighbors} == {0}
    (exact,) = flooded.search_vectors(query, 10, exact=True, distinct=True)
    (distinct,) = flooded.search_vectors(query, 10, distinct=True)
    assert len({n.sha256 for n in distinct.neighbors}) == 10
    assert [n.uri for n in distinct.neighbors] == [n.uri for n in exact.neighbors]
    assert [n.copies for n in distinct.neighbors] == [5999, *[0] * 9]
    # All that there are, where more are asked for.
    (everything,) = flooded.search_vectors(query, 1000, distinct=True)
    assert sorted(int(n.sha256, 16) for n in everything.neighbors) == list(range(13))


def test_copies_are_said_in_the_table_in_json_and_on_the_page(flooded: Index) -> None:
    results = flooded.search_vectors(np.full((1, 8), 5, np.float32), 2, exact=True, distinct=True)
    lines = result_table(results, "angular").splitlines()
    assert lines[1].split() == ["rank", "cosine", "copies", "path"]
    assert lines[2].split() == ["1", "1.000", "5999", "00000.jpg"]
    assert lines[3].split()[2] == "0"
    assert [n["copies"] for n in json.loads(to_json(results))[0]["neighbors"]] == [5999, 0]
    page = result_page(flooded, results)
    assert "1 · cosine 1.000 · 5,999 copies" in page
    assert page.count("copies") == 1


def test_under_another_metric_the_distance_that_decides_is_shown(tmp_path: Path) -> None:
    # The nearest point lies in another direction than the query.
    vectors = np.array([[1, 0.2], [9, 0], [2, 2]], np.float32)
    index = index_of(tmp_path, vectors, [0, 1, 2], metric="euclidean")
    results = index.search_vectors(np.array([[1, 0]], np.float32), 3)
    lines = [line.split() for line in result_table(results, "euclidean").splitlines()[1:]]
    assert lines == [
        ["rank", "distance", "cosine", "copies", "path"],
        ["1", "0.2000", "0.981", "0", "00000.jpg"],
        ["2", "2.2361", "0.707", "0", "00002.jpg"],
        ["3", "8.0000", "1.000", "0", "00001.jpg"],
    ]
    assert "1 · distance 0.2000 · cosine 0.981" in result_page(index, results)


def test_what_recall_was_measured_with_is_said_where_the_manifest_has_it(flooded: Index) -> None:
    older = flooded.facts
    newer = replace(older, recall=replace(older.recall, queries=13, distinct=14))
    sentence = "recall       1.000 at 10, with search_k 100"
    assert f"{sentence}\n" in describe_generation("index", older)
    assert f"{sentence}, of 13 of 14 distinct images\n" in describe_generation("index", newer)


@pytest.mark.parametrize("value", [-1, 1.5, "3"])
@pytest.mark.parametrize(("section", "key"), [("recall", "queries"), ("recall", "distinct"), ("pca", "cut")])
def test_a_manifest_counts_in_whole_numbers(section: str, key: str, value: Any, flooded: Index) -> None:
    content = {**flooded.manifest, section: {**flooded.manifest[section], key: value}}
    with pytest.raises(ValueError, match=rf"{section}\.{key} is "):
        decode(seal(content), NAME)


def test_whitening_says_what_it_amplifies(flooded: Index) -> None:
    def described(images: int, cut: int = 0) -> str:
        config = {**flooded.facts.config, "pca": {"dims": 8, "whiten": True}}
        pca = replace(flooded.facts.pca, fitted_images=images, cut=cut, scale_ratio=7.12)
        return describe_generation("index", replace(flooded.facts, config=config, pca=pca))

    assert "whitening" not in describe_generation("index", flooded.facts)
    sentence = "whitening    dimension 8 is scaled 7.1 times as much as dimension 1"
    assert f"{sentence}\n" in described(240)
    assert f"{sentence}; 3 more were cut, as they hold only the rounding of float16\n" in described(240, 3)
    warning = described(100)
    assert "WARNING: it amplifies noise, for the basis was fitted to 12.5 images a dimension" in warning
    assert "set pca.dims to at most 3, or pca.whiten to false" in warning


def test_a_query_that_is_not_finite_is_refused(flooded: Index) -> None:
    with pytest.raises(UsageError, match="finite"):
        flooded.search_vectors(np.full((1, 8), np.nan, np.float32))


@pytest.mark.parametrize("exact", [True, False])
def test_more_neighbors_than_a_whole_number_of_c_holds(flooded: Index, exact: bool) -> None:
    (result,) = flooded.search_vectors(np.full((1, 8), 5, np.float32), 10**12, exact=exact)
    assert len(result.neighbors) == 6012
