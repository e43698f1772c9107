"""Parquet files named by the digest of their bytes: whole or not there, and never altered unnoticed."""

import hashlib
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from imgindex import storage
from imgindex.errors import OutputError

_SUFFIX = ".parquet"


def write(directory: str, table: pa.Table, kind: str = "chunk") -> str:
    """Writes `table` to `directory` and returns the chunk's name, which `kind` begins. Raises OutputError."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    data = buffer.getvalue().to_pybytes()
    name = f"{kind}-{_digest(data)}{_SUFFIX}"
    storage.write_bytes(storage.join(directory, name), data)
    return name


def names(directory: str, kind: str = "chunk") -> list[str]:
    """The names of the chunks of a kind in `directory`, sorted. Raises OutputError."""
    return [name for name in storage.list_names(directory, _SUFFIX) if name.startswith(f"{kind}-")]


def read(directory: str, name: str) -> pa.Table:
    """Reads a chunk. Raises OutputError where it is missing or damaged."""
    path = storage.join(directory, name)
    data = storage.read_written(path)
    if not name.endswith(f"-{_digest(data)}{_SUFFIX}"):
        raise OutputError(
            f"{path} is damaged: its bytes do not match the digest in its name; delete it and build again"
        )
    return pq.read_table(pa.BufferReader(data))


def matrix(table: pa.Table, column: str) -> npt.NDArray[Any]:
    """The rows of a fixed-size-list column as an array [rows, values]."""
    values = table[column].combine_chunks()
    flat: npt.NDArray[Any] = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(table), values.type.list_size)


def matrix_column(values: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """An array [rows, values] as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
