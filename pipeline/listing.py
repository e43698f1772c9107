"""Which images an input holds, on any filesystem that Beam knows.

An input is a directory, a glob, a tar or a list of paths. It is cut into pieces, which is quick, and pieces
are looked up, which takes a system call or a request a file or for a thousand and is shared by workers.
"""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from imgindex import key_ranges, members, storage, uri_lists, walking
from imgindex.errors import InputError
from imgindex.key_ranges import KeyRange
from imgindex.members import TarFile
from imgindex.names import uri_of
from imgindex.records import Failure, ImageFile

_WILDCARD = re.compile(r"[*?\[]")

# Files of a piece that names them, and how many of an object store are asked for at once.
_PIECE_FILES = 1000
_REQUESTS = 10


@dataclass(frozen=True)
class NamedFiles:
    """Files to look at one by one."""

    files: tuple[tuple[str, str], ...]  # the uri and the path of each


Piece = NamedFiles | KeyRange

_Found = ImageFile | Failure | TarFile


def input_root(source: str) -> str:
    """The directory that uris are relative to: `source`, a tar's, a list's, or what precedes a wildcard."""
    source = _absolute(source)
    if storage.is_local(source) and os.path.isdir(source):
        return source
    wildcard = _WILDCARD.search(source)
    if wildcard:
        return source[: wildcard.start()].rpartition("/")[0] or "/"
    if source.lower().endswith((members.SUFFIX, *uri_lists.SUFFIXES)):
        return source.rpartition("/")[0] or "/"
    return source.rstrip("/")


def _absolute(source: str) -> str:
    return os.path.abspath(os.path.expanduser(source)) if storage.is_local(source) else source


def is_list(source: str) -> bool:
    """Whether `source` is a file that names images."""
    if not source.lower().endswith(uri_lists.SUFFIXES) or _WILDCARD.search(source):
        return False
    return not (storage.is_local(source) and os.path.isdir(_absolute(source)))


def list_images(source: str, extensions: Sequence[str]) -> Iterator[ImageFile | Failure]:
    """Yields the images of `source`, in no set order, a page at a time: who stops early has read little.

    They are the files whose names end in one of `extensions`, also as members of tars, and whatever a list
    names. A file that cannot be looked at, or is no regular file, comes as a `Failure`.

    Raises:
      InputError: there is no such directory, it cannot be read, or its storage is out of order.
    """
    repeats = is_list(source)
    seen: set[str] = set()
    for piece in cut(source, extensions, parts=1):
        for found in look_up(piece, source, extensions):
            images = members.each_image(found, extensions) if isinstance(found, TarFile) else (found,)
            for image in images:
                if image.uri not in seen:
                    yield image
                if repeats or isinstance(found, TarFile):
                    seen.add(image.uri)


def cut(source: str, extensions: Sequence[str], parts: int = key_ranges.PARTS) -> Iterator[Piece]:
    """Cuts `source` into pieces, an object store's into about `parts`.

    Raises InputError where it does not exist or cannot be read.
    """
    if is_list(source):
        yield from cut_list(source)
    elif storage.is_local(source):
        root = f"{input_root(source).rstrip('/')}/"
        suffixes = (*_lower(extensions), *members.SUFFIXES)
        paths = (path for path in _local_paths(source) if path.lower().endswith(suffixes))
        yield from _pieces((uri_of(path.removeprefix(root)), path) for path in paths)
    elif source.lower().endswith(members.SUFFIX) and not _WILDCARD.search(source):
        yield NamedFiles(((uri_of(source.rpartition("/")[2]), source),))
    else:
        wildcard = _WILDCARD.search(source)
        prefix = source[: wildcard.start()] if wildcard else storage.join(source, "")
        try:
            yield from key_ranges.cut(KeyRange(prefix), parts)
        except OSError as error:
            raise _unlisted(source, error) from error


def cut_list(source: str) -> Iterator[NamedFiles]:
    """Cuts a list into pieces. Raises InputError where it cannot be read."""
    return _pieces(uri_lists.read_list(_absolute(source)))


