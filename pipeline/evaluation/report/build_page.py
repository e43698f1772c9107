"""The page of a build: what it indexed, how long it took, and what a sample of the index looks like."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgindex.evaluation import tables
from imgindex.evaluation.report import charts
from imgindex.evaluation.report.fragments import STYLE, paragraph, section, table
from imgindex.evaluation.report.neighborhoods import look_around
from imgindex.evaluation.report.pictures import choose, picture_sections
from imgindex.evaluation.results import Quality
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
        labels = sorted(quality.per_label, key=lambda each: (each.p_at_k, each.label)) if quality else []
        chosen = choose(look_around(built.sample, 0), [each.label for each in labels], images // 4)
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
    parts = [table([("images", "number"), *((name, f"{count:,}") for name, count in counts)], "Images")]
    if ledger.skipped:
        parts.append(paragraph(f"Skipped: {described(ledger.skipped)}."))
    yield section("Images", *parts)
    if built.manifest.previous:
        changes = [
            (name, f"{getattr(ledger, name):,}") for name in ("added", "changed", "removed", "unchanged")
        ]
        text = f"Against generation {built.manifest.previous}."
        yield section("Changes", paragraph(text), table([("images", "number"), *changes], "Changes"))
    if ledger.failed_by_reason:
        yield _failures(built)


def _failures(built: Built) -> str:
    ordered = sorted(built.manifest.ledger.failed_by_reason.items(), key=lambda each: (-each[1], each[0]))
    examples = {f"{each.stage}/{each.reason}": each for each in reversed(built.examples)}
    rows = [("reason", "images", "for example", "message")]
    for reason, count in ordered[:_ROWS]:
        example = examples.get(reason)
        told = (printable(example.uri), printable(example.message)[:_MESSAGE]) if example else ("", "")
        rows.append((reason, f"{count:,}", *told))
    text = "`imgindex inspect OUT --failures` lists all of them."
    return section("Failures", paragraph(text), table(rows, "Failures"))


def _index(built: Built) -> Iterator[str]:
    manifest = built.manifest
    drawn = []
    if len(built.variances) > 1:
        dims = range(1, len(built.variances) + 1)
        explained = (100 * np.cumsum(built.variances)).tolist()
        alt = f"Explained variance by dimensions: {explained[-1]:.1f} % with {len(explained)}"
        names = ("dimensions", "explained variance, %")
        drawn.append(charts.line([*map(float, dims)], explained, names, alt, log=False))
    if len(built.recalls) > 1:
        alt = "; ".join(f"search_k {k}: recall@10 {recall:.3f}" for k, recall in built.recalls)
        depths, recalls = zip(*built.recalls, strict=True)
        drawn.append(
            charts.line([*map(float, depths)], recalls, ("search_k", "recall@10"), alt, manifest.search_k)
        )
    queries = manifest.recall.queries
    text = (
        f"{manifest.dims} dimensions explain {manifest.explained_variance_ratio:.1%} of the variance. "
        f"With search_k {manifest.search_k}, recall@10 is {manifest.recall.recall:.3f}"
    )
    text += f" ({counted(queries, 'query', 'queries')})." if queries is not None else "."
    yield section("Index", paragraph(text), f'<div class="charts">{"".join(drawn)}</div>')


def _quality(built: Built) -> Iterator[str]:
    quality, sample = built.quality, built.sample
    if quality is None or sample is None:
        return
    low, high = quality.p_at_k.interval
    text = (
        f"P@{quality.k} is {tables.percent(quality.p_at_k.micro)} (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}), by exact search in {counted(len(sample), 'image')} with "
        f"{counted(quality.queries, 'query', 'queries')}."
    )
    before = built.before
    if before is not None:
        text += f" In the generation before it was {tables.percent(before.p_at_k)}."
    ordered = sorted(quality.per_label, key=lambda each: (each.p_at_k, each.label))
    half = _ROWS // 2
    shown = ordered if len(ordered) <= _ROWS else [*ordered[:half], *ordered[-half:]]
    headings, *rows = tables.label_rows(shown, quality.k)
    if before is not None:
        headings = (*headings, "change, points")
        rows = [
            (*row, _change(before, each.label, each.p_at_k)) for row, each in zip(rows, shown, strict=True)
        ]
    more = (
        f" {counted(len(ordered) - len(shown), 'label')} in between are not shown."
        if shown != ordered
        else ""
    )
    yield section("Quality by label", paragraph(text + more), table([headings, *rows], "Labels"))


def _change(before: SampledPrecision, label: str, now: float) -> str:
    return f"{100 * (now - before.labels[label]):+.1f}" if label in before.labels else "-"


def _seconds(timings: Mapping[str, float]) -> Iterator[str]:
    rows = [("stage", "seconds"), *((stage, f"{value:,.1f}") for stage, value in timings.items())]
    text = "Stages follow one another; engine is the part of embed that the backbone ran."
    yield section("Time", paragraph(text), table(rows, "Time"))
