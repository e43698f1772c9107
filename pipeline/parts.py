"""Parts: files of projected vectors on their way to shards, so that no shuffle has to hold them all."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from imgindex import chunks, storage
from imgindex.records import VectorRows

# Rows that make a file worth writing, some 11 MiB at 150 dimensions, and that may wait for theirs, of all
# shards together.
_PART_ROWS = 16_384
_WAITING_ROWS = 4 * _PART_ROWS

_VECTOR = "vector"


def directory(generation: str) -> str:
    """Where the parts of a generation in the making lie; nothing reads them once its shards are built."""
    return storage.join(generation, "parts")


class PartWriter:
    """Gathers a bundle's rows by shard and writes them in parts that are worth a file."""

    def __init__(self, generation: str) -> None:
        self._directory = directory(generation)
        self._waiting: dict[int, list[VectorRows]] = defaultdict(list)

    def add(self, shard: int, rows: VectorRows) -> Iterator[tuple[int, str]]:
        """Takes rows of a shard; gives ``(shard, name)`` of the parts that were written meanwhile."""
        self._waiting[shard].append(rows)
        if _row_count(self._waiting[shard]) >= _PART_ROWS:
            yield self._write(shard)
        elif sum(map(_row_count, self._waiting.values())) >= _WAITING_ROWS:
            yield from self.flush()

    def flush(self) -> Iterator[tuple[int, str]]:
        """Writes whatever waits."""
        for shard in list(self._waiting):
            yield self._write(shard)

    def _write(self, shard: int) -> tuple[int, str]:
        batches = self._waiting.pop(shard)
        images = pa.concat_tables([batch.images for batch in batches])
        vectors = np.concatenate([batch.vectors for batch in batches])
        table = images.append_column(_VECTOR, chunks.matrix_column(vectors))
        return shard, chunks.write(self._directory, table)


def _row_count(batches: list[VectorRows]) -> int:
    return sum(len(batch.vectors) for batch in batches)


class Parts(Iterable[VectorRows]):
    """Parts of a generation, read one by one, as often as they are iterated."""

    def __init__(self, generation: str, names: Iterable[str]) -> None:
        self._directory = directory(generation)
        self._names = list(names)

    def __iter__(self) -> Iterator[VectorRows]:
        for name in self._names:
            table = chunks.read(self._directory, name)
            yield VectorRows(table.drop_columns([_VECTOR]), chunks.matrix(table, _VECTOR))
