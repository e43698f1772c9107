"""Local files: found in directories or by globs, and looked at."""

import errno
import fnmatch
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from imgindex.errors import InputError
from imgindex.inputs.selection import Rules
from imgindex.inputs.skipped import count
from imgindex.io import filesystem
from imgindex.io.circuit_breaker import READS
from imgindex.io.retries import retried
from imgindex.text import printable

WILDCARD = re.compile(r"[*?\[]")

# A file's size in bytes and its version; or why it has none.
Entry = tuple[int, str] | OSError | str


def walk(root: str, rules: Rules, suffixes: tuple[str, ...], skipped: Counter[str]) -> Iterator[str]:
    """Paths of the files below `root` that `rules` take and that end in one of `suffixes`.

    Folders that are left out are not looked into. Links to directories are followed, each directory once.
    Counts the others in `skipped`. Raises InputError for a directory that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    below = len(f"{root.rstrip('/')}/")

    for folder, subfolders, names in os.walk(root, onerror=_refuse, followlinks=True):
        identity = _identity(folder)
        if identity in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        # A directory that is reached twice is taken where its path sorts first.
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if _is_entered(os.path.join(folder, name)[below:], rules, skipped)
        ]
        for name in sorted(names):  # so that the first images of a listing are always the same
            path = os.path.join(folder, name)
            if rules.takes(path[below:], suffixes, skipped):
                yield path


def matches(
    root: str, pattern: str, rules: Rules, suffixes: tuple[str, ...], skipped: Counter[str]
) -> Iterator[str]:
    """As `walk`, but only the files that a glob matches below `root`, as Python's glob reads it.

    Unlike there, ``*`` and ``**`` match hidden names too, which the rules then leave out or take.
    """
    root = f"{root.rstrip('/')}/"
    paths = _matches(root, pattern.split("/"), _Glob(len(root), rules, skipped))
    for path in _each_once(paths) if "**" in pattern else paths:
        if rules.takes(path[len(root) :], suffixes, skipped):
            yield path


@dataclass(frozen=True)
class _Glob:
    below: int  # how long the path is that the rules' paths are relative to
    rules: Rules
    skipped: Counter[str]


def _matches(
    folder: str, parts: Sequence[str], glob: _Glob, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[str]:
    """Files that `parts` match in `folder`, whose path ends in a slash."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        identity = _identity(folder)
        if identity in above:  # by a link that leads back
            return
        yield from _matches(folder, rest or ["*"], glob, above)
        for entry in _entries(folder):
            if entry.is_dir() and _is_entered(entry.path[glob.below :], glob.rules, glob.skipped):
                yield from _matches(f"{entry.path}/", parts, glob, (*above, identity))
    elif not WILDCARD.search(part):
        path = f"{folder}{part}"
        is_folder = _is_folder(path)
        if rest and is_folder:
            yield from _matches(f"{path}/", rest, glob)
        elif not rest and not is_folder and os.path.lexists(path):
            yield path
    else:
        is_match = re.compile(fnmatch.translate(part)).match
        for entry in _entries(folder):
            if not is_match(entry.name):
                continue
            if not entry.is_dir():
                if not rest:
                    yield entry.path
            elif rest and _is_entered(entry.path[glob.below :], glob.rules, glob.skipped):
                yield from _matches(f"{entry.path}/", rest, glob)


def _is_entered(path: str, rules: Rules, skipped: Counter[str]) -> bool:
    why = rules.folder_left_out(path)
    if why is not None:
        count(skipped, why)
    return why is None


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"cannot list {printable(error.filename)}: {error.strerror}") from error


def _is_folder(path: str) -> bool:
    """Whether `path` is a directory. Raises InputError where it cannot be told."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in (
            errno.ENOENT,
            errno.ENOTDIR,
            errno.ELOOP,
        ):  # a link may lead nowhere, or in a circle
            return False
        _refuse(error)


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _each_once(paths: Iterable[str]) -> Iterator[str]:
    """`paths` without those that lead to the same file through another link or another match of ``**``."""
    folders: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    taken = []
    # The shortest way to a file counts, so that a loop of links is left out and not taken.
    for path in sorted(paths, key=lambda path: (len(path), path)):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        if (folders[folder], name) not in seen:
            seen.add((folders[folder], name))
            taken.append(path)
    yield from sorted(taken)


def look_at(path: str) -> Entry:
    """The size and version of the file at `path`, here or on an object store. Raises InputError."""
    try:
        with READS.watched(path):
            if filesystem.is_local(path):
                status = retried(lambda: os.stat(path))
            else:
                found = filesystem.find(path)
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
    if isinstance(error, filesystem.NotAFileError):
        return "not_a_file", message
    if isinstance(error, PermissionError):
        return "permission_denied", message
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        is_link = os.path.islink(path)
        return ("unreadable", "it is a link that leads nowhere") if is_link else ("vanished", message)
    return "unreadable", message
