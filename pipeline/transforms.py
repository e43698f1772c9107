"""The transforms: they only wire; the work is in the plain functions of the modules beside them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from apache_beam.pvalue import AsSingleton
from apache_beam.transforms.window import GlobalWindows

from imgindex import failure_lists, failures, store
from imgindex.config import ImagesConfig, IndexConfig
from imgindex.embed import UnitEmbedder
from imgindex.errors import OutputError
from imgindex.metrics import count_embedded, count_failure
from imgindex.models.engines import EngineChoice, load_engine, load_smaller_engine
from imgindex.models.pca import Basis
from imgindex.models.resources import available_cores
from imgindex.parts import Part, Parts, PartWriter
from imgindex.progress import EMBEDDING
from imgindex.records import (
    EmbeddedUnit,
    Failure,
    FailureList,
    ImageFile,
    ShardSummary,
    VectorRows,
    bucket_of,
)
from imgindex.shard_memory import default_limit, write_within

# Images, duplicates included, that are embedded, stored and, when a worker dies, embedded again together.
UNIT_IMAGES = store.CHUNK_ROWS

Features = npt.NDArray[np.float16]


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
            | "BatchImages"
            >> beam.BatchElements(
                min_batch_size=UNIT_IMAGES, max_batch_size=UNIT_IMAGES, element_size_fn=_images_in
            )
            # A unit of its own to retry, and no chunk of work that only one worker can take.
            | "SpreadUnits" >> beam.Reshuffle()
            | "EmbedUnits" >> beam.ParDo(_EmbedUnits(self))
        )


def _expect(file: ImageFile) -> ImageFile:
    EMBEDDING.expect(_images_in(file))
    return file


def _images_in(file: ImageFile) -> int:
    return 1 + len(file.duplicates)


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
class WriteFailures(beam.PTransform):  # type: ignore[misc]
    """Writes `Failure`s as the lists of a generation; gives `FailureList`s.

    `list_count`, a singleton, is how many lists there are to be; each comes, also where it is empty.
    """

    generation: str
    list_count: AsSingleton

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, failed: Any) -> Any:
        """Applies the transform."""
        pairs = tuple[int, Any]  # whose coder every runner knows
        return (
            (
                failed.pipeline
                | "Once" >> beam.Create([None])
                | "NumberLists" >> beam.FlatMap(_every_list, self.list_count).with_output_types(pairs),
                failed
                | "SpreadOverLists" >> beam.Map(_in_its_list, self.list_count).with_output_types(pairs),
            )
            | "FlattenLists" >> beam.Flatten()
            | "GroupByList" >> beam.GroupByKey()
            | "WriteLists" >> beam.Map(_write_list, self.generation, self.list_count)
        )


def _every_list(_: None, list_count: int) -> Iterator[tuple[int, tuple[Failure, ...]]]:
    return ((number, ()) for number in range(list_count))


def _in_its_list(failure: Failure, list_count: int) -> tuple[int, tuple[Failure, ...]]:
    return failure_lists.list_of(failure, list_count), (failure,)


def _write_list(
    element: tuple[int, Iterable[tuple[Failure, ...]]], generation: str, list_count: int
) -> FailureList:
    number, parts = element
    failed = (failure for part in parts for failure in part)
    return failure_lists.write_list(generation, number, list_count, failed)


@dataclass
class ReadFeatures(beam.PTransform):  # type: ignore[misc]
    """Reads ``(chunk, rows)`` of the store at `directory` as feature batches [rows, feature_dim]."""

    directory: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, selection: Any) -> Any:
        """Applies the transform."""
        return selection | "ReadChunks" >> beam.FlatMap(_read_features, self.directory)


def _read_features(selected: tuple[str, Sequence[int]], directory: str) -> Iterator[Features]:
    chunk, rows = selected
    return (features for _, features in store.each_rows(directory, chunk, rows))


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
    for images, features in store.each_rows(directory, chunk, rows):
        vectors = basis.project(features)
        shards_rows: dict[int, list[int]] = defaultdict(list)
        for row, uri in enumerate(images["uri"].to_pylist()):
            shards_rows[bucket_of(uri, shard_count)].append(row)
        for shard, members in shards_rows.items():
            yield shard, VectorRows(images.take(members), vectors[members])


@dataclass
class WriteIndex(beam.PTransform):  # type: ignore[misc]
    """Writes `VectorRows` as Annoy and metadata shards of a generation; gives `ShardSummary`s.

    A worker builds shards side by side as far as its cores and `index.memory` go.

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
