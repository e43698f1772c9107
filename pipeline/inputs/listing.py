"""Which images an input holds, on any filesystem that Beam knows.

An input is a directory, a glob, a tar or a list of paths. It is cut into pieces, which is quick, and pieces
are looked up, which takes a system call or a request a file or for a thousand and is shared by workers.
"""

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from imgindex.errors import InputError
from imgindex.inputs import image_lists, key_ranges, local_files, tar_members
from imgindex.inputs.key_ranges import KeyRange
from imgindex.inputs.local_files import WILDCARD
from imgindex.inputs.selection import Selection, spelled_out
from imgindex.inputs.skipped import Skipped, add
from imgindex.inputs.tar_members import TarFile
from imgindex.io import filesystem
from imgindex.io.paths import absolute
from imgindex.records import Failure, ImageFile
from imgindex.uris import uri_of

# Files of a piece that names them, and how many of an object store are asked for at once.
_PIECE_FILES = 1000
_REQUESTS = 10


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

_Found = ImageFile | Failure | TarFile | Skipped


def input_root(source: str) -> str:
    """The directory that uris are relative to: `source`, a tar's, a list's, or what precedes a wildcard.

    A name with the characters of a glob is no glob if something of that name exists. Raises InputError as
    `cut` does.
    """
    source, pattern = _split(source)
    if pattern or (filesystem.is_local(source) and os.path.isdir(source)):
        return source
    if source.lower().endswith((tar_members.SUFFIX, *image_lists.SUFFIXES)):
        return source.rpartition("/")[0] or "/"
    return source.rstrip("/")


def _split(source: str) -> tuple[str, str]:
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
        raise _unlisted(source, error) from error


def is_list(source: str) -> bool:
    """Whether `source` is a file that names images."""
    if not source.lower().endswith(image_lists.SUFFIXES):
        return False
    path, pattern = _split(source)
    return not (pattern or (filesystem.is_local(path) and os.path.isdir(path)))


def settled(selection: Selection, source: str) -> Selection:
    """A selection with the hidden names that `source` spells out, where it is a glob."""
    return replace(selection, spelled=tuple(spelled_out(_split(source)[1])))


def list_images(
    source: str, selection: Selection, skipped: Counter[str] | None = None
) -> Iterator[ImageFile | Failure]:
    """Yields the images of `source`, in no set order, a page at a time: who stops early has read little.

    They are the files that `selection` takes, also as members of tars, and whatever a list names that no
    pattern leaves out. A file that cannot be looked at, or is no regular file, comes as a `Failure`. Whoever
    goes to the end has in `skipped` how many others there are.

    Raises:
      InputError: there is no such directory, it cannot be read, or its storage is out of order.
    """
    selection = settled(selection, source)
    skipped = Counter() if skipped is None else skipped
    repeats = is_list(source)
    seen: set[str] = set()
    for piece in cut(source, selection, parts=1):
        for found in (piece,) if isinstance(piece, Skipped) else look_up(piece, source, selection):
            images = (
                tar_members.each_image(found, selection.rules()) if isinstance(found, TarFile) else (found,)
            )
            for image in images:
                if isinstance(image, Skipped):
                    add(skipped, image.counts)
                    continue
                if image.uri not in seen:
                    yield image
                if repeats or isinstance(found, TarFile):
                    seen.add(image.uri)


def cut(source: str, selection: Selection, parts: int = key_ranges.PARTS) -> Iterator[Piece | Skipped]:
    """Cuts `source` into pieces, an object store's into about `parts`.

    Raises InputError where it does not exist or cannot be read.
    """
    if is_list(source):
        yield from cut_list(source)
        return
    root, pattern = _split(source)
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
            raise _unlisted(source, error) from error


def cut_list(source: str) -> Iterator[NamedFiles]:
    """Cuts a list into pieces. Raises InputError where it cannot be read."""
    return _pieces(image_lists.read_list(absolute(source)), in_list=True)


def _pieces(files: Iterable[tuple[str, str]], in_list: bool = False) -> Iterator[NamedFiles]:
    files = iter(files)
    while batch := tuple(itertools.islice(files, _PIECE_FILES)):
        yield NamedFiles(batch, in_list)


