"""The transforms from features to shards; they only wire, but for sums of moments."""

import functools
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsList, AsSingleton, PCollection
from apache_beam.transforms.window import GlobalWindows

from imgindex.config import IndexConfig, PcaConfig
from imgindex.features import feature_store
from imgindex.indexing.shard_budget import default_limit, write_within
from imgindex.indexing.shards import ShardSummary
from imgindex.indexing.vector_files import Part, Parts, PartWriter, VectorRows
from imgindex.models.moments import Moments, MomentsBlock
from imgindex.models.pca import Basis, fit_basis
from imgindex.records import bucket_of
from imgindex.runtime.resources import available_cores

# Rows that are added to the moments at once: for fewer, matrix products run below their speed.
_MOMENT_ROWS = 4096


@dataclass
class FitPca(beam.PTransform):  # type: ignore[misc]
    """Fits PCA to all rows of a PCollection of feature batches, L2-normalized, [n, feature_dim].

    Gives a PCollection of one `Basis`, or of none where there are no rows. Its bits do not depend on
    batches, bundles or workers.
    """

    config: PcaConfig

    def expand(self, features: PCollection[Any]) -> PCollection[Basis]:
        """Applies the transform."""
        blocks = (
            features
            | "SumBundles" >> beam.ParDo(_SumBundles())
            | "SumBlocks" >> beam.CombinePerKey(_sum_blocks)
            | "DropStarts" >> beam.Values()
        )
        # Not grouped by one key: Flink would make a single record of them.
        return (
            features.pipeline
            | "OnceForAll" >> beam.Create([self.config])
            | "FitBasis" >> beam.FlatMap(_fit, AsList(blocks))
        )


@beam.typehints.with_output_types(tuple[int, MomentsBlock])  # a key whose coder every runner knows
class _SumBundles(beam.DoFn):  # type: ignore[misc]
    """Sums a bundle's batches, and gives the sums in blocks, for runners limit how large a record may be."""

    def start_bundle(self) -> None:
        self._moments: Moments | None = None
        self._waiting: list[Any] = []
        self._waiting_rows = 0

    # Beam would take an array's annotation for a type that not even another array's fits.
    def process(self, batch: Any) -> None:
        self._waiting.append(batch)
        self._waiting_rows += len(batch)
        if self._waiting_rows >= _MOMENT_ROWS:
            self._add()

    def finish_bundle(self) -> Iterator[Any]:
        self._add()
        if self._moments is not None:
            for block in self._moments.blocks():
                yield GlobalWindows.windowed_value((block.start, block))

    def _add(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._waiting, self._waiting_rows = [], 0
            self._moments = self._moments or Moments.empty(rows.shape[1])
            self._moments.add(rows)


def _sum_blocks(blocks: Iterable[MomentsBlock]) -> MomentsBlock:
    return functools.reduce(operator.add, blocks)


def _fit(config: PcaConfig, blocks: list[MomentsBlock]) -> Iterator[Basis]:
    if blocks:
        yield fit_basis(Moments.of_blocks(blocks), config.dims, config.whiten)


@dataclass
class ProjectFeatures(beam.PTransform):  # type: ignore[misc]
    """Projects ``(chunk, rows)`` of the store at `directory`; gives ``(shard, VectorRows)``.

    `basis` and `shard_count` are singletons. An image's shard depends on its uri alone.
    """

    directory: str
    basis: AsSingleton
    shard_count: AsSingleton

    def expand(
        self, selection: PCollection[tuple[str, Sequence[int]]]
    ) -> PCollection[tuple[int, VectorRows]]:
        """Applies the transform."""
        return selection | "ProjectChunks" >> beam.FlatMap(
            _project_chunk, self.directory, self.basis, self.shard_count
        )


def _project_chunk(
    element: tuple[str, Sequence[int]], directory: str, basis: Basis, shard_count: int
) -> Iterator[tuple[int, VectorRows]]:
    chunk, rows = element
    for images, features in feature_store.each_rows(directory, chunk, rows):
        vectors = basis.project(features)
        shards_rows: dict[int, list[int]] = defaultdict(list)
        for row, uri in enumerate(images["uri"].to_pylist()):
            shards_rows[bucket_of(uri, shard_count)].append(row)
        for shard, members in shards_rows.items():
            yield shard, VectorRows(images.take(members), vectors[members])


@dataclass
class WriteIndex(beam.PTransform):  # type: ignore[misc]
    """Writes `VectorRows` as index and metadata shards of a generation; gives `ShardSummary`s.

    A worker builds shards side by side as far as its cores and `index.memory` go.

    Takes a PCollection of ``(shard, VectorRows)`` and `shard_count`, a singleton. What
    `vector_files.directory` names below `generation` may be deleted once all summaries are there.
    """

    generation: str
    shard_count: AsSingleton
    config: IndexConfig
    threads: int | None = None  # shards that a worker builds at once; None: as many as it has cores

    def expand(self, rows: PCollection[tuple[int, VectorRows]]) -> PCollection[ShardSummary]:
        """Applies the transform."""
        return (
            rows
            | "WriteParts" >> beam.ParDo(_WriteParts(self.generation))
            | "GroupByShard" >> beam.GroupByKey()
            | "BuildShards" >> beam.ParDo(_BuildShards(self), self.shard_count)
        )


class _WriteParts(beam.DoFn):  # type: ignore[misc]
    def __init__(self, generation: str) -> None:
        self._generation = generation

    def start_bundle(self) -> None:
        self._writer = PartWriter(self._generation)

    def process(self, element: tuple[int, VectorRows]) -> Iterator[tuple[int, Part]]:
        yield from self._writer.add(*element)

    def finish_bundle(self) -> Iterator[Any]:
        for part in self._writer.flush():
            yield GlobalWindows.windowed_value(part)


class _BuildShards(beam.DoFn):  # type: ignore[misc]
    """Builds a bundle's shards side by side: Annoy builds one on one thread, and without Python's lock."""

    def __init__(self, settings: WriteIndex) -> None:
        self._generation = settings.generation
        self._config = settings.config
        self._threads = settings.threads

    def start_bundle(self) -> None:
        threads = self._threads or available_cores()
        memory = self._config.memory
        self._limit = memory if isinstance(memory, int) else default_limit(threads)
        self._pool = ThreadPoolExecutor(threads, "shard")
        self._shards: list[Future[ShardSummary]] = []

    def process(self, element: tuple[int, Iterable[Part]], shard_count: int) -> None:
        shard, parts = element
        rows = Parts(self._generation, list(parts))
        self._shards.append(
            self._pool.submit(
                write_within, self._limit, self._generation, shard, shard_count, rows, self._config
            )
        )

    def finish_bundle(self) -> Iterator[Any]:
        with self._pool:
            for shard in self._shards:
                yield GlobalWindows.windowed_value(shard.result())
