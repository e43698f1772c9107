"""The transforms of the store: they only wire; the work is in the modules beside them."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.decorators import no_annotations

from imgindex.config import ImagesConfig
from imgindex.errors import OutputError
from imgindex.features import feature_store, known_failures
from imgindex.features.diff import diff_bucket, file_names, read_keys
from imgindex.features.duplicates import digest_bucket, find_suspects, hash_files, match_digests, size_bucket
from imgindex.features.embedder import EmbeddedUnit, UnitEmbedder
from imgindex.features.join import JoinBy, uri_bucket
from imgindex.models.engines.loading import load_engine, load_smaller_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.records import Failure, ImageFile, KnownFailure, StoredImage
from imgindex.runtime.beam_counters import count_embedded, count_failure
from imgindex.runtime.progress import EMBEDDING
from imgindex.runtime.resources import available_cores

# Images that are hashed together, and again when a worker dies.
_HASHED_IMAGES = 512


class Delta(NamedTuple):
    """A listing against the store."""

    new: PCollection[ImageFile]  # to embed, with those of the same bytes as their `duplicates`
    found: PCollection[list[StoredImage]]  # what the store holds
    copied: PCollection[EmbeddedUnit]  # of files whose bytes the store holds under another name or time
    failed: PCollection[Failure]  # of files whose bytes are known to be bad, or whose uri another file has
    damaged: PCollection[str]  # the names of chunks that were dropped, for they are not as they were written


@dataclass
class DiffAgainstStore(beam.PTransform):  # type: ignore[misc]
    """Splits `ImageFile`s by whether the store at `directory` holds their features; gives a `Delta`.

    A file is held, or known to be bad, when its uri, size and times or etag are. Of the others, those that
    share their size with another file, a stored or a bad image are read and compared by SHA-256. So are those
    of which the store says two things, and with `rehash` all that it holds.

    Of several files of one uri the one whose path sorts first counts, but a file before a member of a tar;
    the others fail. A chunk whose bytes are not those that were written is deleted, and what it held is not
    held.
    """

    directory: str
    images: ImagesConfig = field(default_factory=ImagesConfig)
    threads: int | None = None  # that read files in a worker; None: as many as it has cores
    retry_failed: bool = False  # takes no image for bad
    feature_dim: int | None = None  # of the store's features; None: whatever they have
    rehash: bool = False  # takes no file for unchanged without reading it

    # Beam knows the annotations of a single PCollection only.
    @no_annotations  # type: ignore[untyped-decorator]
    def expand(self, files: PCollection[ImageFile]) -> Delta:
        """Applies the transform."""
        keys = (
            files.pipeline
            | "LocateStore" >> beam.Create([self.directory])
            | "ListChunks" >> beam.FlatMap(file_names, self.retry_failed)
            | "SpreadChunks" >> beam.Reshuffle()
            | "ReadKeys"
            >> beam.FlatMap(read_keys, self.directory, self.feature_dim, self.images).with_outputs(
                "damaged", main="stored"
            )
        )
        stored = keys.stored
        diff = (
            (files, stored)
            | "JoinByUri" >> JoinBy(uri_bucket)
            | "Diff" >> beam.FlatMap(diff_bucket, self.rehash).with_outputs("found", "failed", main="missing")
        )
        by_size = (
            (diff.missing, stored)
            | "JoinBySize" >> JoinBy(size_bucket)
            | "FindSuspects"
            >> beam.FlatMap(find_suspects).with_outputs("suspects", "same_size", main="fresh")
        )
        digests = (
            by_size.suspects
            | "BatchSuspects"
            >> beam.BatchElements(min_batch_size=_HASHED_IMAGES, max_batch_size=_HASHED_IMAGES)
            | "SpreadSuspects" >> beam.Reshuffle()
            | "Hash"
            >> beam.FlatMap(hash_files, self.images, self.threads).with_outputs(
                "unreadable", "confirmed", "failed", main="hashed"
            )
        )
        matched = (
            (digests.hashed, by_size.same_size)
            | "JoinByDigest" >> JoinBy(digest_bucket)
            | "MatchDigests" >> beam.FlatMap(match_digests).with_outputs("copies", "bad", main="distinct")
        )
        copied = (
            matched.copies
            # By the chunk, which is read once then.
            | "KeyCopies" >> beam.Map(_by_chunk)
            | "GroupCopies" >> beam.GroupByKey()
            | "Copy" >> beam.ParDo(_CopyRows(self.directory))
        )
        bad = (
            matched.bad
            | "BatchBad" >> beam.BatchElements(min_batch_size=_HASHED_IMAGES, max_batch_size=_HASHED_IMAGES)
            | "RememberBad" >> beam.FlatMap(_remember, self.directory)
        )
        failed = (diff.failed, digests.failed, bad) | "FlattenFailed" >> beam.Flatten()
        new = (by_size.fresh, digests.unreadable, matched.distinct) | "FlattenNew" >> beam.Flatten()
        return Delta(
            new,
            (diff.found, digests.confirmed) | "FlattenFound" >> beam.Flatten(),
            copied,
            failed | "CountFailed" >> beam.Map(count_failure),
            keys.damaged,
        )


# Its types say the key's coder, which every runner knows.
def _by_chunk(copy: tuple[ImageFile, StoredImage]) -> tuple[str, tuple[ImageFile, StoredImage]]:
    return copy[1].chunk, copy


@beam.typehints.with_input_types(tuple[str, Any])
class _CopyRows(beam.DoFn):  # type: ignore[misc]
    """Gives files rows of their own in the store, copied from those of the same bytes, chunk by chunk."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def start_bundle(self) -> None:
        self._copier = feature_store.RowCopier(self._directory)

    def process(self, element: tuple[str, Iterable[tuple[ImageFile, StoredImage]]]) -> Iterator[EmbeddedUnit]:
        return map(_copied_unit, self._copier.copy(*element))

    def finish_bundle(self) -> Iterator[Any]:
        for images in self._copier.flush():
            yield GlobalWindows.windowed_value(_copied_unit(images))


