"""The charts of pages: what their axes show."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.evaluation.report import charts
from imgindex.evaluation.report.compare_chart import ladder_chart
from imgindex.evaluation.results import Rung


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(each.itertext()).strip() for each in root.iter() if each.tag.endswith("text")]


def numbers(svg: str) -> list[float]:
    found = []
    for text in texts(svg):
        try:
            found.append(float(text.replace(",", "")))
        except ValueError:
            continue
    return found


@pytest.mark.parametrize(
    ("values", "top"), [([0.2, 0.9, 1.0], 1.0), ([1.0, 1.0, 1.0], 1.0), ([3, 99, 100], 100)]
)
def test_no_axis_of_shares_goes_beyond_all(values: list[float], top: float) -> None:
    svg = charts.line([2e5, 4e5, 8e5], values, ("x", "y"), "alt", top=top)
    assert max(number for number in numbers(svg) if number <= 1000) == top


def test_cosines_end_at_one_though_rounding_may_not() -> None:
    svg = charts.cosines(np.array([0.2, 0.5, 1.0000001], np.float32), ("x", "y"), "alt")
    assert "1.0" in texts(svg)
    assert not {"1.1", "1.2"} & {*texts(svg)}


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_scale_of_recall_keeps_the_order_and_is_undone(one: float, other: float) -> None:
    low, high = sorted([one, other])
    assert charts._stretched(low) <= charts._stretched(high)
    assert charts._shrunk(charts._stretched(one)) == pytest.approx(one, abs=1e-9)


def test_points_of_one_place_do_not_write_over_each_other() -> None:
    rungs = [Rung(name, 2, recall_at_10=1.0, queries_per_second=100.0) for name in ("exact", "Annoy")]
    assert {"exact", "Annoy"} <= {*texts(ladder_chart((*rungs, Rung("untimed", 2))))}
    assert "untimed" not in ladder_chart((*rungs, Rung("untimed", 2)))
    assert ladder_chart([Rung("untimed", 2)]) == ""
