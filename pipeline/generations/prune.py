"""Deletes what is old: generations, and features and failures that none of the others uses."""

import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from imgindex.errors import DamagedError, MismatchError, UsageError
from imgindex.features import feature_store, known_failures
from imgindex.features.key_hashes import Keys, key_of, places, sorted_keys
from imgindex.generations import failure_lists
from imgindex.generations.layout import Output, files_of, generation_names, live_name, read_manifest
from imgindex.indexing.shard_files import read_digests
from imgindex.io import content_addressed, filesystem
from imgindex.io.output_lock import writer_lock
from imgindex.records import ImageFile, KnownFailure, StoredImage, WrittenFile, version_of_file

logger = logging.getLogger(__name__)

# What is younger is not pruned. A reader may be about to open the generation that was live a moment ago.
GENERATION_GRACE = 3600.0
# A build that was killed or refused has left features for the next one, which people may start days later.
FEATURE_GRACE = 7 * 24 * 3600.0

# The times in a version: when the content was changed, and of a local file when its attributes were. The
# number of an object's generation grows as a time does.
_TIMES = re.compile(r"(-?\d+(?:\.\d+)?)(?:-(\d+)|-.*)?")


@dataclass(frozen=True)
class Pruned:
    """What `prune` deleted, and what it kept because it is young, whether it is in use or not."""

    generations: tuple[str, ...]
    chunks: int
    rows: int
    failures: int  # that were remembered
    young_generations: tuple[str, ...] = ()
    young_files: int = 0  # of the store, also those that are in use


def prune(output: str, keep: int, grace_seconds: float | None = None) -> Pruned:
    """Deletes all but the `keep` newest generations, and what of the store none of the others describes.

    Remembered failures go by the file, when none of those in it is in the list of a generation that stays.
    The live generation stays, and so does what is not older than `grace_seconds`: a generation by the time in
    its name, a file of the store by its modification time. Without `grace_seconds` they are
    `GENERATION_GRACE` for generations and `FEATURE_GRACE` for the store. A chunk that still holds rows in use
    is written again without the rest. Where a generation that stays is damaged, and is not the live one, the
    store stays as it is.

    Raises:
      UsageError: `keep` is less than 1.
      OutputError: the live generation or a chunk cannot be read, or another process is writing the output.
    """
    if keep < 1:
        raise UsageError(f"--keep is {keep}; expected at least 1")
    layout = Output(output)
    live_name(layout)  # the lock would make an output of what is none
    generation_grace = GENERATION_GRACE if grace_seconds is None else grace_seconds
    feature_grace = FEATURE_GRACE if grace_seconds is None else grace_seconds
    now = time.time()
    with writer_lock(layout.root) as claim:
        # Only now, for until now another process may have made another generation the live one.
        live, names = live_name(layout), generation_names(layout)
        spare = [name for name in names[:-keep] if name != live]
        old = [name for name in spare if now - _created(name) > generation_grace]
        specs = filesystem.list_folders(filesystem.join(layout.root, "store"))
        # Read before anything is deleted: what is damaged here may make an old generation the best there is.
        try:
            images, known = _used(layout, [name for name in names if name not in old])
        except DamagedError as error:
            images, known = _used(layout, [live])
            specs = []
            logger.warning("%s: the store stays as it is, for what that generation uses is not known", error)
        for name in old:
            claim.check()  # a rollback by who has taken over may have made it the live one
            # First what makes it complete, so that half of one is never taken for a generation.
            filesystem.delete(layout.manifest(name))
            filesystem.delete_tree(layout.generation(name))
        claim.check()
        before = now - feature_grace
        none = _keys([])
        young = sum(_count_young(layout.store(spec), before) for spec in specs)
        deleted = [_compact(layout.store(spec), images.get(spec, none), before) for spec in specs]
        forgotten = sum(_forget(layout.store(spec), known.get(spec, none), before) for spec in specs)
    return Pruned(
        tuple(old),
        sum(count for count, _ in deleted),
        sum(rows for _, rows in deleted),
        forgotten,
        tuple(name for name in spare if name not in old),
        young,
    )


def _used(layout: Output, names: Iterable[str]) -> tuple[dict[str, Keys], dict[str, Keys]]:
    """The keys of the images that generations hold, and of the failures that they list, by their spec."""
    in_use: dict[str, list[WrittenFile]] = defaultdict(list)
    failed: dict[str, list[WrittenFile]] = defaultdict(list)
    for name in names:
        manifest = read_manifest(layout, name)
        files, spec = files_of(layout, manifest), manifest.spec.digest
        in_use[spec] += [files[shard.metadata] for shard in manifest.shards]
        failed[spec] += [files[path] for path in manifest.failures]
    images = {
        spec: _keys(image for file in files for image in read_digests(file)) for spec, files in in_use.items()
    }
    known = {
        spec: _keys(image for file in files for image in failure_lists.read_list(file))
        for spec, files in failed.items()
    }
    return images, known


