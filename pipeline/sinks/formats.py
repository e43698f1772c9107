"""The formats that `imgindex export` writes, a line each."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from imgindex.errors import MachineError, UsageError
from imgindex.sinks.options import ExportOptions

if TYPE_CHECKING:
    from imgindex.sinks.folder import WriteFiles


@dataclass(frozen=True)
class Format:
    """What a format is for."""

    text: str  # as `--help` says it
    options: tuple[str, ...] = ()  # the fields of `ExportOptions` that it takes
    extra: str | None = None  # of imgindex, which brings its library; None where every installation has all


# The module of this package that has the format's name writes it, by its function `write`.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "npy": Format(
            "NumPy arrays beside Parquet files, as autofaiss, embedding-reader and clip-retrieval read them",
            ("normalize",),
        ),
        "faiss": Format(
            "an index of FAISS, which also takes the backbone's features as queries",
            ("faiss_index",),
            "faiss",
        ),
        "atlas": Format(
            "a Parquet file for Embedding Atlas: a map of the images by UMAP, neighbors and thumbnails",
            ("images", "seed"),
            "atlas",
        ),
        "projector": Format(
            "vectors, labels and thumbnails for TensorBoard's embedding projector",
            ("normalize", "images", "seed"),
        ),
        "vertex": Format(
            "lines of JSON for Vertex AI Vector Search, of all images or of what has changed",
            ("normalize", "since"),
        ),
    }
)


def writer_of(name: str, options: ExportOptions) -> "WriteFiles":
    """The function that writes the format `name`, whose module is loaded only now.

    Raises:
      UsageError: there is no such format, or it does not take one of the options.
      MachineError: the library of the format is not installed.
    """
    if name not in FORMATS:
        raise UsageError(f"{name!r} is no format of an export; expected one of {', '.join(FORMATS)}")
    for option in options.given():
        if option not in FORMATS[name].options:
            takers = ", ".join(other for other, format in FORMATS.items() if option in format.options)
            raise UsageError(f"the format {name} does not take --{option}; these formats do: {takers}")
    try:
        write = importlib.import_module(f"imgindex.sinks.{name}").write
    except ModuleNotFoundError as error:
        extra = FORMATS[name].extra
        if extra is None:
            raise
        raise MachineError(
            f"--format {name} needs the extra {extra}: pip install 'imgindex[{extra}]'"
        ) from error
    return lambda files, source: write(files, source, options)
