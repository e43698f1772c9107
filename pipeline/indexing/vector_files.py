"""Parts: files of projected vectors on their way to shards, so that no shuffle has to hold them all."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.io import content_addressed, filesystem

# Rows that make a file worth writing, some 11 MiB at 150 dimensions, and that may wait for theirs, of all
# shards together.
_PART_ROWS = 16_384
_WAITING_ROWS = 4 * _PART_ROWS

_VECTOR = "vector"


@dataclass(frozen=True)
class VectorRows:
    """A batch of projected images on the way to their shard; row i of both fields is one image."""

    images: pa.Table  # uri, sha256, size, width, height
    vectors: npt.NDArray[np.float32]  # [n, dims]


def directory(generation: str) -> str:
    """Where the parts of a generation in the making lie; nothing reads them once its shards are built."""
    return filesystem.join(generation, "parts")


class Part(NamedTuple):
    """A written part."""

    name: str
    rows: int
    dims: int  # of a vector


class PartWriter:
    """Gathers a bundle's rows by shard and writes them in parts that are worth a file."""

    def __init__(self, generation: str) -> None:
        self._directory = directory(generation)
        self._waiting: dict[int, list[VectorRows]] = defaultdict(list)
        # Counted as they come and go: with many shards a sum over all of them would take most of the time.
        self._shard_rows: Counter[int] = Counter()
        self._waiting_rows = 0

    def add(self, shard: int, rows: VectorRows) -> Iterator[tuple[int, Part]]:
        """Takes rows of a shard; gives ``(shard, part)`` of the parts that were written meanwhile."""
        self._waiting[shard].append(rows)
        self._shard_rows[shard] += len(rows.vectors)
        self._waiting_rows += len(rows.vectors)
        if self._shard_rows[shard] >= _PART_ROWS:
            yield self._write(shard)
        elif self._waiting_rows >= _WAITING_ROWS:
            yield from self.flush()

    def flush(self) -> Iterator[tuple[int, Part]]:
        """Writes whatever waits."""
        for shard in list(self._waiting):
            yield self._write(shard)

    def _write(self, shard: int) -> tuple[int, Part]:
        batches = self._waiting.pop(shard)
        self._waiting_rows -= self._shard_rows.pop(shard)
        images = pa.concat_tables([batch.images for batch in batches])
        vectors = np.concatenate([batch.vectors for batch in batches])
        table = images.append_column(_VECTOR, content_addressed.matrix_column(vectors))
        return shard, Part(content_addressed.write(self._directory, table), *vectors.shape)


class Parts(Iterable[VectorRows]):
    """Parts of a generation, read one by one, as often as they are iterated."""

    def __init__(self, generation: str, parts: Sequence[Part]) -> None:
        self._directory = directory(generation)
        self._parts = parts

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(part.rows for part in self._parts)

    @property
    def dims(self) -> int:
        """The length of a vector."""
        return self._parts[0].dims

    def __iter__(self) -> Iterator[VectorRows]:
        for part in self._parts:
            table = content_addressed.read(self._directory, part.name)
            yield VectorRows(table.drop_columns([_VECTOR]), content_addressed.matrix(table, _VECTOR))
