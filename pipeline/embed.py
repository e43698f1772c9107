"""From a unit of listed images to a chunk of the store: read, hash, decode, embed, write."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from imgindex import storage, store
from imgindex.config import ImagesConfig
from imgindex.models.engines import Engine, embed_all
from imgindex.models.pca import normalize
from imgindex.models.preprocess import DecodeError, Pixels, decode
from imgindex.records import EmbeddedUnit, Failure, ImageFile, ImageRow

# Batches that decoder threads may be ahead of the backbone: enough that neither waits for the other.
_BATCHES_AHEAD = 3


LoadedImage = tuple[ImageRow, Pixels]


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
    limits: ImagesConfig,
    threads: int,
    advance: Callable[[int], None],
) -> EmbeddedUnit:
    """Embeds `files` and writes the features to one chunk of the store.

    An image that cannot be read, decoded or embedded becomes a `Failure` of the unit. `advance` is told how
    many images are done.

    Raises:
      OutputError: the chunk cannot be written.
    """
    started = time.time()
    rows: list[ImageRow] = []
    features = []
    failures: list[Failure] = []
    engine_seconds = 0.0
    for batch in embed_files(files, engine, limits, threads):
        rows += batch.rows
        features.append(batch.features)
        failures += batch.failures
        engine_seconds += batch.seconds / engine.streams
        advance(len(batch.rows) + len(batch.failures))
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


def embed_files(
    files: Sequence[ImageFile], engine: Engine, limits: ImagesConfig, threads: int
) -> Iterator[EmbeddedBatch]:
    """Embeds `files` in their order; `threads` read and decode them while the engine runs."""

    def load(file: ImageFile) -> LoadedImage | Failure:
        return load_image(file, engine.image_size, limits)

    def embed(batch: tuple[list[LoadedImage], list[Failure]]) -> EmbeddedBatch:
        return _embed_batch(engine, *batch)

    with (
        ThreadPoolExecutor(threads, "decode") as decoders,
        ThreadPoolExecutor(engine.streams, "engine") as streams,
    ):
        loaded = _map_ahead(decoders, load, files, _BATCHES_AHEAD * engine.batch_size)
        # One batch more than the engine runs at once, so that it finds the next one ready.
        yield from _map_ahead(streams, embed, _full_batches(loaded, engine.batch_size), engine.streams + 1)


def _full_batches(
    loaded: Iterable[LoadedImage | Failure], size: int
) -> Iterator[tuple[list[LoadedImage], list[Failure]]]:
    """Batches of `size` images, but for the last one, with the failures that came between them."""
    images: list[LoadedImage] = []
    failures: list[Failure] = []
    for image in loaded:
        if isinstance(image, Failure):
            failures.append(image)
            continue
        images.append(image)
        if len(images) == size:
            yield images, failures
            images, failures = [], []
    if images or failures:
        yield images, failures


def _embed_batch(engine: Engine, images: Sequence[LoadedImage], failures: Sequence[Failure]) -> EmbeddedBatch:
    if not images:
        return EmbeddedBatch([], np.empty((0, engine.feature_dim), np.float16), list(failures), 0.0)
    pixels = np.stack([pixels for _, pixels in images])
    started = time.monotonic()
    output = embed_all(engine, pixels)
    seconds = time.monotonic() - started
    features, valid = normalize(output)
    no_direction = [
        Failure(row.uri, "embed", "no_direction", "its feature is zero or not finite")
        for (row, _), ok in zip(images, valid, strict=True)
        if not ok
    ]
    return EmbeddedBatch(
        rows=[row for (row, _), ok in zip(images, valid, strict=True) if ok],
        features=features[valid],
        failures=[*failures, *no_direction],
        seconds=seconds,
    )


def load_image(file: ImageFile, image_size: tuple[int, int], limits: ImagesConfig) -> LoadedImage | Failure:
    """Reads, hashes and decodes one image to pixels [height, width, 3] of `image_size`."""
    if file.size > limits.max_bytes:
        message = f"{file.size} bytes are more than images.max_bytes ({limits.max_bytes})"
        return Failure(file.uri, "read", "too_many_bytes", message)
    try:
        data = storage.read_bytes(file.path)
    except OSError as error:
        message = error.strerror or str(error)
        return Failure(file.uri, "read", _read_reason(error), message)
    try:
        image = decode(data, image_size, limits.max_pixels)
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
