"""The second step of a path: what a piece names is looked at, and is an image, a tar, a failure, or skipped.

It takes a system call or a request a file, or for a thousand.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from imgindex.inputs import key_ranges, local_files, tar_members
from imgindex.inputs.pieces import Objects, Piece
from imgindex.inputs.selection import Selection
from imgindex.inputs.skipped import Skipped
from imgindex.inputs.source import unlisted
from imgindex.inputs.tar_members import TarFile
from imgindex.io import filesystem
from imgindex.records import Failure, ImageFile
from imgindex.uris import uri_of

# How many files of an object store are asked for at once.
_REQUESTS = 10

Found = ImageFile | Failure | TarFile | Skipped


def look_up(piece: Piece, source: str, selection: Selection) -> Iterator[Found]:
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


def _of_range(piece: Objects, source: str, selection: Selection) -> Iterator[Found]:
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
        raise unlisted(source, error) from error
    yield Skipped(skipped)


def _look_at(files: Sequence[tuple[str, str]]) -> list[local_files.Entry]:
    paths = [path for _, path in files]
    if all(map(filesystem.is_local, paths)):
        return list(map(local_files.look_at, paths))
    with ThreadPoolExecutor(_REQUESTS, "look") as pool:
        return list(pool.map(local_files.look_at, paths))


def _classify(uri: str, path: str, entry: local_files.Entry) -> Found:
    if isinstance(entry, OSError):
        return Failure(uri, "list", *local_files.fault_of(path, entry))
    if isinstance(entry, str):
        return Failure(uri, "list", "not_a_file", entry)
    if path.lower().endswith(tar_members.SUFFIX):
        return TarFile(uri, path, *entry)
    return tar_members.refused(uri, path) or ImageFile(uri, path, *entry)
