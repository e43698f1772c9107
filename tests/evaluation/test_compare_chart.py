"""The picture of a comparison is an SVG element that reads without a page of its own."""

from xml.etree import ElementTree

from imgindex.evaluation.compare_chart import compare_chart
from imgindex.evaluation.results import Candidate

ROWS = [
    Candidate("annoy", "Annoy", {}, {}, recall_at_10=0.5, queries_per_second=9000.0, pareto=True),
    Candidate("annoy", "Annoy", {}, {}, recall_at_10=0.4, queries_per_second=100.0),
    Candidate("voyager", "Voyager", {}, {}, recall_at_10=1.0, queries_per_second=70.0, pareto=True),
    Candidate("scann", "ScaNN", {}, {}, note="not installed"),
]


def test_it_names_the_families_that_were_measured_and_takes_the_color_of_the_text() -> None:
    svg = compare_chart(ROWS)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")}
    assert {"annoy", "voyager", "Pareto front", "recall@10"} <= texts
    assert "scann" not in texts
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert compare_chart(ROWS) == svg


def test_there_is_none_without_figures() -> None:
    assert compare_chart(ROWS[3:]) == ""