def _copied_unit(images: tuple[StoredImage, ...]) -> EmbeddedUnit:
    now = time.time()
    return EmbeddedUnit(images, failures=(), started=now, finished=now, engine_seconds=0.0)


def _remember(known: Sequence[KnownFailure], directory: str) -> Iterator[Failure]:
    """Has the store know files under their own names as it knows bad ones of the same bytes."""
    known_failures.write(directory, known)
    return (failed.failure for failed in known)


# Images, duplicates included, that are embedded, stored and, when a worker dies, embedded again together.
UNIT_IMAGES = feature_store.CHUNK_ROWS

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

    def expand(self, files: PCollection[ImageFile]) -> PCollection[EmbeddedUnit]:
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
        known_failures.write(self._directory, unit.known)
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
        write = partial(feature_store.write_rows, self._directory)
        return UnitEmbedder(engine, smaller, self._images, threads, write, EMBEDDING.advance)


@dataclass
class ReadFeatures(beam.PTransform):  # type: ignore[misc]
    """Reads ``(chunk, rows)`` of the store at `directory` as feature batches [rows, feature_dim]."""

    directory: str

    def expand(self, selection: PCollection[tuple[str, Sequence[int]]]) -> PCollection[Any]:
        """Applies the transform."""
        return selection | "ReadChunks" >> beam.FlatMap(_read_features, self.directory)


def _read_features(selected: tuple[str, Sequence[int]], directory: str) -> Iterator[Features]:
    chunk, rows = selected
    return (features for _, features in feature_store.each_rows(directory, chunk, rows))


@dataclass
class GroupByChunk(beam.PTransform):  # type: ignore[misc]
    """Turns lists of `StoredImage`s into ``(chunk, rows)``, each chunk once."""

    def expand(self, held: PCollection[list[StoredImage]]) -> PCollection[tuple[str, list[int]]]:
        """Applies the transform."""
        return (
            held
            | "SplitByChunk" >> beam.FlatMap(_rows_by_chunk)
            | "GroupRows" >> beam.GroupByKey()
            | "SortRows" >> beam.MapTuple(_sorted_rows)
        )


def _rows_by_chunk(images: Iterable[StoredImage]) -> Iterable[tuple[str, list[int]]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for image in images:
        rows[image.chunk].append(image.row)
    return rows.items()


def _sorted_rows(chunk: str, parts: Iterable[list[int]]) -> tuple[str, list[int]]:
    return chunk, sorted(row for rows in parts for row in rows)