def _count_young(directory: str, before: float) -> int:
    """How many files of the store were not written `before`."""
    names = {*content_addressed.names(directory), *known_failures.names(directory)}
    return sum(at >= before for name, at in filesystem.list_modified(directory) if name in names)


def _created(name: str) -> float:
    """When a generation was begun, by its name; seconds since the epoch."""
    return datetime.strptime(name[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _keys(images: Iterable[tuple[str, str | None]]) -> Keys:
    """The keys of images by their uris and SHA-256, sorted."""
    return sorted_keys(_key(uri, sha256) for uri, sha256 in images)


def _key(uri: str, sha256: str | None) -> int:
    return key_of(sha256, uri)


def _compact(directory: str, in_use: Keys, before: float) -> tuple[int, int]:
    """Drops rows that are not `in_use` from chunks written `before`; returns how many of both went."""
    names = [
        name
        for name in content_addressed.names(directory)
        if filesystem.modified(filesystem.join(directory, name)) < before
    ]
    kept = _rows_to_keep(directory, names, in_use)
    holed = [number for number in range(len(names)) if kept.count(number) < kept.rows[number]]
    copier = feature_store.RowCopier(directory)
    written: set[str] = set()
    for number in holed:
        if kept.count(number):
            images = kept.images(directory, names[number], number)
            written |= {image.chunk for rows in copier.copy(names[number], images) for image in rows}
    written |= {image.chunk for rows in copier.flush() for image in rows}
    # Only now, when all that they hold is elsewhere.
    for name in {names[number] for number in holed} - written:
        filesystem.delete(filesystem.join(directory, name))
    return len(holed), sum(int(kept.rows[number]) - kept.count(number) for number in holed)


@dataclass(frozen=True)
class _Kept:
    """Which rows of some chunks stay; some 5 bytes a row that does."""

    rows: npt.NDArray[np.int64]  # of each chunk
    starts: npt.NDArray[np.int64]  # where the rows of each chunk that stay begin in `numbers`, and the end
    numbers: npt.NDArray[np.int32]  # of these rows

    def count(self, chunk: int) -> int:
        """How many rows of a chunk stay."""
        return int(self.starts[chunk + 1] - self.starts[chunk])

    def images(self, directory: str, name: str, chunk: int) -> Iterator[tuple[ImageFile, StoredImage]]:
        """The rows of a chunk that stay."""
        stay = set(self.numbers[self.starts[chunk] : self.starts[chunk + 1]].tolist())
        for image in feature_store.read_keys(directory, name):
            if image.row in stay:
                yield ImageFile(image.uri, "", image.size, image.version), image


def _rows_to_keep(directory: str, names: Sequence[str], in_use: Keys) -> _Kept:
    """Of each image in use the newest row that the chunks have."""
    rows = np.zeros(len(names), np.int64)
    newest = np.zeros((len(in_use), 2))  # the times of that row
    chunk_of, row_of = np.full(len(in_use), -1, np.int32), np.zeros(len(in_use), np.int32)
    for number, name in enumerate(names):
        images = list(feature_store.read_keys(directory, name))
        rows[number] = len(images)
        keys = np.array([_key(image.uri, image.sha256) for image in images], np.uint64)
        for image, place in zip(images, places(keys, in_use), strict=True):
            if place >= 0 and (chunk_of[place] < 0 or _age(image) > tuple(newest[place])):
                newest[place], chunk_of[place], row_of[place] = _age(image), number, image.row
    order = np.argsort(chunk_of, kind="stable")
    starts = np.searchsorted(chunk_of[order], np.arange(len(names) + 1))
    return _Kept(rows, starts, row_of[order])


def _age(image: StoredImage) -> tuple[float, float]:
    """Sorts versions of the same bytes, oldest first; what is no time, as no build writes it, before all.

    The time of a file's attributes only grows. Earlier versions of imgindex did not write it.
    """
    times = _TIMES.fullmatch(version_of_file(image.version))
    if times is None:
        return -math.inf, -math.inf
    return float(times[2] or "-inf"), float(times[1])


def _forget(directory: str, listed: Keys, before: float) -> int:
    """Deletes files written `before` that hold no `listed` failure; returns how many failures went."""
    forgotten = 0
    for name in known_failures.names(directory):
        path = filesystem.join(directory, name)
        if filesystem.modified(path) >= before:
            continue
        known: list[KnownFailure] = []
        try:
            known += known_failures.read(directory, name)
        except MismatchError as error:
            logger.warning("%s: deleted, what it held is tried again", error)
        keys = np.array([_key(failed.uri, failed.sha256) for failed in known], np.uint64)
        if (places(keys, listed) < 0).all():
            filesystem.delete(path)
            forgotten += len(known)
    return forgotten
