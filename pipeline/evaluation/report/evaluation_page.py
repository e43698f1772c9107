"""The page of an evaluation."""

from collections.abc import Iterator
from pathlib import Path

from imgindex.evaluation import tables
from imgindex.evaluation.collection import Images
from imgindex.evaluation.report import charts
from imgindex.evaluation.report.compare_chart import compare_chart, ladder_chart
from imgindex.evaluation.report.fragments import (
    STYLE,
    beside,
    broad,
    details,
    items,
    paragraph,
    section,
    table,
    terms,
)
from imgindex.evaluation.report.label_tables import label_tables
from imgindex.evaluation.report.neighborhoods import look_around
from imgindex.evaluation.report.pictures import choose, picture_sections
from imgindex.evaluation.results import Evaluation
from imgindex.io.asked_files import write_text
from imgindex.search.page_frame import document
from imgindex.text import counted, printable

# Pictures in all; each takes some 5 KiB.
_PICTURES, _PICTURES_OF_MAP = 250, 60
_SECONDS = 20.0


def write_evaluation(path: Path, found: Evaluation, images: Images) -> None:
    """Writes `evaluation_page` to a file. Raises OutputError."""
    write_text(path, evaluation_page(found, images))


def evaluation_page(found: Evaluation, images: Images) -> str:
    """A self-contained HTML page of an evaluation of `images`, with thumbnails of those that can be read."""
    chosen = choose(look_around(images, found.seed, found.k), found.quality, _PICTURES_OF_MAP)
    pictures = picture_sections(chosen, _PICTURES, _SECONDS)
    parts = [*_quality(found), *_notes(found), *pictures[:1], *_advice(found)]
    if found.ladder:
        parts += [*_ladder(found), *_sweep(found)]
    parts += [*_unseen(found), *_compare(found), *_measures(found), *_presets(found), *pictures[1:]]
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
        yield section("Quality by label", paragraph(f"Not measured. {tables.NO_LABELS}"))
        return
    facts = [counted(quality.queries, "query", "queries"), counted(quality.labels, "label")]
    if quality.single_image_labels:
        facts.append(f"{counted(quality.single_image_labels, 'label')} with a single image left out")
    if quality.images_without_label:
        facts.append(f"{counted(quality.images_without_label, 'image')} without a label")
    k = quality.k
    text = (
        "How well the images of a label find each other, by exact search in the vectors: "
        f"{', '.join(facts)}. A label is the name of the folder that an image lies in. The query itself and "
        "files of the same bytes are left out."
    )
    meanings = {
        f"P@{k}": f"the share of a query's {k} nearest neighbors that have its label.",
        "precision@1": "the same for the nearest neighbor alone.",
        f"recall@{k}": f"the share of the label's other images that are among the {k} nearest.",
        "mAP@R": "how far the label's other images come before all others: 100 % if no other image is nearer "
        "than any of them.",
        "micro": "the mean of all queries. Its 95 % interval says how far chance may have moved it.",
        "macro": "the mean of the labels' own means, so that each label counts the same.",
        "at most": f"what a perfect search would reach with these labels and a k of {k}.",
        "confused with": "the labels of the wrong neighbors, with their share of all neighbors.",
    }
    yield section(
        "Quality by label",
        paragraph(text),
        terms(meanings),
        beside(table(tables.mean_rows(quality), "Means")),
        label_tables(quality),
    )


def _notes(found: Evaluation) -> Iterator[str]:
    if found.notes:
        yield section("Before you rely on these figures", items(found.notes))


def _advice(found: Evaluation) -> Iterator[str]:
    if not found.advice:
        why = tables.none_advised(found)
        yield section("Advice", paragraph(why[0].upper() + why[1:]))
        return
    without = f" No advice on PCA settings, because {found.no_advice}." if found.no_advice else ""
    yield section(
        "Advice",
        *(paragraph(f"{advice.text}:", printable(advice.command)) for advice in found.advice),
        paragraph(tables.APPLYING + without),
    )


