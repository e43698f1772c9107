"""Lists of images: text, CSV and Parquet files that name one a line or row."""

import codecs
import csv
import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa

from imgindex import storage, tables
from imgindex.errors import InputError
from imgindex.names import name_of, uri_of
from imgindex.ranges import reader

SUFFIXES = (".txt", ".csv", ".parquet")

# Which column names the images; the first that a list has.
_COLUMNS = ("uri", "path")

_MAX_LINE = 1 << 16
_ROWS = 10_000


def is_whole(uri: str) -> bool:
    """Whether a uri is a path by itself, as that of a listed image outside of its list's directory."""
    return uri.startswith("/") or not storage.is_local(uri)


def read_list(source: str) -> Iterator[tuple[str, str]]:
    """The uri and the path of each image that the list `source` names, in its order and as often.

    Relative paths are relative to the list's directory. What lies below it has its path from there as its
    uri, as in a listing of that directory; the rest has its whole path.

    Raises InputError where the list cannot be read.
    """
    root = source.rpartition("/")[0] or "/"
    read = {".txt": _lines, ".csv": _csv_rows, ".parquet": _parquet_rows}[os.path.splitext(source)[1].lower()]
    try:
        with reader(source) as file:
            for name in read(file):
                if "\0" in name:
                    raise ValueError(f"it names {name!r}, and no path holds a NUL; a list must be UTF-8 text")
                if name:
                    yield _located(name, root)
    except OSError as error:
        raise InputError(f"--input {source}: cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error, pa.ArrowException) as error:
        message = " ".join(str(error).split())
        raise InputError(f"--input {source}: is no list of images: {message}") from error


def _located(name: str, root: str) -> tuple[str, str]:
    path = name if is_whole(name) else storage.join(root, name)
    if storage.is_local(path):
        path = os.path.normpath(path)
    elif not {".", ".."}.isdisjoint(path.split("/")):
        scheme, _, rest = path.partition("://")
        path = f"{scheme}://{posixpath.normpath(rest)}"
    return uri_of(path.removeprefix(f"{root.rstrip('/')}/")), path


def _text(file: IO[bytes], newline: str) -> io.TextIOWrapper:
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise ValueError("it is UTF-16 text; save it as UTF-8")
    file.seek(0)
    return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=newline)


def _lines(file: IO[bytes]) -> Iterator[str]:
    # Only a line feed ends a line: the other characters that Python knows may be part of a name.
    text = _text(file, newline="\n")
    while line := text.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise ValueError(f"a line is longer than {_MAX_LINE} characters")
        yield line.removesuffix("\n").removesuffix("\r")


def _csv_rows(file: IO[bytes]) -> Iterator[str]:
    rows = csv.DictReader(_text(file, newline=""))
    column = _column(rows.fieldnames or ())
    for row in rows:
        yield _name(column, row[column])


def _parquet_rows(file: IO[bytes]) -> Iterator[str]:
    with tables.parquet_file(file) as table:
        column = _column(table.schema_arrow.names)
        for batch in table.iter_batches(_ROWS, columns=[column], use_threads=False):
            for value in batch.column(0).to_pylist():
                yield _name(column, value)


def _column(names: Sequence[str]) -> str:
    for column in _COLUMNS:
        if column in names:
            return column
    raise ValueError(f"expected a column {' or '.join(_COLUMNS)}, it has {', '.join(names) or 'none'}")


def _name(column: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"the column {column} holds {type(value).__name__} and not text")
    return name_of(value) if column == "uri" else value
