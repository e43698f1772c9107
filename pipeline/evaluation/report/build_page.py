"""The page of a build: what it indexed, how long it took, and what a sample of the index looks like."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from imgindex.evaluation import tables
from imgindex.evaluation.report import charts
from imgindex.evaluation.report.fragments import STYLE, beside, paragraph, section, table
from imgindex.evaluation.report.label_tables import label_tables
from imgindex.evaluation.report.neighborhoods import look_around
from imgindex.evaluation.report.pictures import choose, picture_sections
from imgindex.evaluation.results import LabelQuality, Quality
from imgindex.evaluation.sample import Sample
from imgindex.generations.manifest import Manifest, SampledPrecision
from imgindex.inputs.skipped import described
from imgindex.records import Failure
from imgindex.search.page_frame import document
from imgindex.text import counted, human_bytes, printable

# Rows of tables, at most.
_ROWS = 12
_MESSAGE = 160  # characters of a failure's message


@dataclass(frozen=True)
class Built:
    """What a build's page is made of."""

    root: str  # of the output
    manifest: Manifest
    variances: npt.NDArray[np.float32]  # the share that each component explains [dims]
    recalls: Sequence[tuple[int, float]]  # search_k, and the recall@10 with it
    examples: Sequence[Failure]  # some failures
    sample: Sample | None
    k: int  # the neighbors of a query that count
    quality: Quality | None  # of the sample
    before: SampledPrecision | None  # of the generation before


