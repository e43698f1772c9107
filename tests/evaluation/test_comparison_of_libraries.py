"""Libraries are compared in processes of their own: what they find and take, and how they may fail."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outputs import publish_features

import imgindex
from imgindex.cli import main
from imgindex.errors import UsageError
from imgindex.evaluation.collection import read_collection
from imgindex.evaluation.comparison import Comparison, Limits, families_named
from imgindex.evaluation.pareto import pareto_front
from imgindex.evaluation.results import Candidate
from imgindex.evaluation.sampling import some_of
from imgindex.models.ann.families import FAMILIES, Family

COUNT, FEATURE_DIM, DIMS = 300, 16, 6


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    rows = np.random.default_rng(3).random((COUNT, FEATURE_DIM), np.float32)
    digests = [f"{n:064x}" for n in range(COUNT)]
    rows[7], digests[7] = rows[0], digests[0]
    uris = [f"{n % 3}/{n}.jpg" for n in range(COUNT)]
    publish_features(folder, rows, uris, digests, dims=DIMS, metric="euclidean", shards=2)
    return folder


def family(name: str, *searches: Mapping[str, int], **changes: Any) -> Family:
    backend = f"misbehaving_libraries:{name}"
    made = Family("Test", "numpy", backend, lambda items, dims: (({"trees": 1}, searches or ({},)),))
    return replace(made, **changes)


def compare(
    output: Path, families: Mapping[str, Family], seconds: float = 60, memory: int = 1 << 32
) -> tuple[Candidate, ...]:
    collection = read_collection(output)
    return Comparison(collection, np.arange(0, COUNT, 7), families, Limits(seconds, memory)).run(lambda: None)


@pytest.fixture(autouse=True)
def children_find_the_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


def test_exact_search_finds_all_others_and_no_copies(output: Path) -> None:
    (row,) = compare(output, {"exact": family("Exact")})
    assert (row.recall_at_10, row.pareto, row.note) == (1.0, True, "")
    assert row.queries == len(range(0, COUNT, 7))
    assert row.bytes == 4 * COUNT * DIMS
    assert 0 < (row.ms_per_query or 0) <= (row.ms_p95 or 0) <= (row.ms_p99 or 0)
    assert (row.peak_memory or 0) > 10 << 20


@pytest.mark.parametrize(
    ("name", "limits", "note"),
    [
        ("NeverEnds", {"seconds": 3}, "stopped after 3 seconds"),
        ("TakesMemory", {"memory": 200 << 20}, "stopped when it took more than 200 MiB of memory"),
        ("Exits", {}, "ended with exit code 9: the last words"),
        ("Crashes", {}, "ended by SIGSEGV"),
        ("Refuses", {}, "RuntimeError: no such setting"),
        ("Nothing", {}, "AttributeError: module 'misbehaving_libraries' has no attribute 'Nothing'"),
    ],
)
def test_what_fails_is_a_row_that_says_so(name: str, limits: dict[str, Any], note: str, output: Path) -> None:
    (row,) = compare(output, {"bad": family(name)}, **limits)
    assert row.note == note
    assert (row.family, row.build, row.recall_at_10, row.pareto) == ("bad", {"trees": 1}, None, False)


@pytest.mark.long
def test_what_was_measured_before_the_end_stays(output: Path) -> None:
    searches = {"sleep": 0}, {"sleep": 60}
    quick, slow = compare(output, {"slow": family("Exact", *searches)}, seconds=5)
    assert quick.search == {"sleep": 0}
    assert quick.recall_at_10 is not None
    assert (slow.search, slow.recall_at_10, slow.note) == ({"sleep": 60}, None, "stopped after 5 seconds")


def test_what_is_not_installed_is_one_row_that_names_the_extra(output: Path) -> None:
    missing = replace(FAMILIES["faiss-hnsw"], package="no_such_module")
    (row,) = compare(output, {"faiss-hnsw": missing})
    assert row.note == "not installed; pip install 'imgindex[compare]'"


def test_names() -> None:
    assert list(families_named(["all"])) == list(FAMILIES)
    assert list(families_named(["voyager", "annoy"])) == ["annoy", "voyager"]
    assert list(families_named(["faiss"])) == [name for name in FAMILIES if name.startswith("faiss-")]
    with pytest.raises(UsageError, match="compare has 'fais'; expected all, faiss or names of annoy, "):
        families_named(["fais"])


def test_every_installed_library_is_measured(output: Path) -> None:
    """One index of each: of ScaNN, too, which other tests cannot load beside TensorFlow."""
    names = ["annoy", "faiss-flat", "scann", "voyager", "usearch", "kdtree"]

    def one(build: Any) -> Any:
        settings, searches = build
        return (settings, searches[-1:])

    first = {
        name: replace(family, trials=lambda *size, each=family: [one(each.trials(*size)[0])])
        for name, family in FAMILIES.items()
        if name in names
    }
    rows = compare(output, first)
    assert [row.family for row in rows] == names
    for row in rows:
        if row.note:
            assert row.note == "not installed; pip install 'imgindex[compare]'"
        else:
            assert (row.recall_at_10 or 0) >= 0.9, row


class TestCommand:
    def test_tables_and_json(self, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        written = tmp_path / "found.json"
        arguments = ["--dims", "2", "--compare", "annoy,faiss-flat", "--json", str(written)]
        assert main(["evaluate", str(output), *arguments]) == 0
        printed = capsys.readouterr().out
        rows = json.loads(written.read_text())["compare"]
        assert {row["family"] for row in rows} == {"annoy", "faiss-flat"}
        assert {"library", "recall_at_10", "queries_per_second", "peak_memory", "bytes"} <= set(rows[0])
        assert any(row["pareto"] for row in rows)
        assert "Libraries, in the vectors of 6 dimensions" in printed
        assert "search_k=400" in printed

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--compare", "anoy"], "compare has 'anoy'; expected all, faiss or names of annoy"),
            (["--compare", "annoy", "--compare_seconds", "0"], "compare_seconds is 0; expected more than 0"),
            (["--compare_seconds", "nan"], "compare_seconds is nan; expected more than 0"),
        ],
    )
    def test_mistakes(
        self, arguments: list[str], message: str, output: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["evaluate", str(output), *arguments]) == 2
        assert message in capsys.readouterr().err

    def test_nothing_is_compared_unless_asked(self, output: Path) -> None:
        assert imgindex.evaluate(output, dims=[2]).compare == ()


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda p: (float(p[0]), float(p[1]))))


@given(points)
def test_the_pareto_front_is_what_no_other_point_dominates(values: list[tuple[float, float]]) -> None:
    front = pareto_front(values)
    for point, on_front in zip(values, front, strict=True):
        dominated = any(a >= point[0] and b >= point[1] and (a, b) != point for a, b in values)
        assert on_front is not dominated


def test_queries_are_a_sample() -> None:
    few = np.arange(10)
    assert some_of(few, 1000, 1) is few
    many = some_of(np.arange(5000), 1000, 1)
    assert len(set(many.tolist())) == 1000
    assert (many == some_of(np.arange(5000), 1000, 1)).all()
