"""Searches among images that fulfill a filter: what conditions mean, and what is found."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labeled_photos import write_photos
from outputs import publish_features

from imgindex import Index
from imgindex.cli import main
from imgindex.errors import UsageError
from imgindex.models.ann.annoy import AnnoyShard
from imgindex.models.ann.shard_index import ShardIndex
from imgindex.search.filtered_search import nearest_among
from imgindex.search.filters import Filter

URIS = [
    "top.jpg",
    "cats/1.jpg",
    "cats/2.jpg",
    "dogs/1.jpg",
    "dogs, big/1.jpg",
    "old\\new/1.jpg",
    "x/cats/1.jpg",
]
LABELS = [None, "cats", "cats", "dogs", "dogs, big", "old\\new", "cats"]
TABLE = pa.table({"uri": URIS, "label": pa.array(LABELS, pa.string())})


@pytest.mark.parametrize(
    ("conditions", "matching"),
    [
        (["label=cats"], [1, 2, 6]),
        (["label=cats,dogs"], [1, 2, 3, 6]),
        (["label="], [0]),
        (["label=,dogs"], [0, 3]),
        (["label^=dogs"], [3, 4]),
        ([r"label=dogs\, big"], [4]),
        ([r"label=old\\new"], [5]),
        ([r"label=old\new"], [5]),  # a backslash before any other character is itself
        (["uri=cats/1.jpg"], [1]),
        (["uri^=cats/"], [1, 2]),
        (["uri^=cats/,dogs/"], [1, 2, 3]),
        ([" label =cats"], [1, 2, 6]),
        (["label=cats", "uri^=x/,dogs/"], [6]),
        (["label=birds"], []),
    ],
)
def test_what_conditions_mean(conditions: list[str], matching: list[int]) -> None:
    assert Filter.parse(conditions).items(TABLE).tolist() == matching


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_names_can_be_values(names: list[str]) -> None:
    escaped = ",".join(name.replace("\\", "\\\\").replace(",", "\\,") for name in names)
    (condition,) = Filter.parse(f"label={escaped}").conditions
    table = pa.table({"label": pa.array([*names, "\0none of them"], pa.string())})
    if not any("\U0010dc80" <= character <= "\U0010dcff" for name in names for character in name):
        assert condition.values == tuple(names)
        assert condition.holds(table).to_pylist() == [True] * len(names) + ["\0none of them" in names]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cats", "'cats' is no condition; expected one such as label=ketch,anchor"),
        ("", "'' is no condition"),
        ("lable=cats", "'lable', not on label or uri; did you mean label?"),
        ("size=4", "'size', not on label or uri; expected one such as"),
        ("label!=cats", "'label!=cats' is no condition"),
    ],
)
def test_what_is_no_condition(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace("?", r"\?")):
        Filter.parse(text)


def test_conditions_are_texts() -> None:
    with pytest.raises(UsageError, match="expected a condition or a list of them"):
        Filter.parse({"label": "cats"})  # type: ignore[arg-type]


# --- what is found, against brute force


def nearest_of(vectors: np.ndarray, query: np.ndarray, among: np.ndarray, k: int) -> set[int]:
    """The `k` of `among` with the greatest cosine, in float64."""
    rows = vectors[among].astype(np.float64)
    cosines = rows @ query.astype(np.float64) / np.linalg.norm(rows, axis=1)
    return set(among[np.argsort(-cosines)[:k]].tolist())


COUNT, CLUSTERS = 10_000, 40


@pytest.fixture(scope="module", params=["by chance", "by content"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """10,000 images in clusters, with labels of 1, 10, 50 and 39 %, drawn by chance or along the clusters."""
    generator = np.random.default_rng(0)
    clusters = generator.integers(0, CLUSTERS, COUNT)
    features = np.abs(generator.standard_normal((CLUSTERS, 24)))[clusters]
    features += 0.3 * np.abs(generator.standard_normal((COUNT, 24)))
    places = (
        np.argsort(clusters, kind="stable") if request.param == "by content" else generator.permutation(COUNT)
    )
    labels = np.empty(COUNT, object)
    for label, start, stop in (
        ("percent", 0, 100),
        ("tenth", 100, 1100),
        ("half", 1100, 6100),
        ("rest", 6100, COUNT),
    ):
        labels[places[start:stop]] = label
    uris = [f"{label}/{number:05}.jpg" for number, label in enumerate(labels)]
    output = tmp_path_factory.mktemp("large")
    publish_features(output, features.astype(np.float32), uris, dims=12, trees=20, search_k=300, shards=2)
    return Index.open(output)


class Stored:
    """The vectors of an index, in the order of their uris' numbers."""

    def __init__(self, index: Index) -> None:
        opened = index._opened
        self.labels = np.empty(len(index), object)
        self.vectors = np.empty((len(index), index.facts.dims), np.float32)
        for shard, table in zip(opened._shards, opened._metadata, strict=True):
            numbers = [int(uri[-9:-4]) for uri in table["uri"].to_pylist()]
            self.labels[numbers] = table["label"].to_pylist()
            self.vectors[numbers] = shard.vectors


@pytest.mark.parametrize("label", ["percent", "tenth", "half"])
def test_recall_of_filtered_searches(large: Index, label: str) -> None:
    stored = Stored(large)
    among = np.flatnonzero(stored.labels == label)
    generator = np.random.default_rng(1)
    sources = generator.choice(COUNT, 200, replace=False)
    queries = stored.vectors[sources] + 0.05 * generator.standard_normal((200, large.facts.dims))
    hits = 0
    for query in queries.astype(np.float32):
        (result,) = large.search_vectors(query[np.newaxis], 10, where=f"label={label}")
        assert {neighbor.label for neighbor in result.neighbors} == {label}
        assert len(result.neighbors) == 10
        found = {int(neighbor.uri[-9:-4]) for neighbor in result.neighbors}
        hits += len(found & nearest_of(stored.vectors, query, among, 10))
    assert hits / 2000 >= 0.95


