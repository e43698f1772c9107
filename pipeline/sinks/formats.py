"""The formats that `imgindex export` writes, a line each."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgindex.sinks.folder import WriteFiles

# The module of this package that has the format's name writes it, by its function `write`.
FORMATS = {
    "npy": "NumPy arrays beside Parquet files, as autofaiss, embedding-reader and clip-retrieval read them",
}


def writer_of(name: str) -> "WriteFiles":
    """The function that writes the format `name`, whose module is loaded only now."""
    write: WriteFiles = importlib.import_module(f"imgindex.sinks.{name}").write
    return write
