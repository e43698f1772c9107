"""The whole pipeline, from a listing to a published generation, as one Beam graph."""

import time
from collections.abc import Iterable

import apache_beam as beam
from apache_beam.pvalue import AsList, AsSingleton

from imgindex.features.embedder import EmbeddedUnit
from imgindex.features.known_failures import fingerprint
from imgindex.features.transforms import DiffAgainstStore, EmbedImages, Features, GroupByChunk, ReadFeatures
from imgindex.generations.counters import Counters
from imgindex.generations.failure_lists import list_count_of
from imgindex.generations.layout import Output, tell_alive
from imgindex.generations.transforms import CompareGenerations, WriteFailures
from imgindex.indexing.shard_files import read_basis
from imgindex.indexing.shards import ShardSummary, shard_count_of
from imgindex.indexing.transforms import FitPca, ProjectFeatures, WriteIndex
from imgindex.inputs.selection import selection_of
from imgindex.inputs.transforms import ListImages
from imgindex.io import written_files
from imgindex.job.description import WrittenBasis
from imgindex.job.plan import Plan
from imgindex.job.publish import finish, nothing_changed
from imgindex.models.drift import Residuals, Verdict, judge
from imgindex.models.pca import Basis
from imgindex.records import Failure, StoredImage


def assemble(pipeline: beam.Pipeline, plan: Plan) -> beam.PCollection[None]:
    """Adds the build that `plan` describes to `pipeline`; gives one None when it has published or refused."""
    config = plan.config
    wanted = selection_of(config.images)
    listed = pipeline | "ListImages" >> ListImages(
        plan.input, wanted.extensions, wanted.include, wanted.exclude
    )
    delta = listed.files | "DiffAgainstStore" >> DiffAgainstStore(
        plan.store, config.images, plan.threads, plan.retry_failed, plan.feature_dim, plan.rehash
    )
    units = delta.new | "EmbedImages" >> EmbedImages(
        plan.store, plan.engine, config.images, plan.threads, plan.spec.digest
    )
    if plan.detached:
        # These stages write to the store at most; the later ones write to the generation.
        for stage, done in {
            "List": listed.files, "Diff": delta.found, "Copy": delta.copied, "Embed": units,
        }.items():  # fmt: skip
            _ = done | f"TellAliveIn{stage}" >> beam.ParDo(_TellAlive(plan.output, plan.generation))
    # Every image of the listing whose feature the store holds.
    held = (
        delta.found,
        units | "ImagesOfUnits" >> beam.Map(lambda unit: unit.images),
        delta.copied | "ImagesOfCopies" >> beam.Map(lambda unit: unit.images),
    ) | "FlattenHeld" >> beam.Flatten()
    before = plan.previous.metadata if plan.previous else ()
    compared = held | "CompareGenerations" >> CompareGenerations(before)
    failures = (
        listed.failures,
        delta.failed,
        units | "FailuresOfUnits" >> beam.FlatMap(lambda unit: unit.failures),
    ) | "FlattenFailures" >> beam.Flatten()
    counters = (
        listed.files
        | "CountFiles" >> beam.CombineGlobally(beam.combiners.CountCombineFn()).without_defaults()
        | "CountListed" >> beam.Map(lambda count: Counters({"listed": count})),
        listed.failures | "CountUnlisted" >> beam.Map(lambda _: Counters({"listed": 1})),
        listed.skipped | "CountSkipped" >> beam.Map(lambda skipped: Counters(skipped=skipped.counts)),
        failures | "CountFailures" >> beam.Map(_counters_of_failure),
        delta.found | "CountReused" >> beam.Map(_counters_of_found),
        delta.copied | "CountCopied" >> beam.Map(_counters_of_copies),
        delta.damaged | "CountDamaged" >> beam.Map(lambda _: Counters({"damaged_chunks": 1})),
        units | "CountUnits" >> beam.Map(_counters_of_unit),
        compared.counts,
    ) | "FlattenCounters" >> beam.Flatten()
    total = counters | "SumCounters" >> beam.CombineGlobally(_sum_counters).without_defaults()
    counters = AsSingleton(total, default_value=Counters())

    list_count = total | "CountLists" >> beam.Map(
        lambda counters: list_count_of(counters.counts.get("failed", 0))
    )
    lists = failures | "WriteFailures" >> WriteFailures(
        plan.directory, AsSingleton(list_count, default_value=list_count_of(0))
    )

    # A refresh that changes nothing ends here.
    selection = (
        held
        | "IfChanged" >> beam.Filter(lambda _, counters: not nothing_changed(plan, counters), counters)
        | "GroupByChunk" >> GroupByChunk()
    )
    rows = total | "CountRows" >> beam.Map(
        lambda counters: 0 if nothing_changed(plan, counters) else counters.held
    )
    basis, verdict = frozen_or_fitted(selection, compared.changes, plan)
    written, shards = index_half(selection, rows, basis, plan)
    return (
        pipeline
        | "Once" >> beam.Create([plan])
        | "Publish"
        >> beam.Map(finish, counters, AsList(lists), AsList(written), AsList(verdict), AsList(shards))
    )


