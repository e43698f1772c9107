"""A ladder of trainings as text, as JSON and as a page."""

import json
import statistics
from dataclasses import replace

import pytest
from webpages import Page

from imgindex.training.ladder_page import ladder_page
from imgindex.training.ladder_results import RUNGS, LadderRun, Retrieval, TrainingLadder
from imgindex.training.ladder_tables import as_text

ACCURACY = {"scratch": 0.25, "transfer": 0.9, "finetune": 0.95, "init": 0.94}
HOSTILE = '"><script>alert(1)</script>\x1b[31m'


def run(method: str, seed: int, best: float) -> LadderRun:
    found = Retrieval(best * 0.9 - 0.01 * seed, best, 0.8)
    if method == "untrained":
        return LadderRun(method, seed, retrieval=found)
    return LadderRun(
        method=method,
        seed=seed,
        accuracy=ACCURACY[method] - 0.02 * seed,
        retrieval=found,
        seconds=100 + 10 * seed,
        parameters=2_283_604,
        trainable_parameters=25_620,
        epochs=30,
        best_epoch=22,
        model=f"seed{seed}/{method}.keras",
        sha256="ab" * 32,
    )


def ladder(*seeds: int, best: float = 0.5) -> TrainingLadder:
    return TrainingLadder(
        directory="photos",
        base="MobileNetV2",
        weights="bundled",
        image_size=160,
        pooling="avg",
        resize="stretch",
        augment=None,
        classes=20,
        split={"train": 480, "validation": 60, "test": 60},
        seeds=seeds,
        k=4,
        runs=tuple(run(method, seed, best) for seed in seeds for method in RUNGS),
        versions={"keras": "3.15.0"},
    )


def page_of(found: TrainingLadder) -> Page:
    page = Page(ladder_page(found))
    page.assert_self_contained()
    page.assert_accessible()
    return page


def test_the_figures_of_several_seeds_are_mean_and_standard_deviation() -> None:
    rungs = {rung.method: rung for rung in ladder(0, 1, 2).rungs()}
    assert list(rungs) == ["untrained", "scratch", "transfer", "finetune", "init"]
    values = [0.95, 0.93, 0.91]
    accuracy = rungs["finetune"].accuracy
    assert accuracy is not None
    assert accuracy.mean == pytest.approx(statistics.mean(values))
    assert accuracy.deviation == pytest.approx(statistics.stdev(values))
    assert rungs["untrained"].accuracy is None
    assert rungs["untrained"].p_at_k is not None


def test_the_text_is_a_table_of_the_methods() -> None:
    text = as_text(ladder(0, 1, 2))
    assert text.splitlines()[:3] == [
        "photos: 20 classes, 480 train, 60 validation and 60 test images",
        "MobileNetV2 (bundled), 160 pixels, seeds 0, 1, 2: the mean and the standard deviation",
        "  method           accuracy             P@4           mAP@R   seconds  trained parameters",
    ]
    assert "  finetune   93.00 % ± 2.00  44.00 % ± 1.00  80.00 % ± 0.00  110 ± 10              25,620" in text
    assert "  untrained               -  44.00 % ± 1.00" in text
    assert "P@4 is at most 50.00 %" in text


def test_one_seed_has_no_deviation() -> None:
    found = ladder(3)
    assert "±" not in as_text(found)
    assert ", seed 3\n" in as_text(found)
    assert "±" not in page_of(found).text
    assert found.rungs()[1].accuracy.deviation is None


def test_a_limit_of_100_percent_is_not_said() -> None:
    assert "at most" not in as_text(ladder(0, best=1.0))
    assert "at most" not in page_of(ladder(0, best=1.0)).text


def test_what_was_not_measured_is_said() -> None:
    found = ladder(0)
    found = replace(found, runs=tuple(replace(run, retrieval=None) for run in found.runs))
    assert "P@4 was not measured: no two test images share a class" in as_text(found)
    assert len([svg for svg in page_of(found).named("svg") if svg.get("class") == "chart"]) == 1
    assert found.as_json()["best_p_at_k"] is None


def test_the_page_has_the_table_charts_and_every_run() -> None:
    page = page_of(ladder(0, 1))
    assert page.headings() == ["The methods", "Every run"]
    accuracy, precision = (svg["aria-label"] for svg in page.named("svg") if svg.get("class") == "chart")
    assert accuracy.startswith("accuracy in % by method")
    assert "untrained" not in accuracy
    assert "untrained 44.5" in precision
    for text in (
        "94.00 % ± 1.41",
        "seed1/init.keras",
        "22 of 30",
        "With these classes it is at most 50.00 %",
    ):
        assert text in page.text


def test_names_are_text_wherever_they_stand() -> None:
    found = replace(ladder(0), directory=HOSTILE, base=HOSTILE)
    assert "<script>alert(1)" in page_of(found).text
    assert "\x1b" not in as_text(found)


def test_the_shape_of_the_json_is_that_of_its_version() -> None:
    """Whoever reads it relies on these names: they change with `schema_version` alone."""
    found = json.loads(json.dumps(ladder(0, 1).as_json(), allow_nan=False))
    assert found["generator"] == "imgindex"
    assert found["schema_version"] == 1
    assert set(found) == {
        "generator", "schema_version", "directory", "base", "weights", "image_size", "pooling", "resize",
        "augment", "classes", "split", "seeds", "k", "runs", "versions", "rungs", "best_p_at_k",
    }  # fmt: skip
    assert set(found["rungs"][0]) == {
        "method", "accuracy", "p_at_k", "map_at_r", "seconds", "trainable_parameters",
    }  # fmt: skip
    assert found["rungs"][0]["accuracy"] is None
    assert set(found["rungs"][1]["accuracy"]) == {"mean", "deviation"}
    assert set(found["runs"][0]) == {
        "method", "seed", "accuracy", "retrieval", "seconds", "parameters", "trainable_parameters", "epochs",
        "best_epoch", "model", "sha256",
    }  # fmt: skip
    assert set(found["runs"][0]["retrieval"]) == {"p_at_k", "best_p_at_k", "map_at_r"}
