"""From units of listed images to chunks of the store: decode ahead, embed in full batches, write."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from imgindex.config import ImagesConfig
from imgindex.errors import InputError
from imgindex.failures import is_lasting, known_as
from imgindex.loading import LoadedImage, load_image
from imgindex.models.engines import Engine, embed_all
from imgindex.models.pca import normalize
from imgindex.models.preprocess import Pixels
from imgindex.records import EmbeddedUnit, Failure, ImageFile, ImageRow, KnownFailure, StoredImage

# Batches that decoder threads may be ahead of the backbone: enough that neither waits for the other.
_BATCHES_AHEAD = 3

Features = npt.NDArray[np.float16]


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

    def fail(self, images: Sequence[ImageFile | ImageRow], failure: Failure) -> None:
        """Notes that `images`, which are of the same bytes, have failed."""
        for image in images:
            known = known_as(failure, image)
            self.failures.append(known.failure)
            if is_lasting(failure):
                self.known.append(known)


@dataclass(frozen=True)
class _Embedded:
    """What the engine made of a batch."""

    features: Features  # [rows, feature_dim], L2-normalized
    valid: npt.NDArray[np.bool_]  # whether the feature has a direction, [rows]
    seconds: float


class UnitEmbedder:
    """Embeds units of images, one after the other, without a pause between them.

    While the last images of a unit are in the engine, the first of the next one are decoded, and a batch
    may hold images of both.
    """

    def __init__(
        self,
        engine: Engine,
        limits: ImagesConfig,
        threads: int,
        write: Callable[[Sequence[ImageRow], Features], tuple[StoredImage, ...]],
        advance: Callable[[int], None],
    ) -> None:
        """`threads` read and decode; `write` makes a chunk; `advance` is told how many images are done."""
        self._engine = engine
        self._limits = limits
        self._write = write
        self._advance = advance
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._streams = ThreadPoolExecutor(engine.streams, "engine")
        self._loading: deque[tuple[_Unit, ImageFile, Future[LoadedImage | Failure]]] = deque()
        self._batch: list[tuple[_Unit, LoadedImage]] = []
        self._embedding: deque[tuple[list[tuple[_Unit, LoadedImage]], Future[_Embedded]]] = deque()

    def embed(self, files: Sequence[ImageFile]) -> Iterator[EmbeddedUnit]:
        """Begins a unit and gives the units that are finished meanwhile.

        An image that cannot be read, decoded or embedded becomes a `Failure` of its unit. The others are
        written as one chunk. Raises what `write` does.
        """
        unit = _Unit(sum(1 + len(file.duplicates) for file in files))
        for file in files:
            if len(self._loading) == _BATCHES_AHEAD * self._engine.batch_size:
                yield from self._take_loaded()
            loading = self._decoders.submit(load_image, file, self._engine.image_size, self._limits)
            self._loading.append((unit, file, loading))

    def finish(self) -> Iterator[EmbeddedUnit]:
        """Gives the units that are still under way, and ends the threads. Raises what `embed` does."""
        while self._loading:
            yield from self._take_loaded()
        if self._batch:
            self._start_batch()
        while self._embedding:
            yield from self._take_embedded()
        self._decoders.shutdown()
        self._streams.shutdown()

    def _take_loaded(self) -> Iterator[EmbeddedUnit]:
        unit, file, loading = self._loading.popleft()
        try:
            loaded = loading.result()
        except InputError:
            # What waits would fail as slowly as what has failed.
            self._decoders.shutdown(wait=False, cancel_futures=True)
            raise
        if isinstance(loaded, Failure):
            files = (file, *file.duplicates)
            unit.fail(files, loaded)
            yield from self._count(unit, len(files))
            return
        self._batch.append((unit, loaded))
        if len(self._batch) == self._engine.batch_size:
            # One batch more than the engine runs at once, so that it finds the next one ready.
            if len(self._embedding) > self._engine.streams:
                yield from self._take_embedded()
            self._start_batch()

    def _start_batch(self) -> None:
        pixels = [pixels for _, (_, pixels) in self._batch]
        self._embedding.append((self._batch, self._streams.submit(_embed_pixels, self._engine, pixels)))
        self._batch = []

    def _take_embedded(self) -> Iterator[EmbeddedUnit]:
        batch, embedding = self._embedding.popleft()
        embedded = embedding.result()
        batch[0][0].engine_seconds += embedded.seconds / self._engine.streams
        for (unit, (rows, _)), feature, valid in zip(batch, embedded.features, embedded.valid, strict=True):
            if valid:
                unit.rows += rows
                unit.features += [feature] * len(rows)
            else:
                message = "its feature is zero or not finite"
                unit.fail(rows, Failure(rows[0].uri, "embed", "no_direction", message, rows[0].sha256))
            yield from self._count(unit, len(rows))

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


def _embed_pixels(engine: Engine, pixels: Sequence[Pixels]) -> _Embedded:
    batch = np.stack(pixels)
    started = time.monotonic()
    output = embed_all(engine, batch)
    seconds = time.monotonic() - started
    features, valid = normalize(output)
    return _Embedded(features, valid, seconds)
