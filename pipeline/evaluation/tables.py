"""An evaluation as text for a terminal."""

from collections.abc import Iterator, Mapping, Sequence

from imgindex.evaluation.results import Evaluation, LabelQuality, Mean, Quality
from imgindex.text import counted, human_bytes, printable

NO_LABELS = (
    "No two images share a label. A label is the name of the folder below the input that an image lies in; "
    "an image right in the input has none. Sort the images into folders, one for each label, and build "
    "again: images that only moved are not embedded again."
)

# Labels that are shown, from each end.
_LABELS = 5


def as_text(found: Evaluation) -> str:
    """The evaluation as tables."""
    return "\n".join(_lines(found))


def _lines(found: Evaluation) -> Iterator[str]:
    yield f"{printable(found.output)}, generation {found.generation}"
    yield (
        f"{counted(found.images, 'image')}, of which {found.distinct:,} distinct; "
        f"{counted(found.queries, 'query', 'queries')}, seed {found.seed}"
    )
    yield from _quality(found)
    if found.ladder:
        yield from _ladder(found)
        yield from _sweep(found)
    if found.unseen_recall is not None:
        unseen = found.unseen_recall
        low, high = unseen.interval
        yield ""
        queries = counted(unseen.queries, "query", "queries")
        yield (
            f"Recall of unseen queries: {unseen.recall:.3f} (95 % interval {low:.3f} to {high:.3f}, "
            f"{queries}); of images in the index: {unseen.seen:.3f}"
        )
        yield "  the share of the ten nearest vectors, by exact search in the same vectors, that Annoy finds;"
        yield "  unseen are images that are not in the index"
    if found.compare:
        yield from _compare(found)
    yield from _measures(found)
    yield from _presets(found)
    if found.notes:
        yield ""
        yield "Before you rely on these figures"
        yield from (f"  {printable(note)}" for note in found.notes)
    yield ""
    yield from _advice(found)


def _advice(found: Evaluation) -> Iterator[str]:
    if not found.advice:
        yield f"Advice: {none_advised(found)}"
        return
    yield "Advice"
    for advice in found.advice:
        yield f"  {advice.text}"
        yield f"    {printable(advice.command)}"
    yield f"  {APPLYING}"
    if found.no_advice:
        yield f"  No advice on PCA settings, because {found.no_advice}."


APPLYING = (
    "A command that leaves the backbone as it is takes features from the store: no image is embedded again. "
    "If your builds have a config file, change the line in that file as well, or the next build undoes it. "
    "If they have flags for Beam, add those flags."
)


def none_advised(found: Evaluation) -> str:
    """Why there is no advice, as a sentence."""
    if found.no_advice:
        return f"none, because {found.no_advice}."
    return "none of the settings that were tried gains anything."


def _quality(found: Evaluation) -> Iterator[str]:
    quality = found.quality
    yield ""
    if quality is None:
        yield f"Quality by label: not measured. {NO_LABELS}"
        return
    facts = [counted(quality.labels, "label"), counted(quality.queries, "query", "queries")]
    if quality.single_image_labels:
        facts.append(f"{counted(quality.single_image_labels, 'label')} with a single image")
    if quality.images_without_label:
        facts.append(f"{counted(quality.images_without_label, 'image')} without a label")
    yield f"Quality by label: {', '.join(facts)}"
    yield from _table(*mean_rows(quality))
    yield "  micro: the mean of all queries; macro: the mean of the labels' own means"
    yield "  at most: what a perfect search would reach with these labels and this k"
    ordered = sorted(quality.per_label, key=lambda each: (each.p_at_k, each.label))
    shown = ordered if len(ordered) <= 2 * _LABELS else [*ordered[:_LABELS], *ordered[-_LABELS:]]
    yield ""
    yield from _table(*label_rows(shown, quality.k))
    if len(shown) < len(ordered):
        yield f"  ({counted(len(ordered) - len(shown), 'label')} in between; all are in the JSON)"


def _ladder(found: Evaluation) -> Iterator[str]:
    yield ""
    yield "Ladder: ways to search, one query at a time on one thread"
    yield from _table(*ladder_rows(found))
    yield "  recall@10: the share of the ten nearest images by features that a method finds"
    for rung in found.ladder:
        if rung.note:
            yield f"  {rung.method}: {rung.note}"


def _sweep(found: Evaluation) -> Iterator[str]:
    yield ""
    yield "Sweep: exact search with other PCA settings"
    yield from _table(*sweep_rows(found))


Rows = list[tuple[str, ...]]


def _measures(found: Evaluation) -> Iterator[str]:
    if found.measures:
        yield ""
        yield "Similarity measures: exact search among a sample of the images"
        yield from _table(*measure_rows(found))
        yield from (f"  {each.measure} on {each.on}: {each.note}" for each in found.measures if each.note)


def _presets(found: Evaluation) -> Iterator[str]:
    if found.presets:
        yield ""
        images = counted(found.presets[0].images, "image")
        yield f"Presets: {PRESETS} {images}; exact search in their features"
        yield from _table(*preset_rows(found))
        yield from (f"  {each.preset}: {printable(each.note)}" for each in found.presets if each.note)


PRESETS = "the backbone of the index with the settings of shipped configs, on"


