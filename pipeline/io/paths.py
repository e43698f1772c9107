"""Paths that people give: settled once, as a later step may run in another directory, and written to."""

import os
from pathlib import Path

from imgindex.errors import OutputError
from imgindex.io.filesystem import is_local


def absolute(path: str) -> str:
    """`path` as an absolute one, with ``~`` expanded; one with a scheme, such as ``s3://``, as it is."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path


def write_text(path: Path, text: str) -> None:
    """Writes the file that was asked for. Raises OutputError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
