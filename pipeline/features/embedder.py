"""From units of listed images to chunks of the store: decode ahead, embed in full batches, write."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from imgindex.config import ImagesConfig
from imgindex.errors import InputError
from imgindex.features.known_failures import known_as, to_remember
from imgindex.inputs.image_reader import LoadedImage, load_image
from imgindex.models import decoder_pool
from imgindex.models.batches import BatchEmbedder
from imgindex.models.decoder import Decoder
from imgindex.models.engines.protocol import Engine
from imgindex.records import Failure, ImageFile, ImageRow, KnownFailure, StoredImage

# Batches that decoder threads may be ahead of the backbone: enough that neither waits for the other.
_BATCHES_AHEAD = 3

Features = npt.NDArray[np.float16]


@dataclass(frozen=True)
class EmbeddedUnit:
    """What embedding one unit of images gave: a chunk of the store and the images that failed."""

    images: tuple[StoredImage, ...]  # all of one chunk; none when every image failed
    failures: tuple[Failure, ...]
    started: float  # seconds since the epoch
    finished: float
    engine_seconds: float  # in the backbone itself
    known: tuple[KnownFailure, ...] = ()  # those of the failures that the store is to remember


@dataclass
class _Unit:
    """A unit under way: what of it is done."""

    size: int
    started: float = field(default_factory=time.time)
    rows: list[ImageRow] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    known: list[KnownFailure] = field(default_factory=list)
    engine_seconds: float = 0.0

    def is_done(self) -> bool:
        return len(self.rows) + len(self.failures) == self.size

    def fail(self, images: Sequence[ImageFile | ImageRow], failure: Failure, tries: int = 0) -> None:
        """Notes that `images`, which are of the same bytes, have failed, after so many `tries` before."""
        self.failures += [known_as(failure, image).failure for image in images]
        self.known += to_remember(failure, images, tries)


class UnitEmbedder:
    """Embeds units of images, one after the other, without a pause between them.

    While the last images of a unit are in the engine, the first of the next one are decoded, and a batch
    may hold images of both.
    """

    def __init__(
        self,
        engine: Engine,
        smaller: Callable[[int], Engine],
        limits: ImagesConfig,
        threads: int,
        write: Callable[[Sequence[ImageRow], Features], tuple[StoredImage, ...]],
        advance: Callable[[int], None],
        decoder: Decoder | None = None,
    ) -> None:
        """`smaller` is `BatchEmbedder`'s; `threads` read, and have `decoder` decode.

        Without `decoder` they share this process's pool with all other embedders. `write` makes a chunk;
        `advance` is told how many images are done.
        """
        self._resizing = engine.spec.resizing
        self._limits = limits
        self._write = write
        self._advance = advance
        self._threads = ThreadPoolExecutor(threads, "load")
        self._shares_pool = decoder is None
        self._decoder = decoder or decoder_pool.acquire(threads)
        self._loading: deque[tuple[_Unit, ImageFile, Future[LoadedImage | Failure]]] = deque()
        self._batch: list[tuple[_Unit, LoadedImage]] = []
        self._batches = BatchEmbedder(engine, smaller)
        self._embedding: deque[list[tuple[_Unit, LoadedImage]]] = deque()

    def embed(self, files: Sequence[ImageFile]) -> Iterator[EmbeddedUnit]:
        """Begins a unit and gives the units that are finished meanwhile.

        An image that cannot be read, decoded or embedded becomes a `Failure` of its unit. The others are
        written as one chunk.

        Raises:
          WorkerError: the engine fails for every image, or no decoder starts; besides, what `write` raises.
        """
        unit = _Unit(sum(1 + len(file.duplicates) for file in files))
        for file in files:
            while len(self._loading) >= _BATCHES_AHEAD * self._batches.engine.batch_size:
                yield from self._take_loaded()
            self._start_loading(unit, file)

    def finish(self) -> Iterator[EmbeddedUnit]:
        """Gives the units that are still under way. Raises what `embed` does."""
        while self._loading:
            yield from self._take_loaded()
        if self._batch:
            self._start_batch()
        while self._embedding:
            yield from self._take_embedded()

    def close(self) -> None:
        """Ends the threads, and the decoders that no other embedder shares."""
        self._threads.shutdown(cancel_futures=True)
        self._batches.close()
        if self._shares_pool:
            decoder_pool.release()
            self._shares_pool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_loading(self, unit: _Unit, file: ImageFile) -> None:
        loading = self._threads.submit(load_image, file, self._resizing, self._limits, self._decoder)
        self._loading.append((unit, file, loading))

    def _take_loaded(self) -> Iterator[EmbeddedUnit]:
        unit, file, loading = self._loading.popleft()
        try:
            loaded = loading.result()
        except InputError:
            # What waits would fail as slowly as what has failed.
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._write_unfinished(unit)
            raise
        if isinstance(loaded, Failure):
            # Its duplicates are other files, which can perhaps be read.
            failed: tuple[ImageFile, ...] = (file,)
            if loaded.stage != "read":
                failed += file.duplicates
            elif file.duplicates:
                first, *others = file.duplicates
                self._start_loading(unit, replace(first, duplicates=tuple(others), tries=file.tries))
            unit.fail(failed, loaded, file.tries)
            yield from self._count(unit, len(failed))
            return
        self._batch.append((unit, loaded))
        if len(self._batch) >= self._batches.engine.batch_size:
            # One batch more than the engine runs at once, so that it finds the next one ready.
            if len(self._batches) > self._batches.engine.streams:
                yield from self._take_embedded()
            self._start_batch()

    def _start_batch(self) -> None:
        self._batches.submit([pixels for _, (_, pixels) in self._batch])
        self._embedding.append(self._batch)
        self._batch = []

    def _take_embedded(self) -> Iterator[EmbeddedUnit]:
        embedded = self._batches.take()
        batch = self._embedding.popleft()
        batch[0][0].engine_seconds += embedded.seconds / self._batches.engine.streams
        for (unit, (rows, _)), feature, error in zip(batch, embedded.features, embedded.errors, strict=True):
            if error is None:
                unit.rows += rows
                unit.features += [feature] * len(rows)
            else:
                unit.fail(rows, Failure(rows[0].uri, "embed", error.reason, error.message, rows[0].sha256))
            yield from self._count(unit, len(rows))

    def _write_unfinished(self, unit: _Unit) -> None:
        """Writes what is embedded of `unit` and those behind it, in a run that ends before they are done."""
        units = [unit, *(each for each, _, _ in self._loading)]
        units += [each for batch in (*self._embedding, self._batch) for each, _ in batch]
        if self._batch:
            self._start_batch()
        while self._embedding:
            for _ in self._take_embedded():
                pass  # it is written
        for each in {id(each): each for each in units}.values():
            if each.rows and not each.is_done():
                self._write(each.rows, np.stack(each.features))

    def _count(self, unit: _Unit, images: int) -> Iterator[EmbeddedUnit]:
        self._advance(images)
        if not unit.is_done():
            return
        yield EmbeddedUnit(
            images=self._write(unit.rows, np.stack(unit.features)) if unit.rows else (),
            failures=tuple(unit.failures),
            known=tuple(unit.known),
            started=unit.started,
            finished=time.time(),
            engine_seconds=unit.engine_seconds,
        )
