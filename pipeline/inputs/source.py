"""What an input is: a directory, a glob, a tar or a list of paths, on any filesystem that Beam knows."""

import os
from dataclasses import replace
from pathlib import Path

from imgindex.errors import InputError
from imgindex.inputs import image_lists, tar_members
from imgindex.inputs.local_files import WILDCARD
from imgindex.inputs.selection import Selection, spelled_out
from imgindex.io import filesystem
from imgindex.io.paths import absolute


def input_root(source: str) -> str:
    """The directory that uris are relative to: `source`, a tar's, a list's, or what precedes a wildcard.

    A name with the characters of a glob is no glob if something of that name exists. Raises InputError where
    its storage is out of order.
    """
    source, pattern = split(source)
    if pattern or (filesystem.is_local(source) and os.path.isdir(source)):
        return source
    if source.lower().endswith((tar_members.SUFFIX, *image_lists.SUFFIXES)):
        return source.rpartition("/")[0] or "/"
    return source.rstrip("/")


def split(source: str) -> tuple[str, str]:
    """The part of `source` that exists by that exact name, and the glob below it, if any."""
    source = absolute(source)
    parts = source.split("/")
    for number, part in enumerate(parts):
        if WILDCARD.search(part) and not _is_there("/".join(parts[: number + 1]), source):
            return "/".join(parts[:number]) or "/", "/".join(parts[number:])
    return source, ""


def _is_there(path: str, source: str) -> bool:
    if filesystem.is_local(path):
        return os.path.lexists(path)
    try:
        if filesystem.page(filesystem.join(path, ""), limit=1).found:
            return True
        filesystem.find(path)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unlisted(source, error) from error


def is_list(source: str) -> bool:
    """Whether `source` is a file that names images."""
    if not source.lower().endswith(image_lists.SUFFIXES):
        return False
    path, pattern = split(source)
    return not (pattern or (filesystem.is_local(path) and os.path.isdir(path)))


def settled(selection: Selection, source: str) -> Selection:
    """A selection with the hidden names that `source` spells out, where it is a glob."""
    return replace(selection, spelled=tuple(spelled_out(split(source)[1])))


def is_inside(path: str, root: str) -> bool:
    """Whether `path` lies in the directory `root`; nothing lies in a glob."""
    if not (filesystem.is_local(path) and filesystem.is_local(root)):
        return f"{path.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")
    return Path(path).resolve().is_relative_to(Path(root).expanduser().resolve())


def unlisted(source: str, error: OSError) -> InputError:
    """The error of an input that cannot be listed."""
    return InputError(f"cannot list {source}: {error.strerror or error}")