def _local_paths(source: str, selection: Selection, skipped: Counter[str]) -> Iterator[str]:
    path, pattern = _split(source)
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


def _unlisted(source: str, error: OSError) -> InputError:
    return InputError(f"cannot list {source}: {error.strerror or error}")


def look_up(piece: Piece, source: str, selection: Selection) -> Iterator[_Found]:
    """What a piece of `source` holds. Raises InputError where its storage is out of order."""
    if isinstance(piece, Objects):
        yield from _of_range(piece, source, selection)
        return
    files: Sequence[tuple[str, str]] = piece.files
    if piece.in_list:
        skipped: Counter[str] = Counter()
        rules = replace(selection, hidden=True).rules()
        # Whatever it ends in: every name ends in nothing.
        files = [file for file in files if rules.takes_below(file[0], 0, ("",), skipped)]
        yield Skipped(skipped)
    in_tars: dict[str, list[str]] = defaultdict(list)
    for (uri, path), entry in zip(files, _look_at(files), strict=True):
        parts = tar_members.split(path)
        if parts is not None and isinstance(entry, FileNotFoundError | NotADirectoryError):
            in_tars[parts[0]].append(uri)
        else:
            yield _classify(uri, path, entry)
    for tar, uris in in_tars.items():
        uri, _ = tar_members.split(uris[0]) or (tar, "")
        found = _classify(uri, tar, local_files.look_at(tar))
        if isinstance(found, TarFile):
            yield replace(found, wanted=frozenset(uris))
        else:
            yield from (Failure(uri, "list", "vanished", f"{tar} is not there") for uri in uris)


def _look_at(files: Sequence[tuple[str, str]]) -> list[local_files.Entry]:
    paths = [path for _, path in files]
    if all(map(filesystem.is_local, paths)):
        return list(map(local_files.look_at, paths))
    with ThreadPoolExecutor(_REQUESTS, "look") as pool:
        return list(pool.map(local_files.look_at, paths))


def _of_range(piece: Objects, source: str, selection: Selection) -> Iterator[_Found]:
    from apache_beam.io.filesystem import FileSystem

    rules = selection.rules()
    suffixes = (*rules.suffixes, *tar_members.SUFFIXES)
    matches = re.compile(FileSystem.translate_pattern(piece.pattern)).match if piece.pattern else None
    below = len(filesystem.join(piece.root, ""))
    skipped: Counter[str] = Counter()
    try:
        for found in key_ranges.objects_of(piece.keys):
            name = found.path[below:]
            # Some tools write an empty object that stands for a folder.
            if name.endswith("/") or (matches is not None and not matches(name)):
                continue
            uri = uri_of(name)
            if rules.takes_below(uri, 0, suffixes, skipped):
                yield _classify(uri, found.path, (found.size, found.version))
    except OSError as error:
        raise _unlisted(source, error) from error
    yield Skipped(skipped)


def _classify(uri: str, path: str, entry: local_files.Entry) -> _Found:
    if isinstance(entry, OSError):
        return Failure(uri, "list", *local_files.fault_of(path, entry))
    if isinstance(entry, str):
        return Failure(uri, "list", "not_a_file", entry)
    if path.lower().endswith(tar_members.SUFFIX):
        return TarFile(uri, path, *entry)
    return tar_members.refused(uri, path) or ImageFile(uri, path, *entry)


def without_repeats(files: Iterable[tuple[str, str]]) -> Iterator[NamedFiles]:
    """Pieces of `files`, each once however often it is named, also as a member of a tar that is named."""
    once = dict(files)
    inside = {uri: tar_members.split(uri) for uri in once}
    kept = ((uri, once[uri]) for uri, tar in inside.items() if tar is None or tar[0] not in once)
    return _pieces(kept, in_list=True)


def is_inside(path: str, root: str) -> bool:
    """Whether `path` lies in the directory `root`; nothing lies in a glob."""
    if not (filesystem.is_local(path) and filesystem.is_local(root)):
        return f"{path.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")
    return Path(path).resolve().is_relative_to(Path(root).expanduser().resolve())
