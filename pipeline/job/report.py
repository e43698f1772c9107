"""The report of a build: a page beside the index, and the quality that the next build compares with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from imgindex.errors import OutputError
from imgindex.evaluation.quality import measure_quality
from imgindex.evaluation.report.build_page import Built, build_page
from imgindex.evaluation.results import Quality
from imgindex.evaluation.sample import Sample, read_sample
from imgindex.generations.failure_lists import read_failures
from imgindex.generations.layout import files_of, read_manifest
from imgindex.generations.manifest import Manifest, SampledPrecision
from imgindex.indexing.shard_files import read_basis
from imgindex.io import written_files
from imgindex.job.plan import Plan
from imgindex.records import Failure, WrittenFile
from imgindex.text import printable

logger = logging.getLogger(__name__)

REPORT = "report/index.html"

_K = 4
_QUERIES = 2000
# Labels whose quality the manifest keeps, at most: those of most images.
_LABELS = 200
# Failures that examples are taken from.
_FAILURES = 10_000


@dataclass(frozen=True)
class Reported:
    """What the manifest says of the report."""

    file: WrittenFile | None = None
    precision: SampledPrecision | None = None
    warnings: tuple[str, ...] = ()


def report(plan: Plan, manifest: Manifest, recalls: Sequence[tuple[int, float]]) -> Reported:
    """Writes the report of the generation that `manifest` describes, where the config wants one.

    Args:
      plan: of the build.
      manifest: all but what is returned here.
      recalls: search_k, and the recall@10 with it.

    Whatever goes wrong is a warning: an index is good without its report.
    """
    settings = plan.config.report
    if not settings.enabled:
        return Reported()
    try:
        sample = read_sample(plan.output, manifest)
        quality = None if sample is None else _quality(sample)
        precision = None if sample is None or quality is None else _precision(sample, quality)
        files = files_of(plan.output, manifest)
        built = Built(
            root=plan.output.root,
            manifest=manifest,
            variances=read_basis(files[manifest.basis]).explained_variance_ratio,
            recalls=recalls,
            examples=_examples(files[manifest.failures[0]]) if manifest.ledger.failed else (),
            sample=sample,
            k=_K,
            quality=quality,
            before=_before(plan),
        )
        page = build_page(built, settings.images, settings.seconds)
        file = written_files.write_described(plan.directory, REPORT, page.encode())
    except Exception as error:
        text = f"the report could not be made: {type(error).__name__}: {printable(str(error))[:500]}"
        logger.warning("%s", text)
        return Reported(warnings=(text,))
    return Reported(file, precision)


def _quality(sample: Sample) -> Quality | None:
    queries = np.arange(len(sample))
    if len(queries) > _QUERIES:
        queries = np.sort(np.random.default_rng(0).choice(queries, _QUERIES, replace=False))
    return measure_quality(sample, queries, _K, 0)


def _precision(sample: Sample, quality: Quality) -> SampledPrecision:
    largest = sorted(quality.per_label, key=lambda each: (-each.images, each.label))[:_LABELS]
    return SampledPrecision(
        k=quality.k,
        images=len(sample),
        queries=quality.queries,
        p_at_k=quality.p_at_k.micro,
        interval=quality.p_at_k.interval,
        labels={each.label: round(each.p_at_k, 6) for each in largest},
    )


def _before(plan: Plan) -> SampledPrecision | None:
    """The quality of the generation before; None where it is not known."""
    if plan.previous is None:
        return None
    try:
        before = read_manifest(plan.output, plan.previous.name).precision
    except OutputError:  # it is damaged
        return None
    return before if before is not None and before.k == _K else None


def _examples(file: WrittenFile) -> list[Failure]:
    return list(islice(read_failures(file), _FAILURES))
