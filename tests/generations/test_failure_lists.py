"""A generation's lists of failures: each failure once, the same bytes whatever order it came in."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.pvalue import AsSingleton
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from imgindex.errors import DamagedError
from imgindex.generations.failure_lists import list_count_of, list_of, read_list, write_list
from imgindex.generations.transforms import WriteFailures
from imgindex.io import filesystem, written_files
from imgindex.records import Failure

FAILURES = st.builds(
    Failure,
    st.text(max_size=6),
    st.sampled_from(["list", "read", "decode"]),
    st.sampled_from(["empty", "truncated"]),
    st.text(max_size=6),
    st.none() | st.sampled_from(["aa", "bb"]),
)


@pytest.mark.parametrize(("failed", "lists"), [(0, 1), (1, 1), (65_536, 1), (65_537, 2), (10**7, 153)])
def test_lists_are_as_many_as_the_failures_need(failed: int, lists: int) -> None:
    assert list_count_of(failed) == lists


@given(failures=st.lists(FAILURES, max_size=20), data=st.data())
def test_bytes_do_not_depend_on_the_order(
    tmp_path_factory: pytest.TempPathFactory, failures: list[Failure], data: Any
) -> None:
    first, again = (str(tmp_path_factory.mktemp(name)) for name in ("first", "again"))
    written = write_list(first, 0, 1, failures)
    assert write_list(again, 0, 1, data.draw(st.permutations(failures))) == written
    assert written.problems == ()
    lines = (Path(first) / written.file.path).read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    rows = [json.loads(line) for line in lines]
    assert [row["uri"] for row in rows] == sorted(failure.uri for failure in failures)
    key = json.dumps
    assert sorted(rows, key=key) == sorted(map(asdict, failures), key=key)
    counts: dict[str, int] = {}
    for failure in failures:
        reason = f"{failure.stage}/{failure.reason}"
        counts[reason] = counts.get(reason, 0) + 1
    assert written.by_reason == counts
    found = sorted(read_list(written_files.placed(first, written.file)), key=str)
    assert found == sorted(((failure.uri, failure.sha256) for failure in failures), key=str)


def test_a_list_that_is_not_as_it_was_written(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure("a.jpg", "decode", "empty", "it is empty", "aa")
    written = write_list(place, 1, 3, [failure])
    assert (written.file.path, written.problems) == ("failures/failures-00001-of-00003.jsonl", ())
    path = filesystem.join(place, written.file.path)
    filesystem.write_bytes(path, filesystem.read_bytes(path).replace(b"a.jpg", b"b.jpg"))
    with pytest.raises(DamagedError, match="has other bytes"):
        list(read_list(written_files.placed(place, written.file)))
    monkeypatch.setattr(filesystem, "write_bytes", lambda path, data: None)
    (problem,) = write_list(f"{place}/other", 1, 3, [failure]).problems
    assert problem.startswith(f"{place}/other/failures/failures-00001-of-00003.jsonl cannot be read")


@pytest.mark.parametrize("count", [0, 1, 50])
def test_every_list_is_written_also_one_that_is_empty(count: int, tmp_path: Path) -> None:
    failures = [Failure(f"{number}.jpg", "read", "vanished", "gone") for number in range(count)]
    expected = [
        write_list(f"{tmp_path}/plain", number, 4, [one for one in failures if list_of(one, 4) == number])
        for number in range(4)
    ]

    def check(written: list[Any]) -> None:
        assert sorted(written, key=lambda listed: listed.file.path) == expected

    with beam.Pipeline(runner=FnApiRunner()) as p:
        lists = AsSingleton(p | "Count" >> beam.Create([4]))
        failed = p | "Failed" >> beam.Create(failures[::-1]) | beam.Reshuffle()
        assert_that(failed | WriteFailures(f"{tmp_path}/beam", lists), check)
    assert sum(sum(listed.by_reason.values()) for listed in expected) == count
