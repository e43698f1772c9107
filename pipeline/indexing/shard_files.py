"""The files of a published generation, opened: none that is not as it was written."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.errors import DamagedError, MachineError, OutputError
from imgindex.indexing.shard_backend import SHARD_BACKEND
from imgindex.io import parquet_tables, written_files
from imgindex.models.ann.protocol import Metric
from imgindex.models.ann.shard_index import ShardIndex
from imgindex.models.pca import Basis
from imgindex.records import IndexedImage, WrittenFile

METADATA: parquet_tables.Columns = {
    "item": pa.types.is_int32,
    "uri": pa.types.is_string,
    "sha256": pa.types.is_string,
    "size": pa.types.is_int64,
    "width": pa.types.is_int32,
    "height": pa.types.is_int32,
    "label": pa.types.is_string,
}


# What an opened shard keeps open: Annoy's index and vectors, or vectors and metadata.
FILES_OF_A_SHARD = 2

# Rows that are Python objects at once.
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class OpenedShard:
    """A shard whose files belong together."""

    index: ShardIndex
    metadata: pa.Table  # of `METADATA`; row i describes item i


def open_shard(
    index: WrittenFile,
    metadata: WrittenFile,
    folder: Path,
    *,
    items: int,
    dims: int,
    metric: Metric,
    quick: bool = False,
) -> OpenedShard:
    """Opens a shard, whose files have whole paths.

    Args:
      index, metadata: its files.
      folder: where files of an object store are copied to, for indexes and metadata are mapped.
      items, dims, metric: what they should hold.
      quick: of the index look at the size and at a few bytes, where otherwise every byte is read.

    Raises DamagedError where the files are not those that were written, or not what they should hold.
    """
    opened = _open_index(index, folder, items, dims, metric, quick)
    with _map(metadata, folder) as source:
        table = _read(source, metadata, METADATA, items)
    _check_items(metadata, table, 0)
    return OpenedShard(opened, table)


@dataclass(frozen=True)
class MappedShard:
    """A shard whose files are mapped, so that its rows can be read even where they are deleted meanwhile."""

    vectors: npt.NDArray[np.float32]  # [items, dims], row i of item i
    _metadata: WrittenFile
    _source: pa.NativeFile

    def rows(self, most: int) -> Iterator[pa.Table]:
        """The columns of `METADATA`, at most `most` rows at a time, in the order of the items.

        Raises DamagedError.
        """
        start = 0
        with _as_damage(self._metadata):
            for table in parquet_tables.batches(
                self._source, METADATA, nullable=("label",), rows=len(self.vectors), most=most
            ):
                _check_items(self._metadata, table, start)
                yield table
                start += len(table)


def map_shard(
    index: WrittenFile, metadata: WrittenFile, folder: Path, *, items: int, dims: int, metric: Metric
) -> MappedShard:
    """As `open_shard`, but the metadata is read only as it is asked for, and is not held."""
    opened = _open_index(index, folder, items, dims, metric, False)
    return MappedShard(opened.vectors, metadata, _map(metadata, folder))


def _open_index(
    index: WrittenFile, folder: Path, items: int, dims: int, metric: Metric, quick: bool
) -> ShardIndex:
    local = written_files.localize_checked(index, folder, every_byte=not quick)
    try:
        opened = SHARD_BACKEND.open(local, metric=metric, dims=dims, items=items)
        if not quick:
            opened.check()
    except OutputError as error:
        raise DamagedError(f"{index.path} is damaged: {error}") from error
    return opened


def read_basis(file: WrittenFile) -> Basis:
    """The PCA basis in a file, whose path is whole. Raises DamagedError."""
    data = written_files.read_checked(file)
    try:
        return Basis.from_npz(data)
    except OutputError as error:
        raise DamagedError(f"{file.path} is damaged: {error}") from error


def read_digests(metadata: WrittenFile) -> Iterator[IndexedImage]:
    """The uri and SHA-256 of each image of a metadata shard, whose path is whole. Raises DamagedError."""
    columns = {name: METADATA[name] for name in ("uri", "sha256")}
    table = _read(pa.BufferReader(written_files.read_checked(metadata)), metadata, columns)
    for rows in table.to_batches(_BATCH_ROWS):
        yield from map(IndexedImage, rows["uri"].to_pylist(), rows["sha256"].to_pylist())


def contents_of(digests: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """A number for each of `digests`, from 0 on and the same for equal ones."""
    # Offsets of 32 bits would end at 2 GiB, which 33 million different digests take.
    encoded = digests.cast(pa.large_string()).dictionary_encode().unify_dictionaries()
    return np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])


def _map(file: WrittenFile, folder: Path) -> pa.NativeFile:
    local = written_files.localize_checked(file, folder)
    try:
        # Mapped by us: from a path Arrow would also read columns, of a folder that is named a=b.
        return pa.memory_map(str(local))
    except FileNotFoundError as error:  # it has just been pruned
        raise DamagedError(f"{file.path} cannot be read: {error.strerror or error}") from error


def _read(
    source: pa.NativeFile, file: WrittenFile, columns: parquet_tables.Columns, items: int | None = None
) -> pa.Table:
    with _as_damage(file):
        return parquet_tables.read(source, columns, nullable=("label",), rows=items)


def _check_items(metadata: WrittenFile, table: pa.Table, first: int) -> None:
    if not np.array_equal(table["item"].to_numpy(), np.arange(first, first + len(table))):
        raise DamagedError(f"{metadata.path} is damaged: its rows are not in the order of the items")


@contextlib.contextmanager
def _as_damage(file: WrittenFile) -> Iterator[None]:
    """Raises errors of this project for those that reading `file` ends in."""
    try:
        yield
    except MemoryError as error:
        raise MachineError(f"there is too little memory to read {file.path}") from error
    except ValueError as error:
        raise DamagedError(f"{file.path} is damaged: {error}") from error
