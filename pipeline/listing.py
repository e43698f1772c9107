"""Which images an input holds: a directory, or a glob, on any filesystem that Beam knows."""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from imgindex import storage
from imgindex.errors import InputError, printable
from imgindex.names import uri_of
from imgindex.outage import READS
from imgindex.records import Failure, ImageFile
from imgindex.retries import retried

_WILDCARD = re.compile(r"[*?\[]")


def input_root(source: str) -> str:
    """The directory that uris are relative to: `source`, or what precedes a glob's first wildcard."""
    if storage.is_local(source):
        source = os.path.abspath(os.path.expanduser(source))
        if os.path.isdir(source):
            return source
    wildcard = _WILDCARD.search(source)
    if not wildcard:
        return source.rstrip("/")
    return source[: wildcard.start()].rpartition("/")[0] or "/"


def list_images(source: str, extensions: Sequence[str]) -> Iterator[ImageFile | Failure]:
    """Yields the files of `source` whose names end in one of `extensions`, in no set order.

    A file that cannot be looked at, or is no regular file, comes as a `Failure`.

    Raises:
      InputError: there is no such directory, it cannot be read, or its storage is out of order.
    """
    root = input_root(source)
    entries = _list_local(source) if storage.is_local(source) else _list_remote(source)
    suffixes = tuple(extension.lower() for extension in extensions)
    for path, entry in entries:
        if not path.lower().endswith(suffixes):
            continue
        uri = os.path.relpath(path, root) if storage.is_local(path) else path[len(root) + 1 :]
        yield _classify(uri_of(uri.replace(os.sep, "/")), path, entry)


# A file's size and version, or why it has none.
_Entry = tuple[int, str] | OSError | str


def _classify(uri: str, path: str, entry: _Entry) -> ImageFile | Failure:
    if isinstance(entry, OSError):
        return Failure(uri, "list", *_fault(path, entry))
    if isinstance(entry, str):
        return Failure(uri, "list", "not_a_file", entry)
    size, version = entry
    return ImageFile(uri, path, size, version)


def _fault(path: str, error: OSError) -> tuple[str, str]:
    """The reason and the message of a file that cannot be looked at."""
    message = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return "permission_denied", message
    if isinstance(error, FileNotFoundError):
        is_link = os.path.islink(path)
        return ("unreadable", "it is a link that leads nowhere") if is_link else ("vanished", message)
    return "unreadable", message


def _list_local(source: str) -> Iterator[tuple[str, _Entry]]:
    path = os.path.abspath(os.path.expanduser(source))
    if os.path.isdir(path):
        yield from map(_stat, _walk(path))
    elif _WILDCARD.search(path):
        paths = glob.iglob(path, recursive=True)
        yield from map(_stat, _each_once(paths) if "**" in path else paths)
    else:
        what = "is a file" if os.path.exists(path) else "does not exist"
        raise InputError(f"--input {source} {what}; give a directory or a glob in quotes")


def _each_once(paths: Iterable[str]) -> Iterator[str]:
    """`paths` without those that lead to the same file through another link or another match of ``**``."""
    folders: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    # The shortest way to a file comes first, so that a loop of links is left out and not taken.
    for path in sorted(paths, key=lambda path: (len(path), path)):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        if (folders[folder], name) not in seen:
            seen.add((folders[folder], name))
            yield path


def _walk(root: str) -> Iterator[str]:
    """Paths of the files below `root`; links to directories are followed, each directory once."""
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {printable(error.filename)}: {error.strerror}") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # A directory that is reached twice is taken where its path sorts first.
        subfolders.sort()
        for name in sorted(names):  # so that the first images of a listing are always the same
            yield os.path.join(folder, name)


def _stat(path: str) -> tuple[str, _Entry]:
    try:
        with READS.watched(path):
            status = retried(lambda: os.stat(path))
    except OSError as error:
        return path, error
    if not stat.S_ISREG(status.st_mode):
        return path, "it is no regular file"
    return path, (status.st_size, version_of(status))


def version_of(status: os.stat_result) -> str:
    """The version of a local file: its modification time."""
    return str(status.st_mtime_ns)


def _list_remote(source: str) -> Iterator[tuple[str, _Entry]]:
    pattern = source if _WILDCARD.search(source) else storage.join(source, "**")
    try:
        matched = storage.match(pattern)
    except OSError as error:
        raise InputError(f"cannot list {pattern}: {error.strerror or error}") from error
    for metadata in matched:
        version = f"{metadata.last_updated_in_seconds:.6f}"
        yield metadata.path, (metadata.size_in_bytes, version)


def is_inside(path: str, root: str) -> bool:
    """Whether `path` lies in the directory `root`; nothing lies in a glob."""
    if not (storage.is_local(path) and storage.is_local(root)):
        return f"{path.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")
    return Path(path).resolve().is_relative_to(Path(root).expanduser().resolve())
