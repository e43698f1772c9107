"""The picture of a comparison, and the part of the page that it stands in."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from outputs import publish_features
from webpages import Page

from imgindex.evaluation.evaluate import evaluate_in
from imgindex.evaluation.report.compare_chart import compare_chart
from imgindex.evaluation.report.evaluation_page import evaluation_page
from imgindex.evaluation.results import Candidate

ROWS = [
    Candidate("annoy", "Annoy", {}, {}, recall_at_10=0.5, queries_per_second=9000.0, pareto=True),
    Candidate("annoy", "Annoy", {}, {}, recall_at_10=0.4, queries_per_second=100.0),
    Candidate("voyager", "Voyager", {}, {}, recall_at_10=1.0, queries_per_second=70.0, pareto=True),
    Candidate("scann", "ScaNN", {}, {}, note="not installed"),
]


def test_it_names_the_families_that_were_measured_and_takes_the_colors_of_the_page() -> None:
    svg = compare_chart(ROWS)
    root = ElementTree.fromstring(svg)
    assert (root.tag, root.attrib["role"]) == ("svg", "img")
    texts = {"".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")}
    assert {"annoy", "voyager", "Pareto front", "recall@10"} <= texts
    assert "scann" not in texts
    assert root.attrib["aria-label"].endswith("at best 9,000 at recall 0.500; 70 at recall 1.000")
    assert "var(--ink)" in svg
    assert compare_chart(ROWS) == svg


def test_there_is_none_without_figures() -> None:
    assert compare_chart(ROWS[3:]) == ""


def test_the_page_shows_the_picture_the_rows_and_what_failed(tmp_path: Path) -> None:
    publish_features(tmp_path, np.eye(8, dtype=np.float32), [f"{n % 2}/{n}.jpg" for n in range(8)])
    found, images = evaluate_in(tmp_path, dims=[2])
    page = Page(evaluation_page(replace(found, compare=tuple(ROWS)), images))
    page.assert_self_contained()
    page.assert_accessible()
    assert "scann: not installed" in page.markup
    assert any("recall@10 against" in svg.get("aria-label", "") for svg in page.named("svg"))