def build_page(built: Built, images: int, seconds: float) -> str:
    """A self-contained HTML page, with at most `images` thumbnails, which are read within `seconds`."""
    manifest, quality = built.manifest, built.quality
    facts = [
        ("Index", built.root),
        ("Generation", manifest.generation),
        ("Images", f"{manifest.items:,}"),
        ("Backbone", manifest.spec.backbone),
        ("Vectors", f"{manifest.dims} dimensions, {manifest.metric}"),
        ("Recall@10", f"{manifest.recall.recall:.3f}"),
        ("Size", human_bytes(manifest.size)),
    ]
    if quality is not None:
        facts.insert(3, (f"P@{quality.k}", tables.percent(quality.p_at_k.micro)))
    parts = [*_images(built), *_index(built), *_quality(built)]
    if built.sample is None:
        text = "The index is not looked into: its shards are too large to be copied for that."
        parts.append(section("Queries and their neighbors", paragraph(text)))
    else:
        chosen = choose(look_around(built.sample, 0, built.k), quality, images // 4)
        parts += picture_sections(chosen, images, seconds)
    parts += _seconds(manifest.timings)
    return document("What this build indexed", facts, "\n".join(parts), style=STYLE)


def _images(built: Built) -> Iterator[str]:
    ledger = built.manifest.ledger
    counts = [
        ("listed", ledger.listed),
        ("indexed", ledger.indexed),
        ("failed", ledger.failed),
        ("embedded", ledger.embedded),
        ("copied from images of the same bytes", ledger.copied),
        ("reused from the store", ledger.reused),
    ]
    tables = [_counts("images of this build", counts)]
    text = (
        "Every image that was listed is either indexed or failed. The features of indexed images were "
        "computed now (embedded), copied, or taken from an earlier build."
    )
    if built.manifest.previous:
        text += f" Changes are against generation {built.manifest.previous}."
        names = ("added", "changed", "removed", "unchanged")
        tables.append(_counts("changes", [(name, getattr(ledger, name)) for name in names]))
    if ledger.skipped:
        text += f" Skipped: {described(ledger.skipped)}."
    yield section("Images", paragraph(text), beside(*tables))
    if ledger.failed_by_reason:
        yield _failures(built)


def _counts(heading: str, counts: Sequence[tuple[str, int]]) -> str:
    return table([(heading, "number"), *((name, f"{count:,}") for name, count in counts)], heading)


def _failures(built: Built) -> str:
    ordered = sorted(built.manifest.ledger.failed_by_reason.items(), key=lambda each: (-each[1], each[0]))
    examples = {f"{each.stage}/{each.reason}": each for each in reversed(built.examples)}
    rows = [("reason", "images", "for example", "message")]
    for reason, count in ordered[:_ROWS]:
        example = examples.get(reason)
        told = (printable(example.uri), printable(example.message)[:_MESSAGE]) if example else ("", "")
        rows.append((reason, f"{count:,}", *told))
    command = f"imgindex inspect {shlex.quote(printable(built.root))} --failures"
    return section("Failures", paragraph("This command lists all of them:", command), table(rows, "Failures"))


def _index(built: Built) -> Iterator[str]:
    manifest = built.manifest
    drawn = []
    if len(built.variances) > 1:
        dims = range(1, len(built.variances) + 1)
        explained = (100 * np.cumsum(built.variances)).tolist()
        alt = f"Explained variance by dimensions: {explained[-1]:.1f} % with {len(explained)}"
        names = ("dimensions", "explained variance, %")
        drawn.append(charts.line([*map(float, dims)], explained, names, alt, top=100, log=False))
    if len(built.recalls) > 1:
        alt = "; ".join(f"search_k {k}: recall@10 {recall:.3f}" for k, recall in built.recalls)
        depths, recalls = zip(*built.recalls, strict=True)
        drawn.append(
            charts.line(
                [*map(float, depths)],
                recalls,
                ("search_k", "recall@10"),
                alt,
                top=1,
                marked=manifest.search_k,
            )
        )
    queries = manifest.recall.queries
    asked = f" ({counted(queries, 'query', 'queries')})" if queries is not None else ""
    text = (
        f"{counted(manifest.dims, 'dimension explains', 'dimensions explain')} "
        f"{manifest.explained_variance_ratio:.1%} of the variance of the features, which is how much of the "
        "differences between images the index keeps. recall@10 is "
        "the share of the ten exact nearest images that the index finds, and search_k is how many candidates "
        f"it looks at: more find more and take longer. With search_k {manifest.search_k}, recall@10 is "
        f"{manifest.recall.recall:.3f}{asked}."
    )
    yield section("Index", paragraph(text), beside(*drawn))


def _quality(built: Built) -> Iterator[str]:
    quality, sample = built.quality, built.sample
    if sample is None:
        return
    if quality is None:
        yield section("Quality by label", paragraph(f"Not measured. {tables.NO_LABELS}"))
        return
    low, high = quality.p_at_k.interval
    text = (
        f"P@{quality.k} is the share of an image's {quality.k} nearest neighbors that have its label, which "
        "is the name of its folder; files of the same bytes are left out. It is "
        f"{tables.percent(quality.p_at_k.micro)} (95 % interval {100 * low:.1f} to {100 * high:.1f}), by "
        f"exact search in {counted(len(sample), 'image')} with "
        f"{counted(quality.queries, 'query', 'queries')}."
    )
    if built.before is not None:
        text += f" In the generation before it was {tables.percent(built.before.p_at_k)}."
    yield section(
        "Quality by label", paragraph(text), label_tables(quality, partial(_with_change, built.before))
    )


def _with_change(
    before: SampledPrecision | None, labels: Sequence[LabelQuality], rows: tables.Rows
) -> tables.Rows:
    """The rows of `labels`, below one of headings, with the change of each since the build before."""
    if before is None:
        return rows
    changes = ["change, points", *(_change(before, each.label, each.p_at_k) for each in labels)]
    return [(*row[:-1], change, row[-1]) for row, change in zip(rows, changes, strict=True)]


def _change(before: SampledPrecision, label: str, now: float) -> str:
    return f"{100 * (now - before.labels[label]):+z.1f}" if label in before.labels else "-"


def _seconds(timings: Mapping[str, float]) -> Iterator[str]:
    rows = [("stage", "seconds"), *((stage, f"{value:,.1f}") for stage, value in timings.items())]
    text = (
        "Stages follow one another. embed holds reading, decoding and the backbone; engine is the part of it "
        "in which the backbone ran."
    )
    yield section("Time", paragraph(text), beside(table(rows, "Time")))
