"""The transforms: they only wire; the work is in the plain functions of the modules beside them."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from imgindex import failures, listing, shards, store
from imgindex.config import ImagesConfig, IndexConfig, PcaConfig
from imgindex.embed import UnitEmbedder
from imgindex.errors import OutputError
from imgindex.metrics import count_embedded, count_failure
from imgindex.models.engines import EngineChoice, available_cores, load_engine, load_smaller_engine
from imgindex.models.pca import Basis, Moments, MomentsBlock, fit_basis
from imgindex.parts import Parts, PartWriter
from imgindex.progress import EMBEDDING
from imgindex.records import (
    EmbeddedUnit,
    Failure,
    ImageFile,
    ShardSummary,
    VectorRows,
    bucket_of,
)

# Images that are embedded, stored and, when a worker dies, embedded again together.
UNIT_IMAGES = 512

# Rows that are added to the moments at once: for fewer, matrix products run below their speed.
_MOMENT_ROWS = 4096

Features = npt.NDArray[np.float16]


@dataclass
class ListImages(beam.PTransform):  # type: ignore[misc]
    """Lists the images of a directory or a glob.

    Gives ``files``, a PCollection of `ImageFile`, and ``failures``, one of `Failure`.
    """

    source: str
    extensions: Sequence[str] = ImagesConfig.extensions

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pbegin: Any) -> Any:
        """Applies the transform."""
        return (
            pbegin
            | "LocateInput" >> beam.Create([self.source])
            | "ListFiles"
            >> beam.FlatMap(_list_tagged, self.extensions).with_outputs("failures", main="files")
        )


def _list_tagged(source: str, extensions: Sequence[str]) -> Iterator[Any]:
    for listed in listing.list_images(source, extensions):
        if isinstance(listed, Failure):
            yield TaggedOutput("failures", count_failure(listed))
        else:
            yield listed


@dataclass
class EmbedImages(beam.PTransform):  # type: ignore[misc]
    """Embeds `ImageFile`s into chunks of the store at `directory`; gives `EmbeddedUnit`s.

    One process loads the backbone once. Reading and decoding overlap with inference, also from one unit to
    the next, which RunInference's one image per element, fused behind its reader, cannot do.
    """

    directory: str
    engine: EngineChoice
    images: ImagesConfig = field(default_factory=ImagesConfig)
    threads: int | None = None  # None: all the cores that a worker has
    spec_digest: str | None = None  # refuses a worker whose backbone has another

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, files: Any) -> Any:
        """Applies the transform."""
        return (
            files
            | "Expect" >> beam.Map(_expect)
            | "BatchImages" >> beam.BatchElements(min_batch_size=UNIT_IMAGES, max_batch_size=UNIT_IMAGES)
            # A unit of its own to retry, and no chunk of work that only one worker can take.
            | "SpreadUnits" >> beam.Reshuffle()
            | "EmbedUnits" >> beam.ParDo(_EmbedUnits(self))
        )


def _expect(file: ImageFile) -> ImageFile:
    EMBEDDING.expect(1 + len(file.duplicates))
    return file


class _EmbedUnits(beam.DoFn):  # type: ignore[misc]
    def __init__(self, settings: EmbedImages) -> None:
        self._directory = settings.directory
        self._spec_digest = settings.spec_digest
        self._choice = settings.engine
        self._threads = settings.threads
        self._images = settings.images
        self._embedder: UnitEmbedder | None = None

    def process(self, files: list[ImageFile]) -> Iterator[EmbeddedUnit]:
        # Not in setup(): a worker that gets nothing to embed does not load the backbone.
        if self._embedder is None:
            self._embedder = self._new_embedder()
        for unit in self._embedder.embed(files):
            yield self._finished(unit)

    def finish_bundle(self) -> Iterator[Any]:
        if self._embedder is not None:
            for unit in self._embedder.finish():
                yield GlobalWindows.windowed_value(self._finished(unit))

    def _finished(self, unit: EmbeddedUnit) -> EmbeddedUnit:
        failures.write(self._directory, unit.known)
        count_embedded(len(unit.images))
        for failure in unit.failures:
            count_failure(failure)
        return unit

    def teardown(self) -> None:
        if self._embedder is not None:
            self._embedder.close()
            self._embedder = None

    def _new_embedder(self) -> UnitEmbedder:
        threads = self._threads or available_cores()
        engine = load_engine(self._choice, threads)
        if self._spec_digest not in (None, engine.spec.digest):
            raise OutputError(
                f"this worker's {self._choice.name} has spec {engine.spec.digest}, the launcher's "
                f"has {self._spec_digest}; give both the same weights"
            )
        smaller = partial(load_smaller_engine, self._choice, threads)
        write = partial(store.write_rows, self._directory)
        return UnitEmbedder(engine, smaller, self._images, threads, write, EMBEDDING.advance)


@dataclass
class ReadFeatures(beam.PTransform):  # type: ignore[misc]
    """Reads ``(chunk, rows)`` of the store at `directory` as feature batches [rows, feature_dim]."""

    directory: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, selection: Any) -> Any:
        """Applies the transform."""
        return selection | "ReadChunks" >> beam.Map(_read_features, self.directory)


def _read_features(selected: tuple[str, Sequence[int]], directory: str) -> Features:
    chunk, rows = selected
    return store.read_features(directory, chunk, rows)


@dataclass
class FitPca(beam.PTransform):  # type: ignore[misc]
    """Fits PCA to all rows of a PCollection of feature batches, L2-normalized, [n, feature_dim].

    Gives a PCollection of one `Basis`, or of none where there are no rows. Its bits do not depend on
    batches, bundles or workers.
    """

    config: PcaConfig

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, features: Any) -> Any:
        """Applies the transform."""
        blocks = (
            features
            | "SumBundles" >> beam.ParDo(_SumBundles())
            | "SumBlocks" >> beam.CombinePerKey(_sum_blocks)
            | "DropNumbers" >> beam.Values()
        )
        # Not grouped by one key: Flink would make a single record of them.
        return (
            features.pipeline
            | "OnceForAll" >> beam.Create([None])
            | "JoinBlocks" >> beam.FlatMap(_join_blocks, AsList(blocks))
            | "FitBasis" >> beam.Map(fit_basis, self.config.dims, self.config.whiten)
        )


class _SumBundles(beam.DoFn):  # type: ignore[misc]
    """Sums a bundle's batches, and gives the sums in blocks, for runners limit how large a record may be."""

    def start_bundle(self) -> None:
        self._fn = MomentsFn()
        self._sum = self._fn.create_accumulator()

    # Beam would take an array's annotation for a type that not even another array's fits.
    def process(self, batch: Any) -> Iterator[tuple[int, MomentsBlock]]:
        self._sum = self._fn.add_input(self._sum, batch)
        yield from ()

    def finish_bundle(self) -> Iterator[Any]:
        moments = self._fn.extract_output(self._sum)
        if moments is not None:
            for block in moments.blocks():
                yield GlobalWindows.windowed_value(block)


