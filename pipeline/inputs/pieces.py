"""The first step of a path: an input is cut into pieces, which name the files that may be images.

Cutting is quick. It looks at names alone; `lookup` looks at the files, which workers share.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imgindex.errors import InputError
from imgindex.inputs import image_lists, key_ranges, local_files, tar_members
from imgindex.inputs.key_ranges import KeyRange
from imgindex.inputs.local_files import WILDCARD
from imgindex.inputs.selection import Selection
from imgindex.inputs.skipped import Skipped
from imgindex.inputs.source import input_root, is_list, split, unlisted
from imgindex.io import filesystem
from imgindex.io.paths import absolute
from imgindex.uris import uri_of

# Files of a piece that names them.
_PIECE_FILES = 1000


@dataclass(frozen=True)
class NamedFiles:
    """Files to look at one by one."""

    files: tuple[tuple[str, str], ...]  # the uri and the path of each
    in_list: bool = False  # whether a list names them


@dataclass(frozen=True)
class Objects:
    """Objects of a store: those in a range that a glob matches below a folder, or all."""

    keys: KeyRange
    root: str
    pattern: str  # empty for all


Piece = NamedFiles | Objects


def cut(source: str, selection: Selection, parts: int = key_ranges.PARTS) -> Iterator[Piece | Skipped]:
    """Cuts `source` into pieces, an object store's into about `parts`.

    Raises InputError where it does not exist or cannot be read.
    """
    if is_list(source):
        yield from cut_list(source)
        return
    root, pattern = split(source)
    if filesystem.is_local(source):
        below = f"{input_root(source).rstrip('/')}/"
        skipped: Counter[str] = Counter()
        paths = _local_paths(source, selection, skipped)
        yield from _pieces((uri_of(path.removeprefix(below)), path) for path in paths)
        yield Skipped(skipped)
    elif root.lower().endswith(tar_members.SUFFIX) and not pattern:
        yield NamedFiles(((uri_of(root.rpartition("/")[2]), root),))
    else:
        wildcard = WILDCARD.search(pattern)
        prefix = filesystem.join(root, pattern[: wildcard.start()] if wildcard else "")
        try:
            for keys in key_ranges.cut(KeyRange(prefix), parts):
                yield Objects(keys, root, pattern)
        except OSError as error:
            raise unlisted(source, error) from error


def _local_paths(source: str, selection: Selection, skipped: Counter[str]) -> Iterator[str]:
    path, pattern = split(source)
    rules = selection.rules()
    suffixes = (*rules.suffixes, *tar_members.SUFFIXES)
    if pattern:
        return local_files.matches(path, pattern, rules, suffixes, skipped)
    if os.path.isdir(path):
        return local_files.walk(path, rules, suffixes, skipped)
    if path.lower().endswith(tar_members.SUFFIX) and os.path.isfile(path):
        return iter([path])
    what = "is a file" if os.path.exists(path) else "does not exist"
    raise InputError(
        f"--input {source} {what}; give a directory, a glob in quotes, a .tar, or a list that ends in "
        f"{', '.join(image_lists.SUFFIXES)}"
    )


def cut_list(source: str) -> Iterator[NamedFiles]:
    """Cuts a list into pieces. Raises InputError where it cannot be read."""
    return _pieces(image_lists.read_list(absolute(source)), in_list=True)


def without_repeats(files: Iterable[tuple[str, str]]) -> Iterator[NamedFiles]:
    """Pieces of `files`, each once however often it is named, also as a member of a tar that is named."""
    once = dict(files)
    inside = {uri: tar_members.split(uri) for uri in once}
    kept = ((uri, once[uri]) for uri, tar in inside.items() if tar is None or tar[0] not in once)
    return _pieces(kept, in_list=True)


def _pieces(files: Iterable[tuple[str, str]], in_list: bool = False) -> Iterator[NamedFiles]:
    files = iter(files)
    while batch := tuple(itertools.islice(files, _PIECE_FILES)):
        yield NamedFiles(batch, in_list)
