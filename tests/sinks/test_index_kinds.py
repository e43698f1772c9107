"""How inverted files are divided: the advice of pgvector's README."""

import pytest

from imgindex.sinks.databases.index_kinds import lists_of, probes_of


@pytest.mark.parametrize(
    ("rows", "lists"), [(0, 1), (999, 1), (60_000, 60), (1_000_000, 1000), (4_000_000, 2000)]
)
def test_a_list_for_each_thousand_rows_and_the_square_root_above_a_million(rows: int, lists: int) -> None:
    assert lists_of(rows) == lists


@pytest.mark.parametrize(("lists", "probes"), [(1, 1), (2, 2), (100, 20), (1000, 64)])
def test_a_search_looks_through_twice_the_square_root_of_them(lists: int, probes: int) -> None:
    assert probes_of(lists) == probes