def _sum_blocks(blocks: Iterable[MomentsBlock]) -> MomentsBlock:
    summed: MomentsBlock | None = None
    for block in blocks:
        if summed is None:
            # What is given may be given to others too, and must stay as it is.
            summed = copy.deepcopy(block)
        else:
            summed.merge(copy.deepcopy(block))
    if summed is None:
        raise ValueError("no blocks")
    return summed


def _join_blocks(_: None, blocks: list[MomentsBlock]) -> Iterator[Moments]:
    if blocks:
        yield Moments.of_blocks(blocks)


class MomentsFn(beam.CombineFn):  # type: ignore[misc]
    """Sums feature batches [n, feature_dim] to `Moments`."""

    def create_accumulator(self) -> tuple[Moments | None, list[Features]]:
        """Moments of no rows, and no rows waiting to be added."""
        return None, []

    def add_input(
        self, accumulator: tuple[Moments | None, list[Features]], batch: Features
    ) -> tuple[Moments | None, list[Features]]:
        """Adds a batch."""
        moments, waiting = accumulator
        waiting.append(batch)
        if sum(map(len, waiting)) < _MOMENT_ROWS:
            return moments, waiting
        return self.compact((moments, waiting))

    def compact(
        self, accumulator: tuple[Moments | None, list[Features]]
    ) -> tuple[Moments | None, list[Features]]:
        """Adds the waiting rows, before the accumulator travels."""
        moments, waiting = accumulator
        if waiting:
            rows = np.concatenate(waiting)
            moments = moments or Moments.empty(rows.shape[1])
            moments.add(rows)
        return moments, []

    def merge_accumulators(
        self, accumulators: Iterable[tuple[Moments | None, list[Features]]]
    ) -> tuple[Moments | None, list[Features]]:
        """Merges parts in any order."""
        merged: Moments | None = None
        for accumulator in accumulators:
            moments, _ = self.compact(accumulator)
            if merged is None:
                merged = moments
            elif moments is not None:
                merged.merge(moments)
        return merged, []

    def extract_output(self, accumulator: tuple[Moments | None, list[Features]]) -> Moments | None:
        """The moments of all rows."""
        return self.compact(accumulator)[0]


