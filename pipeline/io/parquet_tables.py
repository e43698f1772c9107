"""Parquet files that may hold anything: read as the table that they should be, or refused."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# The columns that a table must have, and which types each may be of; others may stand beside them.
Columns = Mapping[str, Callable[[pa.DataType], bool]]

# What a row of ours makes at most, uncompressed: paths are shorter than 4 KiB, features than 64 KiB.
_MAX_ROW_BYTES = 1 << 18


def parquet_file(source: pa.NativeFile | IO[bytes]) -> pq.ParquetFile:
    """Opens a Parquet file that is to be read with ``use_threads=False``, and so in the thread that reads.

    A thread of Arrow's may be the last to hold what is Python's, as bytes or an open file. A process that
    ends at that moment aborts.
    """
    return pq.ParquetFile(source, pre_buffer=False)  # which would use threads too


def read(
    source: pa.NativeFile,
    columns: Columns | None = None,
    *,
    nullable: Collection[str] = (),
    optional: Collection[str] = (),
    rows: int | None = None,
) -> pa.Table:
    """Reads `columns` of an opened Parquet file, or all.

    What the file says of itself is looked at before anything is allocated for its content. Of `columns` only
    those that are `nullable` may have rows without a value, and only those that are `optional` may be
    missing; `rows` says how many rows there should be.

    Raises:
      ValueError: the file is damaged or does not hold what it should.
      MemoryError: this process has too little memory for it, which says nothing about the file.
    """
    with _as_value_error(), parquet_file(source) as file:
        columns = _checked(file, source, columns, optional, rows)
        table = file.read(None if columns is None else list(columns), use_threads=False)
        table.validate(full=True)
    _check_values(table, columns or (), nullable)
    return table


def batches(
    source: pa.NativeFile, columns: Columns, *, nullable: Collection[str] = (), rows: int, most: int
) -> Iterator[pa.Table]:
    """As `read`, at most `most` rows at a time; a fault that only values show is raised on the way there."""
    count = 0
    with _as_value_error(), parquet_file(source) as file:
        _checked(file, source, columns, (), rows)
        for batch in file.iter_batches(most, columns=list(columns), use_threads=False):
            table = pa.Table.from_batches([batch])
            table.validate(full=True)
            _check_values(table, columns, nullable)
            count += len(table)
            yield table
    if count != rows:
        raise ValueError(f"it has {count} rows and not {rows}")


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    try:
        yield
    except MemoryError:  # pyarrow's own is an ArrowException, too
        raise
    except (OSError, pa.ArrowException) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"it is no Parquet file that can be read: {message[:200]}") from error


def _checked(
    file: pq.ParquetFile,
    source: pa.NativeFile,
    columns: Columns | None,
    optional: Collection[str],
    rows: int | None,
) -> Columns | None:
    """`columns` without those that may be missing and are. Raises ValueError where `file` is unfit."""
    _check_sizes(file.metadata, source.size(), rows)
    if columns is not None:
        missing = {*optional}.difference(file.schema_arrow.names)
        columns = {name: fits for name, fits in columns.items() if name not in missing}
        _check_types(file.schema_arrow, columns)
    return columns


def _check_values(table: pa.Table, columns: Iterable[str], nullable: Collection[str]) -> None:
    for name in columns:
        values = pc.list_flatten(table[name]) if pa.types.is_nested(table[name].type) else table[name]
        if name not in nullable and (table[name].null_count or values.null_count):
            raise ValueError(f"its column {name} has rows without a value")


def _check_sizes(metadata: pq.FileMetaData, size: int, rows: int | None) -> None:
    if rows not in (None, metadata.num_rows):
        raise ValueError(f"it has {metadata.num_rows} rows and not {rows}")
    if metadata.num_rows > size:
        raise ValueError(f"it promises {metadata.num_rows} rows in {size} bytes")
    # Of the groups alone: what pyarrow tells of a damaged column ends the process.
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise ValueError("its row groups have other rows than it says")
    promised = sum(group.total_byte_size for group in groups)
    if promised > metadata.num_rows * _MAX_ROW_BYTES:
        raise ValueError(f"it promises {promised} bytes in {metadata.num_rows} rows")


def _check_types(schema: pa.Schema, columns: Columns) -> None:
    for name, fits in columns.items():
        types = [field.type for field in schema if field.name == name]
        if len(types) != 1:
            raise ValueError(f"it has {len(types)} columns {name}")
        if not fits(types[0]):
            raise ValueError(f"its column {name} is of type {types[0]}")
