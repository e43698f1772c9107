"""A ladder as tables, for a terminal and for its page."""

from collections.abc import Iterator, Sequence

from imgindex.evaluation.tables import percent
from imgindex.models.training.results import PARTS
from imgindex.text import counted, printable
from imgindex.training.ladder_results import Figure, TrainingLadder

Rows = list[tuple[str, ...]]


def as_text(ladder: TrainingLadder) -> str:
    """The ladder as a table, with what its figures are."""
    return "\n".join(_lines(ladder))


def _lines(ladder: TrainingLadder) -> Iterator[str]:
    yield printable(f"{ladder.directory}: {counted(ladder.classes, 'class', 'classes')}, {images_of(ladder)}")
    yield printable(
        f"{ladder.base} ({ladder.weights}), {ladder.image_size} pixels, {seeds_of(ladder)}"
        f"{': the mean and the standard deviation' if len(ladder.seeds) > 1 else ''}"
    )
    rows = rung_rows(ladder)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        cells = [first, *(cell.strip().rjust(len(cell)) for cell in others)]
        yield ("  " + "  ".join(cells)).rstrip()
    yield from (f"  {line}" for line in meanings(ladder))


def images_of(ladder: TrainingLadder) -> str:
    """The sizes of the parts, as 480 train, 60 validation and 60 test images."""
    *first, last = (f"{ladder.split[part]:,} {part}" for part in PARTS)
    return f"{', '.join(first)} and {last} images"


def seeds_of(ladder: TrainingLadder) -> str:
    """As seeds 0, 1, 2."""
    return f"{'seed' if len(ladder.seeds) == 1 else 'seeds'} {', '.join(map(str, ladder.seeds))}"


def rung_rows(ladder: TrainingLadder) -> Rows:
    """A method a row, below a row of headings."""
    rows = [
        (
            rung.method,
            _share(rung.accuracy),
            _share(rung.p_at_k),
            _share(rung.map_at_r),
            _seconds(rung.seconds),
            "-" if rung.trainable_parameters is None else f"{rung.trainable_parameters:,}",
        )
        for rung in ladder.rungs()
    ]
    return [("method", "accuracy", f"P@{ladder.k}", "mAP@R", "seconds", "trained parameters"), *rows]


def run_rows(ladder: TrainingLadder) -> Rows:
    """A run a row, below a row of headings."""
    rows = [
        (
            f"{run.method}, seed {run.seed}",
            "-" if run.accuracy is None else percent(run.accuracy),
            "-" if run.retrieval is None else percent(run.retrieval.p_at_k),
            "-" if run.retrieval is None else percent(run.retrieval.map_at_r),
            "-" if run.seconds is None else f"{run.seconds:,.0f}",
            "-" if run.epochs is None else f"{run.best_epoch} of {run.epochs}",
            run.model or "",
        )
        for run in ladder.runs
    ]
    return [("run", "accuracy", f"P@{ladder.k}", "mAP@R", "seconds", "best epoch", "model"), *rows]


def meanings(ladder: TrainingLadder) -> Sequence[str]:
    """What the figures are, a line each."""
    best = ladder.best_p_at_k()
    lines = [
        "accuracy: the share of the test images that are classified right; the base has no classifier",
        f"P@{ladder.k}: the share of a test image's {ladder.k} nearest, in an index of the test images, that "
        "have its class",
    ]
    if best is None:
        lines.append(f"P@{ladder.k} was not measured: no two test images share a class")
    elif best < 1:
        lines.append(
            f"P@{ladder.k} is at most {percent(best)}: most classes have at most {ladder.k} test images"
        )
    lines.append("mAP@R: 100 % if no test image of another class is nearer than one of its own")
    return lines


def _share(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    spread = "" if figure.deviation is None else f" ± {100 * figure.deviation:.2f}"
    return f"{percent(figure.mean)}{spread}"


def _seconds(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    spread = "" if figure.deviation is None else f" ± {figure.deviation:,.0f}"
    return f"{figure.mean:,.0f}{spread}"
