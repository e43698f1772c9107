"""Files that a command is asked to write, checked before its work starts, so that no other file is lost.

A file that is there already is replaced only if it is empty, or if it begins as imgindex's own files of its
kind do. What is no regular file, such as ``/dev/stdout``, holds nothing that could be lost.
"""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from imgindex.errors import OutputError, UsageError
from imgindex.io.filesystem import is_local

# What imgindex writes near the beginning of each page, and of each JSON file.
PAGE_MARK = '<meta name="generator" content="imgindex">'
JSON_GENERATOR = {"generator": "imgindex"}
_JSON_MARK = '"generator": "imgindex"'
_BEGINNING = 1024


def check_asked_files(
    index: str,
    *,
    page: Path | None = None,
    json: Path | None = None,
    csv: Path | None = None,
    columns: Sequence[str] = (),
) -> None:
    """Checks that files can be written where they are wanted, and that nothing is lost.

    `index` is the directory of the index that the command reads, and `columns` are those of the CSV file.

    Raises:
      UsageError: a path is that of a file that is no such page, JSON file or CSV file; it lies in `index`; or
        two are the same.
      OutputError: a path is a folder, its folder is missing, or nothing can be written there.
    """
    taken: dict[str, tuple[Path, str]] = {}
    asked = (page, "page", PAGE_MARK), (json, "JSON file", _JSON_MARK), (csv, "CSV file", ",".join(columns))
    for path, kind, mark in asked:
        if path is None:
            continue
        first, other = taken.setdefault(os.path.realpath(path), (path, kind))
        if other != kind:
            raise UsageError(f"{first} is given both for the {other} and for the {kind}; choose two names")
        if is_local(index) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(index)):
            raise UsageError(f"{path} lies in the index; choose a name outside of it")
        try:
            _check(path, kind, mark.encode())
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Writes the file that was asked for. Raises OutputError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _check(path: Path, kind: str, mark: bytes) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        folder = Path(os.path.realpath(path)).parent
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        _refuse_unless(os.access(folder, os.W_OK | os.X_OK))
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    _refuse_unless(os.access(path, os.W_OK))
    if stat.S_ISREG(status.st_mode) and status.st_size:
        with path.open("rb") as file:
            if mark not in file.read(_BEGINNING):
                raise UsageError(
                    f"{path} is there already and is no {kind} of imgindex; choose another name, or delete it"
                )


def _refuse_unless(allowed: bool) -> None:
    if not allowed:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