def _pieces(files: Iterable[tuple[str, str]]) -> Iterator[NamedFiles]:
    files = iter(files)
    while batch := tuple(itertools.islice(files, _PIECE_FILES)):
        yield NamedFiles(batch)


def _local_paths(source: str) -> Iterator[str]:
    path = _absolute(source)
    if os.path.isdir(path):
        return walking.walk(path)
    if _WILDCARD.search(path):
        return walking.matches(path)
    if path.lower().endswith(members.SUFFIX) and os.path.isfile(path):
        return iter([path])
    what = "is a file" if os.path.exists(path) else "does not exist"
    raise InputError(
        f"--input {source} {what}; give a directory, a glob in quotes, a .tar, or a list that ends in "
        f"{', '.join(uri_lists.SUFFIXES)}"
    )


def _unlisted(source: str, error: OSError) -> InputError:
    return InputError(f"cannot list {source}: {error.strerror or error}")


def look_up(piece: Piece, source: str, extensions: Sequence[str]) -> Iterator[_Found]:
    """What a piece of `source` holds. Raises InputError where its storage is out of order."""
    if isinstance(piece, KeyRange):
        yield from _of_range(piece, source, _lower(extensions))
        return
    in_tars: dict[str, list[str]] = defaultdict(list)
    for (uri, path), entry in zip(piece.files, _look_at(piece.files), strict=True):
        parts = members.split(path)
        if parts is not None and isinstance(entry, FileNotFoundError | NotADirectoryError):
            in_tars[parts[0]].append(uri)
        else:
            yield _classify(uri, path, entry)
    for tar, uris in in_tars.items():
        uri, _ = members.split(uris[0]) or (tar, "")
        found = _classify(uri, tar, walking.look_at(tar))
        if isinstance(found, TarFile):
            yield replace(found, wanted=frozenset(uris))
        else:
            yield from (Failure(uri, "list", "vanished", f"{tar} is not there") for uri in uris)


def _look_at(files: Sequence[tuple[str, str]]) -> list[walking.Entry]:
    paths = [path for _, path in files]
    if all(map(storage.is_local, paths)):
        return list(map(walking.look_at, paths))
    with ThreadPoolExecutor(_REQUESTS, "look") as pool:
        return list(pool.map(walking.look_at, paths))


def _of_range(keys: KeyRange, source: str, suffixes: tuple[str, ...]) -> Iterator[_Found]:
    from apache_beam.io.filesystem import FileSystem

    wildcard = _WILDCARD.search(source)
    matches = re.compile(FileSystem.translate_pattern(source)).match if wildcard else None
    below = len(storage.join(input_root(source), ""))
    try:
        for found in key_ranges.objects_of(keys):
            path = found.path
            if path.lower().endswith((*suffixes, *members.SUFFIXES)) and (matches is None or matches(path)):
                yield _classify(uri_of(path[below:]), path, (found.size, found.version))
    except OSError as error:
        raise _unlisted(source, error) from error


def _lower(extensions: Sequence[str]) -> tuple[str, ...]:
    return tuple(extension.lower() for extension in extensions)


def _classify(uri: str, path: str, entry: walking.Entry) -> _Found:
    if isinstance(entry, OSError):
        return Failure(uri, "list", *walking.fault_of(path, entry))
    if isinstance(entry, str):
        return Failure(uri, "list", "not_a_file", entry)
    if path.lower().endswith(members.SUFFIX):
        return TarFile(uri, path, *entry)
    return members.refused(uri, path) or ImageFile(uri, path, *entry)


def without_repeats(files: Iterable[tuple[str, str]]) -> Iterator[NamedFiles]:
    """Pieces of `files`, each once however often it is named, also as a member of a tar that is named."""
    once = dict(files)
    inside = {uri: members.split(uri) for uri in once}
    return _pieces((uri, once[uri]) for uri, tar in inside.items() if tar is None or tar[0] not in once)


def is_inside(path: str, root: str) -> bool:
    """Whether `path` lies in the directory `root`; nothing lies in a glob."""
    if not (storage.is_local(path) and storage.is_local(root)):
        return f"{path.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")
    return Path(path).resolve().is_relative_to(Path(root).expanduser().resolve())