def frozen_or_fitted(
    selection: beam.PCollection[tuple[str, list[int]]],
    changes: beam.PCollection[list[StoredImage]],
    plan: Plan,
) -> tuple[beam.PCollection[Basis], beam.PCollection[Verdict]]:
    """The live generation's basis, or one fitted to all of `selection` where `changes` ask for it."""
    pca, previous = plan.config.pca, plan.previous
    if previous is None or previous.basis is None or pca.refit == "always":
        lost = previous is not None and previous.lost_basis
        why = "the basis before is damaged" if lost else "no earlier one fits this backbone and config"
        why = "pca.refit is always" if pca.refit == "always" else why
        verdict = selection.pipeline | "Refit" >> beam.Create([Verdict(True, why)])
        return _fit(selection, plan), verdict
    frozen = (
        selection.pipeline
        | "LocateBasis" >> beam.Create([previous.basis])
        | "ReadBasis" >> beam.Map(read_basis)
    )
    if pca.refit == "never":
        verdict = selection.pipeline | "Keep" >> beam.Create([Verdict(False, "pca.refit is never")])
        return frozen, verdict
    residuals = (
        changes
        | "GroupNewsByChunk" >> GroupByChunk()
        | "ReadNews" >> ReadFeatures(plan.store)
        | "MeasureResiduals" >> beam.Map(_residuals, AsSingleton(frozen))
        | "SumResiduals" >> beam.CombineGlobally(_sum_residuals).without_defaults()
    )
    verdict = frozen | "Judge" >> beam.Map(
        judge, AsSingleton(residuals, default_value=Residuals()), previous.fitted_images, pca.dims
    )
    refit = AsSingleton(verdict)
    fitted = _fit(selection | "IfRefit" >> beam.Filter(lambda _, verdict: verdict.refit, refit), plan)
    kept = frozen | "IfKept" >> beam.Filter(lambda _, verdict: not verdict.refit, refit)
    return (fitted, kept) | "FlattenBases" >> beam.Flatten(), verdict


def _fit(selection: beam.PCollection[tuple[str, list[int]]], plan: Plan) -> beam.PCollection[Basis]:
    features = selection | "ReadFeatures" >> ReadFeatures(plan.store)
    return features | "FitPca" >> FitPca(plan.config.pca)


def index_half(
    selection: beam.PCollection[tuple[str, list[int]]],
    rows: beam.PCollection[int],
    basis: beam.PCollection[Basis],
    plan: Plan,
) -> tuple[beam.PCollection[WrittenBasis], beam.PCollection[ShardSummary]]:
    """Writes basis and shards of the images that `selection` names by (chunk, rows) of the store.

    `rows` holds how many they are.
    """
    config = plan.config
    shard_count = AsSingleton(rows | "CountShards" >> beam.Map(shard_count_of, config.index.items_per_shard))
    shards = (
        selection
        | "ProjectFeatures" >> ProjectFeatures(plan.store, AsSingleton(basis), shard_count)
        | "WriteIndex" >> WriteIndex(plan.directory, shard_count, config.index, plan.threads)
    )
    written = (
        basis
        | "IfIndexed" >> beam.Filter(lambda _, rows: rows > 0, AsSingleton(rows))
        | "WriteBasis" >> beam.Map(_write_basis, plan.directory)
    )
    return written, shards


class _TellAlive(beam.DoFn):  # type: ignore[misc]
    """Gives nothing; see `tell_alive`."""

    def __init__(self, output: Output, generation: str) -> None:
        self._output, self._generation = output, generation

    def process(self, _: object) -> None:
        tell_alive(self._output, self._generation)


def _counters_of_failure(failure: Failure) -> Counters:
    return Counters({"failed": 1}, failures=fingerprint(failure))


def _counters_of_found(found: list[StoredImage]) -> Counters:
    return Counters({"reused": len(found)}, diffed=time.time())


def _counters_of_unit(unit: EmbeddedUnit) -> Counters:
    embedded = len({image.sha256 for image in unit.images})
    counts = {"embedded": embedded, "copied": len(unit.images) - embedded}
    return Counters(counts, (unit.started, unit.finished), unit.engine_seconds)


def _counters_of_copies(unit: EmbeddedUnit) -> Counters:
    return Counters({"copied": len(unit.images)}, diffed=unit.finished)


def _sum_counters(counters: Iterable[Counters]) -> Counters:
    return sum(counters, Counters())


def _residuals(features: Features, basis: Basis) -> Residuals:
    return Residuals.of(basis, features)


def _sum_residuals(residuals: Iterable[Residuals]) -> Residuals:
    return sum(residuals, Residuals())


def _write_basis(basis: Basis, directory: str) -> WrittenBasis:
    file = written_files.write_described(directory, "pca/basis.npz", basis.to_npz())
    ratio = float(basis.explained_variance_ratio.sum())
    return WrittenBasis(file, basis.feature_dim, basis.dims, ratio, time.time(), basis.cut, basis.scale_ratio)
