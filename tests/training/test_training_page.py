"""The page of a training."""

import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import classification_report
from webpages import Page

from imgindex.models.training.results import Epoch, TrainingResult
from imgindex.training.confusion_matrix import MOST_CLASSES
from imgindex.training.page import training_page

HOSTILE = "\"><script>alert(1)</script>&amp;<img src=x onerror='a'>"


def result(confusion: list[list[int]], names: list[str] | None = None, epochs: int = 6) -> TrainingResult:
    """A training whose test images are classified as `confusion` [actual][predicted] says."""
    classes = tuple(names or [f"class {number}" for number in range(len(confusion))])
    return TrainingResult(
        method="finetune",
        base="MobileNetV2",
        weights="bundled",
        image_size=160,
        pooling="avg",
        resize="stretch",
        augment="light",
        seed=7,
        classes=classes,
        split={
            "train": dict.fromkeys(classes, 24),
            "validation": dict.fromkeys(classes, 2),
            "test": {name: sum(row) for name, row in zip(classes, confusion, strict=True)},
        },
        epochs=tuple(Epoch(n, 2 / n, 1 - 0.5 / n, 2.5 / n, 1 - 0.6 / n, 1.5) for n in range(1, epochs + 1)),
        best_epoch=min(4, epochs),
        accuracy={"train": 1.0, "validation": 0.85, "test": float(np.trace(confusion) / np.sum(confusion))},
        confusion=tuple(map(tuple, confusion)),
        parameters=2_283_604,
        trainable_parameters=1_542_336,
        seconds=123.4,
        versions={"imgindex": "0.1.0", "keras": "3.15.0"},
        sha256="ab" * 32,
    )


def page_of(found: TrainingResult) -> Page:
    page = Page(training_page(found))
    page.assert_self_contained()
    page.assert_accessible()
    return page


def table(page: Page, caption: str) -> list[list[str]]:
    """The cells of the table of this caption, a list for each row."""
    markup = page.markup.partition(f'aria-label="{caption}"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", markup)
    return [re.findall(r"<bdi>(.*?)</bdi>", row) for row in rows]


THREE = [[8, 1, 1], [0, 10, 0], [4, 0, 6]]


def test_the_page_shows_all_that_was_found() -> None:
    page = page_of(result(THREE))
    assert page.headings() == ["How the training went", "What is confused", "Classes and split", "Settings"]
    assert len([svg for svg in page.named("svg") if svg.get("class") == "chart"]) == 2
    for text in (
        "24 of 30 test images are classified right",
        "Accuracy on test images80.00 %",
        "The weights of epoch 4 were kept",
        "2,283,604, of which 1,542,336 were trained",
        "160 x 160 pixels",
        "keras 3.15.0",
        "ab" * 32,
    ):
        assert text in page.text


def test_the_curves_have_both_parts_and_the_best_epoch() -> None:
    page = page_of(result(THREE))
    loss, accuracy = (svg["aria-label"] for svg in page.named("svg") if svg.get("class") == "chart")
    assert loss == "Loss by epoch: best epoch 4 of 6, validation 0.625"
    assert accuracy == "Accuracy by epoch: best epoch 4 of 6, validation 85.00 %"
    for svg in re.findall(r'<svg class="chart".*?</svg>', page.markup, re.S):
        assert {"train", "validation", "best", "epoch"} <= set(re.findall(r">([a-z]+)</text>", svg))
    rows = table(page, "Epochs")
    assert [row[0] for row in rows[1:]] == ["1", "2", "3", "4 (best)", "5", "6"]
    assert rows[2][1:3] == ["1.0000", "75.00 %"]


def test_pairs_that_are_confused_are_a_table_too() -> None:
    assert table(page_of(result(THREE)), "Most confused")[1:] == [
        ["class 2", "class 0", "4", "40.00 %"],
        ["class 0", "class 1", "1", "10.00 %"],
        ["class 0", "class 2", "1", "10.00 %"],
    ]


def test_every_square_of_the_matrix_says_what_it_counts() -> None:
    markup = page_of(result(THREE)).markup
    for said in (
        "8 of 10 images of class 0: right",
        "4 of 10 images of class 2: taken for class 0",
    ):
        assert f"<g><title>{said}</title>" in markup
    assert not [said for said in re.findall(r"<g><title>(.*?)</title>", markup) if said.startswith("0 ")]
    matrix = markup.partition('<div class="matrix"')[2].partition("</svg>")[0]
    assert matrix.count("<rect") == 6  # as many as there are counts above zero
    assert sorted(map(int, re.findall(r">(\d+)</text>", matrix))) == [1, 1, 4, 6, 8, 10]


def test_recall_and_precision_are_those_of_scikit_learn() -> None:
    rows = {row[0]: row[4:] for row in table(page_of(result(THREE)), "Classes and split")[1:]}
    actual = np.repeat([0, 1, 2], 10)
    predicted = np.concatenate([np.repeat([0, 1, 2], row) for row in THREE])
    report = classification_report(actual, predicted, output_dict=True)
    assert rows == {
        f"class {n}": [f"{100 * report[str(n)][name]:.2f} %" for name in ("recall", "precision")]
        for n in range(3)
    }
    assert list(rows) == ["class 2", "class 0", "class 1"]  # the worst first


@pytest.mark.parametrize("classes", [2, 30, 100, 250])
def test_the_matrix_is_bounded(classes: int) -> None:
    confusion = np.eye(classes, dtype=int) * 3
    confusion[0, -1] = 2
    page = page_of(result(confusion.tolist()))
    matrix = page.markup.partition('<div class="matrix"')[2].partition("</svg>")[0]
    shown = min(classes, MOST_CLASSES)
    assert matrix.count("<rect") == shown + 1  # those that are confused are among them
    assert (f"It shows the {MOST_CLASSES} of {classes} classes" in page.text) == (classes > MOST_CLASSES)
    (box,) = re.findall(r'viewBox="0 0 (\d+) \d+"', matrix)
    assert int(box) <= 1240  # as wide as a page is


def test_a_thousand_classes_that_are_all_confused_have_a_page() -> None:
    confusion = np.roll(np.eye(1000, dtype=int), 1, axis=1)
    assert len(page_of(result(confusion.tolist())).markup) < 1_500_000


def test_no_mistake_is_said_in_words() -> None:
    page = page_of(result([[3, 0], [0, 3]]))
    assert "No test image is wrong." in page.text
    assert "Most confused" not in page.markup


def test_a_class_without_test_images_has_no_figures() -> None:
    page = page_of(result([[3, 0], [0, 0]]))
    assert ["class 1", "24", "2", "0", "-", "-"] in table(page, "Classes and split")


def test_one_epoch_has_its_curves() -> None:
    assert "best epoch 1 of 1" in page_of(result(THREE, epochs=1)).markup


def test_names_are_text_wherever_they_stand() -> None:
    names = [f"{HOSTILE}{n}" for n in range(2)] + ["\udcff" * 40]
    page = page_of(replace(result(THREE, names), base=HOSTILE))
    assert "<script>alert(1)" in page.text
    assert not page.named("img")


def test_the_same_training_gives_the_same_page() -> None:
    page = training_page(result(THREE))
    assert page == training_page(result(THREE))
    assert "prefers-color-scheme: dark" in page
    assert all("fill: #" not in svg and "stroke: #" not in svg for svg in page.split("<svg")[1:])
