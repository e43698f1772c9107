"""The page of an evaluation."""

from collections.abc import Iterator
from pathlib import Path

from imgindex.evaluation import tables
from imgindex.evaluation.collection import Images
from imgindex.evaluation.report import charts
from imgindex.evaluation.report.compare_chart import compare_chart
from imgindex.evaluation.report.fragments import STYLE, details, items, paragraph, section, table
from imgindex.evaluation.report.neighborhoods import look_around
from imgindex.evaluation.report.pictures import choose, picture_sections
from imgindex.evaluation.results import Evaluation
from imgindex.io.paths import write_text
from imgindex.search.page_frame import document
from imgindex.text import counted

# Labels that are shown at once, from each end, and those that are shown at all.
_LABELS, _MOST_LABELS = 8, 1000
# Pictures in all; each takes some 5 KiB.
_PICTURES, _PICTURES_OF_MAP = 250, 60
_SECONDS = 20.0


def write_evaluation(path: Path, found: Evaluation, images: Images) -> None:
    """Writes `evaluation_page` to a file. Raises OutputError."""
    write_text(path, evaluation_page(found, images))


def evaluation_page(found: Evaluation, images: Images) -> str:
    """A self-contained HTML page of an evaluation of `images`, with thumbnails of those that can be read."""
    labels = (
        sorted(found.quality.per_label, key=lambda each: (each.p_at_k, each.label)) if found.quality else []
    )
    chosen = choose(look_around(images, found.seed), [each.label for each in labels], _PICTURES_OF_MAP)
    pictures = picture_sections(chosen, _PICTURES, _SECONDS)
    parts = [*_quality(found), *pictures[:1], *_advice(found), *_ladder(found), *_sweep(found)]
    parts += [*_unseen(found), *_compare(found), *pictures[1:]]
    facts = [
        ("Index", found.output),
        ("Generation", found.generation),
        ("Images", f"{found.images:,}, of which {found.distinct:,} distinct"),
        ("Vectors", f"{found.dims} dimensions, {found.metric}"),
        ("Sample", f"{counted(found.queries, 'query', 'queries')}, seed {found.seed}"),
    ]
    if found.quality is not None:
        facts.insert(2, (f"P@{found.k}", tables.percent(found.quality.p_at_k.micro)))
    return document("How good this index is", facts, "\n".join(parts), style=STYLE)


def _quality(found: Evaluation) -> Iterator[str]:
    quality = found.quality
    if quality is None:
        text = "Not measured: no two images share a label, which is the name of the folder that they lie in."
        yield section("Quality by label", paragraph(text))
        return
    facts = [counted(quality.queries, "query", "queries"), counted(quality.labels, "label")]
    if quality.single_image_labels:
        facts.append(f"{counted(quality.single_image_labels, 'label')} with a single image left out")
    if quality.images_without_label:
        facts.append(f"{counted(quality.images_without_label, 'image')} without a label")
    text = (
        f"How well the images of a label find each other by exact search: {', '.join(facts)}. "
        f"P@{quality.k} is the share of the {quality.k} nearest neighbors that have the query's label."
    )
    ordered = sorted(quality.per_label, key=lambda each: (each.p_at_k, each.label))
    short = len(ordered) <= 2 * _LABELS
    shown = ordered if short else [*ordered[:_LABELS], *ordered[-_LABELS:]]
    parts = [
        paragraph(text),
        table(tables.mean_rows(quality), "Means"),
        table(tables.label_rows(shown, quality.k), "Labels"),
    ]
    if not short:
        between = ordered[_LABELS:-_LABELS][:_MOST_LABELS]
        title = f"{counted(len(between), 'label')} in between"
        parts.append(details(title, table(tables.label_rows(between, quality.k), title)))
    yield section("Quality by label", *parts)


def _advice(found: Evaluation) -> Iterator[str]:
    if found.advice:
        yield section("Advice", items([advice.text for advice in found.advice]))
    else:
        yield section("Advice", paragraph("None of the settings that were tried gains anything."))


def _ladder(found: Evaluation) -> Iterator[str]:
    timed = [
        charts.Point(rung.ms_per_query, value, rung.method)
        for rung in found.ladder
        for value in [rung.recall_at_10]
        if rung.ms_per_query and value is not None
    ]
    chart = ""
    if timed:
        alt = "; ".join(f"{point.name}: recall@10 {point.y:.3f} in {point.x:.3f} ms" for point in timed)
        chart = charts.points(timed, ("milliseconds a query", "recall@10"), alt)
    text = (
        f"Ways to search, with {counted(found.queries, 'query', 'queries')}; times are of single queries "
        "on one thread. recall@10 is the share of the ten nearest images by features that a method finds."
    )
    notes = [f"{rung.method}: {rung.note}" for rung in found.ladder if rung.note]
    yield section(
        "The ladder",
        paragraph(text),
        f'<div class="charts">{chart}</div>' if chart else "",
        table(tables.ladder_rows(found), "The ladder"),
        items(notes) if notes else "",
    )


def _sweep(found: Evaluation) -> Iterator[str]:
    points = [point for point in found.sweep if point.whiten == 0]
    dims = [float(point.dims) for point in points]
    name = "pca.dims"
    drawn = []
    if len(points) > 1:
        precisions = [100 * point.p_at_k for point in points if point.p_at_k is not None]
        if precisions:
            best = f"P@{found.k} by dimensions, at best {max(precisions):.1f} %"
            drawn.append(charts.line(dims, precisions, (name, f"P@{found.k}, %"), best, float(found.dims)))
        for values, what in (
            ([point.recall_at_10 for point in points], "recall@10"),
            ([100 * point.explained_variance for point in points], "explained variance, %"),
        ):
            alt = f"{what} by dimensions, {values[0]:.4g} to {values[-1]:.4g}"
            drawn.append(charts.line(dims, values, (name, what), alt, float(found.dims)))
    text = (
        f"Exact search with other PCA settings, with {counted(found.queries, 'query', 'queries')}: other "
        "numbers of dimensions, and vectors that are whitened in part."
    )
    yield section(
        "Dimensions and whitening",
        paragraph(text),
        f'<div class="charts">{"".join(drawn)}</div>' if drawn else "",
        table(tables.sweep_rows(found), "Dimensions and whitening"),
    )


def _unseen(found: Evaluation) -> Iterator[str]:
    unseen = found.unseen_recall
    if unseen is None:
        return
    low, high = unseen.interval
    yield section(
        "Recall of unseen queries",
        paragraph(
            f"Annoy finds {unseen.recall:.3f} of the ten nearest vectors of images that are not in the index "
            f"(95 % interval {low:.3f} to {high:.3f}, {counted(unseen.queries, 'query', 'queries')}), and "
            f"{unseen.seen:.3f} of images that are."
        ),
    )


def _compare(found: Evaluation) -> Iterator[str]:
    if not found.compare:
        return
    text = (
        f"Indexes of several libraries in the vectors of {found.dims} dimensions, on one thread. Those with "
        "a * are on the Pareto front: no other one has as much recall and is as quick."
    )
    notes = tables.compare_notes(found)
    yield section(
        "Libraries",
        paragraph(text),
        f'<div class="charts">{compare_chart(found.compare)}</div>',
        table(tables.compare_rows(found), "Libraries"),
        items(notes) if notes else "",
    )
