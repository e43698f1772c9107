"""The whole pipeline, from a listing to a published generation, as one Beam graph."""

import time
from collections.abc import Iterable

import apache_beam as beam
from apache_beam.pvalue import AsList, AsSingleton

from imgindex import storage
from imgindex.models.pca import Basis
from imgindex.publish import Plan, finish
from imgindex.records import EmbeddedUnit, ShardSummary, Tally, WrittenBasis
from imgindex.shards import shard_count_of
from imgindex.transforms import (
    DiffAgainstStore,
    EmbedImages,
    FitPca,
    ListImages,
    ProjectFeatures,
    ReadFeatures,
    WriteIndex,
)


def assemble(pipeline: beam.Pipeline, plan: Plan) -> None:
    """Adds the build that `plan` describes to `pipeline`."""
    config = plan.config
    listed = pipeline | "ListImages" >> ListImages(plan.input, config.images.extensions)
    known = listed.files | "DiffAgainstStore" >> DiffAgainstStore(plan.store)
    units = known.missing | "EmbedImages" >> EmbedImages(
        plan.store, plan.engine, config.images, plan.threads, plan.spec.digest
    )
    embedded = units | "ChunksOfUnits" >> beam.FlatMap(_chunk_of)
    # Every image of the listing whose feature the store holds: (chunk, rows), each chunk once.
    selection = (
        (known.found, embedded)
        | "Select" >> beam.Flatten()
        | "GroupByChunk" >> beam.GroupByKey()
        | "SortRows" >> beam.MapTuple(_sorted_rows)
    )
    bases, shards = index_half(selection, plan)

    failures = (
        listed.failures,
        units | "FailuresOfUnits" >> beam.FlatMap(lambda unit: unit.failures),
    ) | "FlattenFailures" >> beam.Flatten()
    tallies = (
        (listed.files, listed.failures)
        | "FlattenListed" >> beam.Flatten()
        | "CountListed" >> beam.combiners.Count.Globally()
        | "TallyListed" >> beam.Map(lambda count: Tally({"listed": count})),
        known.found | "TallyReused" >> beam.Map(_tally_of_found),
        units | "TallyUnits" >> beam.Map(_tally_of_unit),
    ) | "FlattenTallies" >> beam.Flatten()
    tally = tallies | "SumTallies" >> beam.CombineGlobally(_sum_tallies)
    _ = (
        pipeline
        | "Once" >> beam.Create([plan])
        | "Publish" >> beam.Map(finish, AsSingleton(tally), AsList(failures), AsList(bases), AsList(shards))
    )


def index_half(
    selection: beam.PCollection[tuple[str, list[int]]], plan: Plan
) -> tuple[beam.PCollection[WrittenBasis], beam.PCollection[ShardSummary]]:
    """Writes basis and shards of the images that `selection` names by (chunk, rows) of the store."""
    config = plan.config
    shard_count = AsSingleton(
        selection
        | "CountRows" >> beam.Map(_row_count)
        | "SumRows" >> beam.CombineGlobally(sum)
        | "CountShards" >> beam.Map(shard_count_of, config.index.items_per_shard)
    )
    # The features are read once for each use: kept between the two, they would be held in memory.
    basis = selection | "ReadFeatures" >> ReadFeatures(plan.store) | "FitPca" >> FitPca(config.pca)
    shards = (
        selection
        | "ProjectFeatures" >> ProjectFeatures(plan.store, AsSingleton(basis), shard_count)
        | "WriteIndex" >> WriteIndex(plan.directory, shard_count, config.index, plan.threads)
    )
    return basis | "WriteBasis" >> beam.Map(_write_basis, plan.directory), shards


def _chunk_of(unit: EmbeddedUnit) -> Iterable[tuple[str, list[int]]]:
    return [] if unit.chunk is None else [(unit.chunk, list(range(unit.rows)))]


def _sorted_rows(chunk: str, parts: Iterable[list[int]]) -> tuple[str, list[int]]:
    return chunk, sorted(row for rows in parts for row in rows)


def _row_count(element: tuple[str, list[int]]) -> int:
    return len(element[1])


def _tally_of_found(found: tuple[str, list[int]]) -> Tally:
    return Tally({"reused": len(found[1])}, diffed=time.time())


def _tally_of_unit(unit: EmbeddedUnit) -> Tally:
    return Tally({"embedded": unit.rows}, (unit.started, unit.finished), unit.engine_seconds)


def _sum_tallies(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, Tally())


def _write_basis(basis: Basis, directory: str) -> WrittenBasis:
    file = storage.write_described(directory, "pca/basis.npz", basis.to_npz())
    ratio = float(basis.explained_variance_ratio.sum())
    return WrittenBasis(file, basis.feature_dim, basis.dims, ratio, time.time())
