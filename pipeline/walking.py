"""Local files: found in directories or by globs, and looked at."""

import glob
import os
import stat
from collections.abc import Iterable, Iterator

from imgindex import storage
from imgindex.errors import InputError, printable
from imgindex.outage import READS
from imgindex.retries import retried

# A file's size in bytes and its version; or why it has none.
Entry = tuple[int, str] | OSError | str


def walk(root: str) -> Iterator[str]:
    """Paths of the files below `root`; links to directories are followed, each directory once.

    Raises InputError for a directory that cannot be read.
    """
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


def matches(pattern: str) -> Iterator[str]:
    """Paths of what a glob matches, each file once."""
    paths = glob.iglob(pattern, recursive=True)
    yield from _each_once(paths) if "**" in pattern else paths


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


def look_at(path: str) -> Entry:
    """The size and version of the file at `path`, here or on an object store. Raises InputError."""
    try:
        with READS.watched(path):
            if storage.is_local(path):
                status = retried(lambda: os.stat(path))
            else:
                found = storage.find(path)
                return found.size, found.version
    except OSError as error:
        return error
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    return status.st_size, local_version(status)


def local_version(status: os.stat_result) -> str:
    """The version of a local file: when its content and when its attributes were changed, in nanoseconds.

    A program may set the first of the two back, but not the second.
    """
    return f"{status.st_mtime_ns}-{status.st_ctime_ns}"


def modified_in(version: str) -> str:
    """The part of `local_version` that tells when the content was changed."""
    return version.rpartition("-")[0]


def fault_of(path: str, error: OSError) -> tuple[str, str]:
    """The reason and the message of a file that cannot be looked at."""
    message = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return "permission_denied", message
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        is_link = os.path.islink(path)
        return ("unreadable", "it is a link that leads nowhere") if is_link else ("vanished", message)
    return "unreadable", message