def test_many_matches_are_asked_of_the_index_and_few_are_compared(
    large: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    search = AnnoyShard.search

    def counting(self: AnnoyShard, *arguments: object) -> object:
        asked.append(1)
        return search(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(AnnoyShard, "search", counting)
    vector = Stored(large).vectors[:1]
    large.search_vectors(vector, where="label=half")
    assert asked
    asked.clear()
    large.search_vectors(vector, where="label=percent")
    assert not asked


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_filters_go_with_exact_and_distinct(large: Index, exact: bool, distinct: bool) -> None:
    stored = Stored(large)
    vector = stored.vectors[5:6]
    conditions = ["label=half,percent", "uri^=half/0,percent/0"]
    (result,) = large.search_vectors(vector, 20, exact=exact, distinct=distinct, where=conditions)
    found = {int(neighbor.uri[-9:-4]) for neighbor in result.neighbors}
    among = np.flatnonzero(np.isin(stored.labels, ["half", "percent"]))  # every number is below 10,000
    assert len(found & nearest_of(stored.vectors, vector[0], among, 20)) >= (20 if exact else 19)


@given(data=st.data())
def test_answers_among_items_are_those_of_brute_force(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also for copies, for all items, for none, and where a search has to go deeper."""
    count = data.draw(st.integers(1, 60))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    contents = generator.integers(0, max(1, count // 2), count)
    vectors = generator.standard_normal((count, 4)).astype(np.float32)[contents]
    items = np.flatnonzero(generator.random(count) < data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    distinct = data.draw(st.booleans())
    k = data.draw(st.integers(1, 12))
    query = generator.standard_normal((1, 4)).astype(np.float32)
    ((found, distances),) = nearest_among(
        Brute(vectors),
        query,
        k,
        items,
        data.draw(st.sampled_from([None, 0, 1])),
        contents if distinct else None,
    )
    cosines = vectors @ query[0] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    expected = np.sqrt(np.maximum(0, 2 - 2 * cosines[items]))
    if distinct:
        expected = np.array([min(expected[contents[items] == c]) for c in np.unique(contents[items])])
        assert len(set(contents[found].tolist())) == len(found)
    assert set(found.tolist()) <= set(items.tolist())
    np.testing.assert_allclose(distances, np.sort(expected)[:k], atol=1e-3)


class Brute(ShardIndex):
    """A shard whose approximate search is exact, whatever its settings."""

    metric = "angular"

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def check(self) -> None:
        """Nothing can be wrong."""

    def search(self, query: np.ndarray, k: int, settings: object) -> tuple[np.ndarray, np.ndarray]:
        ((items, distances),) = self.nearest(query[np.newaxis], k)
        return items, distances


# --- with images


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("filters")
    write_photos(folder / "photos", image_bytes)
    for number in range(3):
        (folder / "photos/b" / f"copy {number}.png").write_bytes(image_bytes(0))
    settings = ["backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32", "pca.dims=8"]
    settings += ["engine.precision=float32", "publish.min_recall=0"]
    words = [word for value in settings for word in ("--set", value)]
    assert main(["build", "--input", str(folder / "photos"), "--output", str(folder / "index"), *words]) == 0
    return folder / "index"


def searched(capsys: pytest.CaptureFixture[str], *arguments: object) -> Sequence[dict[str, object]]:
    capsys.readouterr()
    assert main(["search", *map(str, arguments), "--json"]) == 0
    found: Sequence[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_takes_conditions(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = output.parent / "photos/a/00.png"
    (result,) = searched(capsys, output, photo, "--where", "label=b", "--where", "uri^=b/0,b/1")
    assert {n["uri"] for n in result["neighbors"]} == {f"b/{number:02}.png" for number in range(1, 12, 2)}  # type: ignore[attr-defined]


def test_the_query_and_its_copies_take_no_places_of_the_others(output: Path) -> None:
    """Copies of the query fulfill the condition in part; there are still as many answers as there can be."""
    photo = output.parent / "photos/a/00.png"
    index = Index.open(output)
    for distinct in (False, True):
        (result,) = index.search(photo, 6, exclude_self=True, distinct=distinct, where="label=b")
        assert {n.uri for n in result.neighbors} == {f"b/{number:02}.png" for number in range(1, 12, 2)}
        (result,) = index.search(photo, 5, exclude_self=True, distinct=distinct, where="label=a")
        assert len(result.neighbors) == 5


def test_where_nothing_matches_it_is_said(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = output.parent / "photos/a/00.png"
    assert main(["search", str(output), str(photo), "--where", "label=kecth"]) == 0
    assert "imgindex: no image of the index fulfills label=kecth" in capsys.readouterr().err


def test_a_mistake_is_told_before_anything_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(tmp_path / "no index"), "a.jpg", "--where", "lable=a"]) == 2
    assert "did you mean label?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--where", "label=a"], ["--combine"], ["--negative", "a.jpg"], ["--json", "--vectors"]]
)
def test_what_is_for_files_alone_is_refused_for_databases(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(tmp_path), "a.jpg", "--from", "qdrant", *flags]) == 2
    assert "is for the files of an index; leave it out with --from" in capsys.readouterr().err
