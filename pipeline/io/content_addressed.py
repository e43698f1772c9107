"""Parquet files named by the digest of their bytes: whole or not there, and never altered unnoticed."""

import hashlib
import re
from collections.abc import Collection
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from imgindex.errors import DamagedError, MachineError, MismatchError, OutputError
from imgindex.io import filesystem, parquet_tables

_SUFFIX = ".parquet"

# More than any build has written: in older stores a chunk may hold all copies of an image.
_MAX_BYTES = 1 << 33


def write(directory: str, table: pa.Table, kind: str = "chunk") -> str:
    """Writes `table` to `directory` and returns the chunk's name, which `kind` begins. Raises OutputError."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    data = buffer.getvalue().to_pybytes()
    name = f"{kind}-{_digest(data)}{_SUFFIX}"
    filesystem.write_bytes(filesystem.join(directory, name), data)
    return name


def names(directory: str, kind: str = "chunk") -> list[str]:
    """The names of the chunks of a kind in `directory`, sorted. Raises OutputError."""
    finished = re.compile(rf"{kind}-[0-9a-f]{{32}}\.parquet")
    return [name for name in filesystem.list_names(directory, _SUFFIX) if finished.fullmatch(name)]


def read(
    directory: str, name: str, columns: parquet_tables.Columns | None = None, optional: Collection[str] = ()
) -> pa.Table:
    """Reads `columns` of a chunk, or all. Those that are `optional` may be missing or have no value.

    Raises:
      MismatchError: its bytes are not those that were written.
      DamagedError: it is not there.
      MachineError: there is too little memory to read it.
      OutputError: it cannot be read, or is as it was written and yet holds something else.
    """
    path = filesystem.join(directory, name)
    try:
        data = filesystem.read_written(path, _MAX_BYTES)
        if not name.endswith(f"-{_digest(data)}{_SUFFIX}"):
            raise MismatchError(f"{path} is damaged: its bytes do not match the digest in its name")
        return parquet_tables.read(pa.BufferReader(data), columns, nullable=optional, optional=optional)
    except MismatchError:
        raise
    except DamagedError as error:  # it is larger than any chunk that was ever written
        raise MismatchError(str(error)) from error
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise DamagedError(f"{path} is not there") from error
        raise
    except MemoryError as error:
        raise MachineError(f"there is too little memory to read {path}; it stays as it is") from error
    except ValueError as error:
        raise unusable(path, str(error)) from error


def unusable(path: str, why: str) -> OutputError:
    """The error of a chunk that matches its digest and yet is none that this version can use."""
    return OutputError(
        f"{path} is no chunk of this store, though it matches the digest in its name: {why}; move it away or "
        "use the imgindex that wrote it"
    )


def drop(directory: str, name: str) -> None:
    """Deletes a chunk, if it is still there. Raises OutputError."""
    path = filesystem.join(directory, name)
    if filesystem.exists(path):
        filesystem.delete(path)


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