def _ladder(found: Evaluation) -> Iterator[str]:
    text = (
        "Four ways to search, from comparing everything to the index that imgindex search uses, with "
        f"{counted(found.queries, 'query', 'queries')}. Times are of single queries on one thread."
    )
    meanings = {
        "features": "what the backbone gives for an image.",
        f"PCA {found.dims}": f"the vectors of the index: the features, compressed to {found.dims} numbers by "
        "principal component analysis.",
        "exact": "compares the query with every image.",
        "Annoy": "looks at a part of the images that its trees lead to; search_k says how large a part.",
        "recall@10": "the share of the ten nearest images by features that a way to search finds, too.",
        "ms, p95, p99": "the milliseconds that half of the queries, 95 % and 99 % of them take at most.",
        "queries/s": "how many queries are answered in a second, one after the other.",
        "build s, size": "the seconds to make it, and the bytes that a search needs.",
    }
    notes = [f"{rung.method}: {rung.note}" for rung in found.ladder if rung.note]
    yield section(
        "The ladder",
        paragraph(text),
        terms(meanings),
        beside(
            broad(ladder_chart(found.ladder), "Recall and speed of the ladder"),
            table(tables.ladder_rows(found), "The ladder"),
        ),
        items(notes),
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
            drawn.append(
                charts.line(dims, precisions, (name, f"P@{found.k}, %"), best, top=100, marked=found.dims)
            )
        for values, what, top in (
            ([point.recall_at_10 for point in points], "recall@10", 1),
            ([100 * point.explained_variance for point in points], "explained variance, %", 100),
        ):
            alt = f"{what} by dimensions, {values[0]:.4g} to {values[-1]:.4g}"
            drawn.append(charts.line(dims, values, (name, what), alt, top=top, marked=found.dims))
    text = (
        f"Exact search with other PCA settings, with {counted(found.queries, 'query', 'queries')}: other "
        "numbers of dimensions, and vectors that are whitened."
    )
    meanings = {
        "variance": "the explained variance: how much of the differences between the features is kept.",
        "pca.whiten": "0 leaves the dimensions as they are, 1 gives all the same variance (whitened), and a "
        "number between goes a part of the way.",
    }
    yield section(
        "Dimensions and whitening",
        paragraph(text),
        terms(meanings),
        beside(*drawn),
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
            "Queries are easier for an index that holds them. Here some images were held out, and searched "
            f"for in an index of the others. Annoy finds {unseen.recall:.3f} of the ten nearest vectors of "
            f"images that are not in the index (95 % interval {low:.3f} to {high:.3f}, "
            f"{counted(unseen.queries, 'query', 'queries')}), and {unseen.seen:.3f} of images that are."
        ),
    )


def _compare(found: Evaluation) -> Iterator[str]:
    if not found.compare:
        return
    text = (
        f"Indexes of several libraries in the vectors of {found.dims} dimensions, on one thread. Those with "
        "a * are on the Pareto front: no other one has as much recall and is as quick."
    )
    meanings = {
        "recall@10": "here, the share of the ten nearest vectors, by exact search, that an index finds.",
        "build, search": "settings, in the library's own words.",
        "memory": "the most that the process had, with the library and the vectors.",
    }
    notes = tables.compare_notes(found)
    rows = tables.compare_rows(found)
    best = [rows[0], *(row for row in rows[1:] if "*" in row)]
    yield section(
        "Libraries",
        paragraph(text),
        terms(meanings),
        beside(
            broad(compare_chart(found.compare), "Recall and speed of the libraries"),
            table(best, "The Pareto front"),
        ),
        details(f"All {counted(len(rows) - 1, 'row')}", table(rows, "Libraries")),
        items(notes),
    )


def _presets(found: Evaluation) -> Iterator[str]:
    if not found.presets:
        return
    text = (
        f"What other settings of the features would change: {tables.PRESETS} "
        f"{counted(found.presets[0].images, 'image')}, by exact search in their features."
    )
    meanings = {
        "preset": "a config that imgindex ships, as --config takes it; now: the settings of this index.",
        "pooling, resize, size, mirror": "its settings of backbone.pooling, backbone.resize, "
        "backbone.image_size and backbone.mirror.",
        "gain": f"the points of P@{found.k} more than now.",
        "images/s": "how many images this machine read, decoded and embedded in a second.",
    }
    notes = [f"{each.preset}: {each.note}" for each in found.presets if each.note]
    yield section(
        "Presets",
        paragraph(text),
        terms(meanings),
        beside(table(tables.preset_rows(found), "Presets")),
        items(notes),
    )


def _measures(found: Evaluation) -> Iterator[str]:
    if not found.measures:
        return
    text = (
        f"P@{found.k} of exact search among a sample of the images, by each measure: on raw pixels, on "
        "features, and on vectors. ms is the median of single queries."
    )
    meanings = {
        "l1": "the sum of the absolute differences.",
        "l2": "the square root of the sum of the squared differences.",
        "mse": "the mean of the squared differences.",
        "cosine": "the cosine of the angle between two vectors.",
        "ncc": "normalized cross-correlation: the cosine after each vector's mean is taken away.",
    }
    used = {each.measure for each in found.measures}
    notes = [f"{each.measure} on {each.on}: {each.note}" for each in found.measures if each.note]
    yield section(
        "Similarity measures",
        paragraph(text),
        terms({name: meaning for name, meaning in meanings.items() if name in used}),
        beside(table(tables.measure_rows(found), "Similarity measures")),
        items(notes),
    )
