"""From a unit of listed images to a chunk of the store: read, hash, decode, embed, write."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from imgindex import listing, store
from imgindex.models.engines import Engine, embed_all
from imgindex.models.pca import normalize
from imgindex.models.preprocess import DecodeError, Pixels, decode
from imgindex.records import EmbeddedUnit, Failure, ImageFile, ImageRow

# Batches that decoder threads may be ahead of the backbone: enough that neither waits for the other.
_BATCHES_AHEAD = 3

_NO_DIRECTION = "its feature is zero or not finite"


Image = tuple[ImageRow, Pixels]


@dataclass(frozen=True)
class Executors:
    """A worker's threads: those that decode, and those that hand batches to the engine."""

    decode: Executor
    engine: Executor


@dataclass(frozen=True)
class EmbeddedBatch:
    """What the engine made of a batch of images."""

    rows: list[ImageRow]
    features: npt.NDArray[np.float16]  # [rows, feature_dim]
    failures: list[Failure]
    seconds: float


def embed_unit(
    files: Sequence[ImageFile],
    engine: Engine,
    store_directory: str,
    executors: Executors,
    *,
    max_bytes: int,
    max_pixels: int,
    advance: Callable[[int], None],
) -> EmbeddedUnit:
    """Embeds `files` and writes the features to one chunk of the store.

    Images are read and decoded while the engine runs. One that cannot be read, decoded or embedded
    becomes a `Failure` of the unit. `advance` is told how many images are done.

    Raises:
      OutputError: the chunk cannot be written.
    """
    started = time.time()
    rows: list[ImageRow] = []
    features = []
    failures: list[Failure] = []
    engine_seconds = 0.0

    def load(file: ImageFile) -> Image | Failure:
        return load_image(file, engine.image_size, max_bytes=max_bytes, max_pixels=max_pixels)

    def embed(batch: list[Image]) -> EmbeddedBatch:
        return embed_batch(engine, batch)

    loaded = _map_ahead(executors.decode, load, files, _BATCHES_AHEAD * engine.batch_size)
    batches = _full_batches(loaded, engine.batch_size, failures)
    # One batch more than the engine runs at once, so that it finds the next one ready.
    for batch in _map_ahead(executors.engine, embed, batches, engine.streams + 1):
        rows += batch.rows
        features.append(batch.features)
        failures += batch.failures
        engine_seconds += batch.seconds / engine.streams
        advance(len(batch.rows) + len(batch.failures))
    advance(len(files) - len(rows) - sum(failure.stage == "embed" for failure in failures))
    chunk = None
    if rows:
        chunk = store.write_chunk(store_directory, rows, np.concatenate(features))
    return EmbeddedUnit(
        chunk=chunk,
        rows=len(rows),
        failures=tuple(failures),
        started=started,
        finished=time.time(),
        engine_seconds=engine_seconds,
    )


def embed_batch(engine: Engine, images: Sequence[Image]) -> EmbeddedBatch:
    """Embeds at most a batch of decoded images."""
    pixels = np.stack([pixels for _, pixels in images])
    started = time.monotonic()
    output = embed_all(engine, pixels)
    seconds = time.monotonic() - started
    features, valid = normalize(output)
    return EmbeddedBatch(
        rows=[row for (row, _), ok in zip(images, valid, strict=True) if ok],
        features=features[valid],
        failures=[
            Failure(row.uri, "embed", "no_direction", _NO_DIRECTION)
            for (row, _), ok in zip(images, valid, strict=True)
            if not ok
        ],
        seconds=seconds,
    )


def _full_batches(
    loaded: Iterable[Image | Failure], size: int, failures: list[Failure]
) -> Iterator[list[Image]]:
    """Batches of `size` images, but for the last one; what failed goes to `failures`."""
    batch: list[Image] = []
    for image in loaded:
        if isinstance(image, Failure):
            failures.append(image)
            continue
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def load_image(
    file: ImageFile, image_size: tuple[int, int], *, max_bytes: int, max_pixels: int
) -> tuple[ImageRow, Pixels] | Failure:
    """Reads, hashes and decodes one image to pixels [height, width, 3] of `image_size`."""
    if file.size > max_bytes:
        message = f"{file.size} bytes are more than images.max_bytes ({max_bytes})"
        return Failure(file.uri, "read", "too_many_bytes", message)
    try:
        data = listing.read_image(file)
    except OSError as error:
        message = error.strerror or str(error)
        return Failure(file.uri, "read", _read_reason(error), message)
    try:
        image = decode(data, image_size, max_pixels)
    except DecodeError as error:
        return Failure(file.uri, "decode", error.reason, str(error))
    digest = hashlib.sha256(data).hexdigest()
    row = ImageRow(file.uri, file.size, file.version, digest, image.width, image.height)
    return row, image.pixels


def _read_reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "vanished"
    if isinstance(error, PermissionError):
        return "permission_denied"
    return "unreadable"


T = TypeVar("T")
R = TypeVar("R")


def _map_ahead(executor: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``map`` in `executor`'s threads, in order, at most `ahead` results in advance."""
    pending: deque[Future[R]] = deque()
    for item in items:
        if len(pending) == ahead:
            yield pending.popleft().result()
        pending.append(executor.submit(function, item))
    while pending:
        yield pending.popleft().result()
