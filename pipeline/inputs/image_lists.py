"""Lists of images: text, CSV and Parquet files that name one a line or row."""

import codecs
import csv
import io
import itertools
import os
import posixpath
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow as pa

from imgindex.errors import InputError
from imgindex.io import filesystem, parquet_tables
from imgindex.io.byte_ranges import reader
from imgindex.io.content_encoding import unpacked_file
from imgindex.text import counted
from imgindex.uris import name_of, uri_of

SUFFIXES = (".txt", ".csv", ".parquet")

# Which column names the images; the first that a list has.
_COLUMNS = ("uri", "path")

# What spreadsheets and databases separate the fields of a CSV file by.
_DELIMITERS = (",", ";", "\t", "|")

# Characters of a line: of a text, which is one name, and of a CSV file, which may have long columns.
_MAX_LINE, _MAX_ROW = 1 << 16, 1 << 20
_ROWS = 10_000


def is_whole(uri: str) -> bool:
    """Whether a uri is a path by itself, as that of a listed image outside of its list's directory."""
    return uri.startswith("/") or not filesystem.is_local(uri)


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
            for name in read(unpacked_file(source, file)):
                if "\0" in name:
                    raise ValueError(
                        f"it names {name!r}, and no path holds a NUL; save it as UTF-8, or as UTF-16 with a "
                        "byte order mark"
                    )
                if name:
                    yield _located(name, root)
    except OSError as error:
        raise InputError(f"--input {source}: cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error, pa.ArrowException, EOFError, zlib.error) as error:
        message = " ".join(str(error).split())
        raise InputError(f"--input {source}: is no list of images: {message}") from error


def _located(name: str, root: str) -> tuple[str, str]:
    path = name if is_whole(name) else filesystem.join(root, name)
    if filesystem.is_local(path):
        path = os.path.normpath(path)
    elif not {".", ".."}.isdisjoint(path.split("/")):
        scheme, _, rest = path.partition("://")
        path = f"{scheme}://{posixpath.normpath(rest)}"
    return uri_of(path.removeprefix(f"{root.rstrip('/')}/")), path


def _text(file: IO[bytes], newline: str) -> io.TextIOWrapper:
    """`file` as text: UTF-16 where it begins with the mark of that, else UTF-8."""
    is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    file.seek(0)
    if is_utf16:
        return io.TextIOWrapper(file, "utf-16", newline=newline)
    return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=newline)


def _lines(file: IO[bytes]) -> Iterator[str]:
    # Only a line feed ends a line: the other characters that Python knows may be part of a name.
    for line in _short_lines(_text(file, newline="\n"), _MAX_LINE):
        yield line.removesuffix("\n").removesuffix("\r")


def _short_lines(text: io.TextIOWrapper, limit: int) -> Iterator[str]:
    while line := text.readline(limit):
        if len(line) == limit:
            raise ValueError(f"a line is longer than {limit} characters")
        yield line


def _csv_rows(file: IO[bytes]) -> Iterator[str]:
    text = _text(file, newline="")
    start = text.readline(_MAX_ROW)
    delimiter = _delimiter(start)
    rows = csv.reader(itertools.chain([start], _short_lines(text, _MAX_ROW)), delimiter=delimiter)
    names = next(rows, [])
    column = _column(names)
    position = names.index(column)
    for row in rows:
        # A row may lack what comes after the name, and an empty line is no row.
        if len(row) > len(names) or 0 < len(row) <= position:
            advice = "a field that holds a separator must stand in double quotes"
            raise ValueError(
                f"line {rows.line_num} has {counted(len(row), 'field')} and the header {len(names)}, "
                f"separated by {delimiter!r}; {advice if len(row) > 1 else f'it lacks the {column}'}"
            )
        if row:
            yield _name(column, row[position])


def _delimiter(line: str) -> str:
    """What separates the fields of a CSV file: the first delimiter by which its first line names images."""
    for delimiter in _DELIMITERS:
        if not set(_COLUMNS).isdisjoint(next(csv.reader([line], delimiter=delimiter), [])):
            return delimiter
    return _DELIMITERS[0]


def _parquet_rows(file: IO[bytes]) -> Iterator[str]:
    with parquet_tables.parquet_file(file) as table:
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
    if isinstance(value, bytes):
        value = os.fsdecode(value)
    if not isinstance(value, str):
        raise ValueError(f"the column {column} holds {type(value).__name__} and not text")
    return name_of(value) if column == "uri" else value
