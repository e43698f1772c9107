"""From a unit of listed images to a chunk of the store: read, hash, decode, embed, write."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np
from imgindex import listing, store
from imgindex.models.engines import Engine
from imgindex.models.pca import normalize
from imgindex.models.preprocess import DecodeError, Pixels, decode
from imgindex.records import EmbeddedUnit, Failure, ImageFile, ImageRow

# Batches that decoder threads may be ahead of the backbone: enough that neither waits for the other.
_BATCHES_AHEAD = 3

_NO_DIRECTION = "its feature is zero or not finite"


def embed_unit(
    files: Sequence[ImageFile],
    engine: Engine,
    store_directory: str,
    executor: Executor,
    *,
    max_bytes: int,
    max_pixels: int,
    advance: Callable[[int], None],
) -> EmbeddedUnit:
    """Embeds `files` and writes the features to one chunk of the store.

    Images are read and decoded in `executor`'s threads while the engine runs. One that cannot be
    read, decoded or embedded becomes a `Failure` of the unit. `advance` is told of each image.

    Raises:
      OutputError: the chunk cannot be written.
    """
    started = time.time()
    rows: list[ImageRow] = []
    features = []
    failures: list[Failure] = []
    engine_seconds = 0.0

    def load(file: ImageFile) -> tuple[ImageRow, Pixels] | Failure:
        return load_image(file, engine.image_size, max_bytes=max_bytes, max_pixels=max_pixels)

    ahead = _BATCHES_AHEAD * engine.batch_size
    images: list[tuple[ImageRow, Pixels]] = []
    for position, loaded in enumerate(_map_ahead(executor, load, files, ahead), start=1):
        if isinstance(loaded, Failure):
            failures.append(loaded)
        else:
            images.append(loaded)
        if len(images) == engine.batch_size or (images and position == len(files)):
            began = time.monotonic()
            output = engine.embed(np.stack([pixels for _, pixels in images]))
            engine_seconds += time.monotonic() - began
            unit, valid = normalize(output)
            features.append(unit[valid])
            for (row, _), ok in zip(images, valid, strict=True):
                if ok:
                    rows.append(row)
                else:
                    failures.append(Failure(row.uri, "embed", "no_direction", _NO_DIRECTION))
            images.clear()
        advance(1)
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


def _map_ahead(executor: Executor, function: Callable[[T], R], items: Sequence[T], ahead: int) -> Iterator[R]:
    """``map`` in `executor`'s threads, in order, at most `ahead` results in advance."""
    pending: deque[Future[R]] = deque()
    for item in items:
        if len(pending) == ahead:
            yield pending.popleft().result()
        pending.append(executor.submit(function, item))
    while pending:
        yield pending.popleft().result()
