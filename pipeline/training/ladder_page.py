"""The page of a ladder."""

from collections.abc import Callable, Iterator

from imgindex.evaluation.report import charts
from imgindex.evaluation.report.fragments import STYLE, beside, paragraph, section, table, terms
from imgindex.search.page_frame import document
from imgindex.training.ladder_results import RUNGS, UNTRAINED, LadderRun, TrainingLadder
from imgindex.training.ladder_tables import images_of, run_rows, rung_rows, seeds_of
from imgindex.training.page import METHODS


def ladder_page(ladder: TrainingLadder) -> str:
    """A self-contained HTML page of a ladder: its table, charts of it, and every run."""
    facts = [
        ("Folder", ladder.directory),
        ("Base", f"{ladder.base} ({ladder.weights})"),
        ("Classes", f"{ladder.classes:,}"),
        ("Images", images_of(ladder)),
        ("Image size", f"{ladder.image_size} x {ladder.image_size} pixels, {ladder.resize}"),
        ("Pooling", ladder.pooling),
        ("Augmentation", ladder.augment or "each method's own"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in ladder.versions.items())),
    ]
    parts = [*_methods(ladder), *_runs(ladder)]
    return document("What each way to train gives", facts, "\n".join(parts), style=STYLE)


def _methods(ladder: TrainingLadder) -> Iterator[str]:
    text = (
        f"Every method has the same split of the images, that of {seeds_of(ladder)}."
        if len(ladder.seeds) == 1
        else f"Each of the {seeds_of(ladder)} draws a split, which is the same for every method. The table "
        "has the mean and the standard deviation of the seeds."
    )
    k, best = ladder.k, ladder.best_p_at_k()
    reachable = "" if best is None or best == 1 else f" With these classes it is at most {100 * best:.2f} %."
    meanings = {
        UNTRAINED: "the base as it is. It has no classifier, so it has no accuracy.",
        **METHODS,
        "accuracy": "the share of the test images that are classified right.",
        f"P@{k}": f"the share of a test image's {k} nearest, in an index of the test images alone, that have "
        f"its class.{reachable}",
        "mAP@R": "how far the other test images of the class come before all others: 100 % if none of "
        "another class is nearer.",
        "trained parameters": "how many of the numbers in the network the training changed.",
    }
    drawn = [
        _chart(ladder, "accuracy", lambda run: run.accuracy, None),
        _chart(ladder, f"P@{k}", lambda run: run.retrieval.p_at_k if run.retrieval else None, best),
    ]
    yield section(
        "The methods",
        paragraph(text),
        terms(meanings),
        beside(*drawn),
        beside(table(rung_rows(ladder), "The methods")),
    )


def _chart(
    ladder: TrainingLadder, name: str, value: Callable[[LadderRun], float | None], best: float | None
) -> str:
    groups: dict[str, list[float]] = {}
    for method in RUNGS:
        values = [value(run) for run in ladder.runs if run.method == method]
        known = [100 * each for each in values if each is not None]
        if known:
            groups[method] = known
    if not groups:
        return ""
    means = "; ".join(f"{method} {sum(values) / len(values):.1f}" for method, values in groups.items())
    return charts.by_group(
        groups,
        f"{name} in %",
        f"{name} in % by method, the mean of the seeds: {means}",
        top=None if best is None or best == 1 else 100 * best,
    )


def _runs(ladder: TrainingLadder) -> Iterator[str]:
    text = (
        "Each model lies in the ladder's folder, with a card and a page of its own. Any of them can be the "
        "backbone of a build."
    )
    yield section("Every run", paragraph(text), beside(table(run_rows(ladder), "Every run")))
