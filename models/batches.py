"""Batches through an engine, several at once, whatever an image among them does to it."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgindex.errors import WorkerError
from imgindex.models.engines.protocol import Engine
from imgindex.models.pca import normalize
from imgindex.models.preprocess import Pixels


@dataclass(frozen=True)
class EmbedError:
    """Why an image has no feature; `reason` is a stable code."""

    reason: str
    message: str


_NO_DIRECTION = EmbedError("no_direction", "its feature is zero or not finite")


@dataclass(frozen=True)
class EmbeddedBatch:
    """What became of a batch; entry i of features and of errors is that of image i."""

    features: npt.NDArray[np.float16]  # [images, feature_dim], L2-normalized
    errors: Sequence[EmbedError | None]  # None where the feature is good
    seconds: float  # in the engine


class BatchEmbedder:
    """Embeds batches, as many at once as the engine has streams, and gives them back in their order.

    A batch that makes the engine fail is bisected to the images that do it. Where memory runs out, an engine
    for half as many images takes over.
    """

    def __init__(self, engine: Engine, smaller: Callable[[int], Engine]) -> None:
        """`smaller` loads the engine for batches of half a given size. It raises WorkerError."""
        self.engine = engine
        self._smaller = smaller
        self._streams = ThreadPoolExecutor(engine.streams, "engine")
        self._under_way: deque[tuple[Sequence[Pixels], Future[EmbeddedBatch | None]]] = deque()

    def __len__(self) -> int:
        """How many batches are under way."""
        return len(self._under_way)

    def submit(self, pixels: Sequence[Pixels]) -> None:
        """Begins with a batch of images [height, width, 3]."""
        self._under_way.append((pixels, self._streams.submit(_embed, self.engine, pixels)))

    def take(self) -> EmbeddedBatch:
        """The batch that was submitted first, once it is embedded.

        Raises:
          WorkerError: the engine fails whatever it is given.
        """
        while (batch := self._under_way[0][1].result()) is None:
            self._shrink()
        self._under_way.popleft()
        return batch

    def close(self) -> None:
        """Ends the threads. Batches that they have not begun with are dropped."""
        self._streams.shutdown(cancel_futures=True)

    def _shrink(self) -> None:
        """Exchanges the engine, and begins again with the batches that did not fit into memory."""
        wait([embedding for _, embedding in self._under_way])
        batch_size = self.engine.batch_size
        del self.engine  # the memory that it holds is wanted
        self.engine = self._smaller(batch_size)
        batches, self._under_way = self._under_way, deque()
        for pixels, embedding in batches:
            if embedding.result() is None:
                self.submit(pixels)
            else:
                self._under_way.append((pixels, embedding))


def embed_all(engine: Engine, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Features [n, feature_dim] of any number of images [n, height, width, 3].

    The last batch is filled up with black images: the engine's one batch size is all that is ever
    compiled, and the kernels chosen for it, and with them the features' bits, stay the same.
    """
    features = np.empty((len(pixels), engine.feature_dim), np.float32)
    for start in range(0, len(pixels), engine.batch_size):
        batch = pixels[start : start + engine.batch_size]
        count = len(batch)
        if count < engine.batch_size:
            padding = np.zeros((engine.batch_size - count, *batch.shape[1:]), np.uint8)
            batch = np.concatenate([batch, padding])
        features[start : start + count] = engine.embed(batch)[:count]
    return features


def _embed(engine: Engine, pixels: Sequence[Pixels]) -> EmbeddedBatch | None:
    """None where the engine's batches do not fit into memory, and smaller ones may."""
    started = time.monotonic()
    try:
        images = np.stack(pixels)
        output, complaints = _embed_apart(engine, images)
        if all(complaints):
            _, (complaint,) = _embed_apart(engine, np.zeros_like(images[:1]))
            if complaint:
                raise WorkerError(f"{engine.name} fails for every image, also for a black one: {complaint}")
    except MemoryError:
        return None
    seconds = time.monotonic() - started
    features, valid = normalize(output)
    errors = [
        EmbedError("engine_error", complaint) if complaint else None if has_direction else _NO_DIRECTION
        for complaint, has_direction in zip(complaints, valid, strict=True)
    ]
    return EmbeddedBatch(features, errors, seconds)


def _embed_apart(engine: Engine, images: Pixels) -> tuple[npt.NDArray[np.float32], list[str | None]]:
    """As `embed_all`, but with what the engine complains of where an image by itself makes it fail.

    Raises:
      MemoryError: a batch does not fit into memory, and a smaller one may.
    """
    try:
        return embed_all(engine, images), [None] * len(images)
    except Exception as error:  # each framework has its own
        if isinstance(error, MemoryError) and engine.batch_size > 1:
            raise
        if len(images) == 1:
            complaint = f"{type(error).__name__}: {error}"
            return np.zeros((1, engine.feature_dim), np.float32), [" ".join(complaint.split())]
    middle = len(images) // 2
    (left, of_left), (right, of_right) = (
        _embed_apart(engine, half) for half in (images[:middle], images[middle:])
    )
    return np.concatenate([left, right]), of_left + of_right
