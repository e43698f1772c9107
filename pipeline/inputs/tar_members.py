"""Images that are members of tar files: listed, and found again by their paths."""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from imgindex.inputs import local_files
from imgindex.inputs.selection import Rules
from imgindex.inputs.skipped import Skipped
from imgindex.inputs.tar_format import COMPRESSED_MESSAGE, Member, TarError, each_member
from imgindex.io import filesystem
from imgindex.io.byte_ranges import read_range, reader
from imgindex.io.circuit_breaker import READS
from imgindex.io.content_encoding import unpacked
from imgindex.records import Failure, ImageFile
from imgindex.uris import uri_of

SUFFIX = ".tar"
_COMPRESSED_SUFFIXES = (
    ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4",
)  # fmt: skip
_INSIDE = re.compile(r"(.*\.tar)/(.*)", re.IGNORECASE | re.DOTALL)
SUFFIXES = (SUFFIX, *_COMPRESSED_SUFFIXES)


@dataclass(frozen=True)
class TarFile:
    """A tar of a listing."""

    uri: str
    path: str
    size: int  # bytes
    version: str
    wanted: frozenset[str] | None = None  # the uris of members, where not all are


def refused(uri: str, path: str) -> Failure | None:
    """The failure of a tar whose name says that it is compressed."""
    if path.lower().endswith(_COMPRESSED_SUFFIXES):
        return Failure(uri, "list", "compressed_tar", COMPRESSED_MESSAGE)
    return None


def images_of(tar: TarFile, rules: Rules) -> Iterator[ImageFile | Failure | Skipped]:
    """The images in a tar: members of a uri that is wanted, else those that `rules` take; then a `Skipped`.

    Of several members of one name the last one counts, as if they were unpacked. A tar that cannot be read on
    gives what is before that, and a `Failure` of its own. All names are held at once.

    Raises InputError where the storage is out of order.
    """
    yield from {getattr(image, "uri", None): image for image in each_image(tar, rules)}.values()


def each_image(tar: TarFile, rules: Rules) -> Iterator[ImageFile | Failure | Skipped]:
    """As `images_of`, but one by one, also those that a later member replaces."""
    skipped: Counter[str] = Counter()
    missing = set(tar.wanted or ())
    try:
        with READS.watched(tar.path), reader(tar.path) as file:
            for member in each_member(file, tar.size):
                uri = f"{tar.uri}/{uri_of(member.name)}"
                if tar.wanted is None:
                    is_wanted = rules.takes_below(uri, len(tar.uri) + 1, rules.suffixes, skipped)
                else:
                    is_wanted = uri in tar.wanted
                missing.discard(uri)
                if is_wanted and member.is_file:
                    version = f"{tar.version}+{member.offset}"
                    yield ImageFile(uri, tar.path, member.size, version, offset=member.offset)
                elif is_wanted:
                    yield Failure(uri, "list", "not_a_file", "it is a link or a device in a tar")
    except TarError as error:
        yield Failure(tar.uri, "list", error.reason, str(error))
    except OSError as error:
        yield Failure(tar.uri, "list", *local_files.fault_of(tar.path, error))
    for uri in missing:
        yield Failure(uri, "list", "vanished", f"there is no such member in {tar.path}")
    yield Skipped(skipped)


def split(path: str) -> tuple[str, str] | None:
    """The path of a tar, and that of a member in it, where `path` leads into one."""
    parts = _INSIDE.fullmatch(path)
    return (parts[1], parts[2]) if parts else None


def read_image(path: str, limit: int | None = None) -> bytes:
    """A file, or a member of a tar by its path in it: all, or of a longer one the first `limit` + 1 bytes.

    Objects that are packed are unpacked. Raises OSErrors.
    """
    try:
        data = filesystem.read_bytes(path) if limit is None else filesystem.read_regular(path, limit)
        return unpacked(path, data, limit)
    except (FileNotFoundError, NotADirectoryError):
        parts = split(path)
        if parts is None:
            raise
        tar, name = parts
        entry = local_files.look_at(tar)
        if not isinstance(entry, tuple):
            raise
        member = _members(tar, *entry).get(name)
        if member is None:
            raise
        return read_range(tar, member.offset, member.size if limit is None else min(member.size, limit + 1))


# For the few tars that the pictures of a page are in.
@functools.lru_cache(maxsize=16)
def _members(path: str, size: int, version: str) -> dict[str, Member]:
    members: dict[str, Member] = {}
    try:
        with reader(path) as file:
            for member in each_member(file, size):
                members[member.name] = member
    except TarError:  # it has what is before
        pass
    return {name: member for name, member in members.items() if member.is_file}