@dataclass
class ProjectFeatures(beam.PTransform):  # type: ignore[misc]
    """Projects ``(chunk, rows)`` of the store at `directory`; gives ``(shard, VectorRows)``.

    `basis` and `shard_count` are singletons. An image's shard depends on its uri alone.
    """

    directory: str
    basis: AsSingleton
    shard_count: AsSingleton

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, selection: Any) -> Any:
        """Applies the transform."""
        return selection | "ProjectChunks" >> beam.FlatMap(
            _project_chunk, self.directory, self.basis, self.shard_count
        )


def _project_chunk(
    element: tuple[str, Sequence[int]], directory: str, basis: Basis, shard_count: int
) -> Iterator[tuple[int, VectorRows]]:
    chunk, rows = element
    images, features = store.read_rows(directory, chunk, rows)
    vectors = basis.project(features)
    shards_rows: dict[int, list[int]] = defaultdict(list)
    for row, uri in enumerate(images["uri"].to_pylist()):
        shards_rows[bucket_of(uri, shard_count)].append(row)
    for shard, members in shards_rows.items():
        yield shard, VectorRows(images.take(members), vectors[members])


@dataclass
class WriteIndex(beam.PTransform):  # type: ignore[misc]
    """Writes `VectorRows` as Annoy and metadata shards of a generation; gives `ShardSummary`s.

    Takes a PCollection of ``(shard, VectorRows)`` and `shard_count`, a singleton. What `parts.directory`
    names below `generation` may be deleted once all summaries are there.
    """

    generation: str
    shard_count: AsSingleton
    config: IndexConfig
    threads: int | None = None  # shards that a worker builds at once; None: as many as it has cores

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: Any) -> Any:
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

    def process(self, element: tuple[int, VectorRows]) -> Iterator[tuple[int, str]]:
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
        self._pool = ThreadPoolExecutor(self._threads or available_cores(), "shard")
        self._shards: list[Future[ShardSummary]] = []

    def process(self, element: tuple[int, Iterable[str]], shard_count: int) -> None:
        shard, names = element
        parts = Parts(self._generation, names)
        self._shards.append(
            self._pool.submit(shards.write_shard, self._generation, shard, shard_count, parts, self._config)
        )

    def finish_bundle(self) -> Iterator[Any]:
        with self._pool:
            for shard in self._shards:
                yield GlobalWindows.windowed_value(shard.result())