def mean_rows(quality: Quality) -> Rows:
    """The means, below a row of headings."""
    k = quality.k
    means: list[tuple[str, Mean]] = [
        (f"P@{k}", quality.p_at_k),
        ("precision@1", quality.precision_at_1),
        ("mAP@R", quality.map_at_r),
        (f"recall@{k}", quality.recall_at_k),
    ]
    rows = [
        (name, percent(each.micro), _range(each.interval), percent(each.macro), percent(each.best))
        for name, each in means
    ]
    return [("", "micro", "95 % interval", "macro", "at most"), *rows]


def label_rows(labels: Sequence[LabelQuality], k: int) -> Rows:
    """The quality of some labels, below a row of headings."""
    return [
        ("label, worst first", "images", f"P@{k}", "confused with"),
        *(
            (
                printable(each.label),
                f"{each.images:,}",
                percent(each.p_at_k),
                ", ".join(f"{printable(other.label)} {other.share:.0%}" for other in each.confused_with),
            )
            for each in labels
        ),
    ]


def ladder_rows(found: Evaluation) -> Rows:
    """The ladder, below a row of headings."""
    return [
        ("method", f"P@{found.k}", "recall@10", "ms", "p95", "p99", "queries/s", "build s", "size"),
        *(
            (
                rung.method,
                percent(rung.p_at_k),
                number(rung.recall_at_10, 3),
                number(rung.ms_per_query, 3),
                number(rung.ms_p95, 3),
                number(rung.ms_p99, 3),
                number(rung.queries_per_second, 0),
                number(rung.build_seconds, 2),
                "" if rung.bytes is None else human_bytes(rung.bytes),
            )
            for rung in found.ladder
        ),
    ]


def sweep_rows(found: Evaluation) -> Rows:
    """The sweep, below a row of headings."""
    return [
        ("pca.dims", "pca.whiten", f"P@{found.k}", "recall@10", "variance", "ms", "size"),
        *(
            (
                f"{point.dims}{' (now)' if (point.dims, point.whiten) == (found.dims, found.whiten) else ''}",
                f"{point.whiten:g}",
                percent(point.p_at_k),
                number(point.recall_at_10, 3),
                f"{point.explained_variance:.1%}",
                number(point.ms_per_query, 3),
                human_bytes(point.bytes),
            )
            for point in found.sweep
        ),
    ]


def _compare(found: Evaluation) -> Iterator[str]:
    yield ""
    yield (
        f"Libraries, in the vectors of {counted(found.dims, 'dimension')}, on one thread; * marks the Pareto "
        "front: no other row has as much recall and is as quick"
    )
    yield from _table(*compare_rows(found))
    yield from (f"  {note}" for note in compare_notes(found))


def compare_notes(found: Evaluation) -> list[str]:
    """Why candidates have no figures."""
    return [
        f"{' '.join([row.family, *_words(row.build), *_words(row.search)])}: {row.note}"
        for row in found.compare
        if row.note
    ]


def compare_rows(found: Evaluation) -> Rows:
    """The candidates that could be measured, family by family, below a row of headings."""
    costs = ("ms", "p95", "p99", "queries/s", "build s", "memory", "size")
    return [
        ("index", "build", "search", "", "recall@10", *costs),
        *(
            (
                row.family,
                " ".join(_words(row.build)),
                " ".join(_words(row.search)),
                "*" if row.pareto else "",
                number(row.recall_at_10, 3),
                number(row.ms_per_query, 3),
                number(row.ms_p95, 3),
                number(row.ms_p99, 3),
                number(row.queries_per_second, 0),
                number(row.build_seconds, 2),
                human_bytes(row.peak_memory or 0),
                human_bytes(row.bytes or 0),
            )
            for row in found.compare
            if row.recall_at_10 is not None
        ),
    ]


def measure_rows(found: Evaluation) -> Rows:
    """The similarity measures, below a row of headings."""
    return [
        ("measure", "on", "images", f"P@{found.k}", "ms"),
        *(
            (
                each.measure,
                each.on,
                f"{each.images:,}",
                percent(each.p_at_k),
                number(each.ms_per_query, 3),
            )
            for each in found.measures
        ),
    ]


def preset_rows(found: Evaluation) -> Rows:
    """The presets, below a row of headings."""
    return [
        (
            "preset",
            "pooling",
            "resize",
            "size",
            "mirror",
            f"P@{found.k}",
            "95 % interval",
            "gain",
            "images/s",
        ),
        *(
            (
                each.preset,
                each.pooling,
                each.resize,
                "" if each.image_size is None else f"{each.image_size[1]}x{each.image_size[0]}",
                "yes" if each.mirror else "no",
                percent(each.p_at_k),
                "-" if each.interval is None else _range(each.interval),
                "-" if each.gain is None else f"{100 * each.gain:+.1f}",
                number(each.images_per_second, 1),
            )
            for each in found.presets
        ),
    ]


def _words(settings: Mapping[str, int | str]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def percent(value: float | None) -> str:
    """A share as text; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.2f} %"


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def number(value: float | None, digits: int) -> str:
    """A number as text with so many decimals; a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def _table(header: Sequence[str], *rows: Sequence[str]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    sides = ["<", *[">"] * (len(header) - 1)]
    for row in [header, *rows]:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)]
        yield ("  " + "  ".join(cells)).rstrip()
