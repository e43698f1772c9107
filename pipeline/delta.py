"""What has changed: a listing against the store, and what is to be indexed against the live generation."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from imgindex import chunks, failures, store
from imgindex.config import ImagesConfig
from imgindex.errors import DamagedError
from imgindex.loading import hash_file
from imgindex.metrics import count_failure
from imgindex.models.resources import available_cores
from imgindex.opened import read_digests
from imgindex.records import (
    JOIN_BUCKETS,
    ImageFile,
    IndexedImage,
    KnownFailure,
    StoredImage,
    Tally,
    WrittenFile,
    bucket_of,
)

logger = logging.getLogger(__name__)

# Images that wait to be shuffled, in a worker: a bundle may be the whole listing.
_WAITING_IMAGES = 65_536

# Images in one element that a join gives.
_ELEMENT_IMAGES = 4096

# Images that are hashed or copied together, and again when a worker dies.
_UNIT_IMAGES = 512

# Copies of one image that share its embedding: more of them than fit into an element are embedded again.
_MAX_DUPLICATES = 1000


class Delta(NamedTuple):
    """A listing against the store."""

    new: Any  # `ImageFile`s to embed, with those of the same bytes as their `duplicates`
    found: Any  # lists of `StoredImage`s: what the store holds
    copied: Any  # `EmbeddedUnit`s of files whose bytes the store holds under another name or time
    failed: Any  # `Failure`s of files whose bytes are known to be bad
    damaged: Any  # the names of chunks that were dropped, for they are not as they were written


@dataclass
class DiffAgainstStore(beam.PTransform):  # type: ignore[misc]
    """Splits `ImageFile`s by whether the store at `directory` holds their features; gives a `Delta`.

    A file is held, or known to be bad, when its uri, size and modification time or etag are. Of the others,
    those that share their size with another file, a stored or a bad image are read and compared by SHA-256.
    A chunk that is damaged is deleted, and what it held is not held.
    """

    directory: str
    images: ImagesConfig = field(default_factory=ImagesConfig)
    threads: int | None = None  # that read files in a worker; None: as many as it has cores
    retry_failed: bool = False  # takes no image for bad
    feature_dim: int | None = None  # of the store's features; None: whatever they have

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, files: Any) -> Any:
        """Applies the transform."""
        keys = (
            files.pipeline
            | "LocateStore" >> beam.Create([self.directory])
            | "ListChunks" >> beam.FlatMap(_names, self.retry_failed)
            | "SpreadChunks" >> beam.Reshuffle()
            | "ReadKeys"
            >> beam.FlatMap(_read_keys, self.directory, self.feature_dim, self.images).with_outputs(
                "damaged", main="stored"
            )
        )
        stored = keys.stored
        diff = (
            (files, stored)
            | "JoinByUri" >> _JoinBy(_uri_bucket)
            | "Diff" >> beam.FlatMap(_diff_bucket).with_outputs("found", "failed", main="missing")
        )
        by_size = (
            (diff.missing, stored)
            | "JoinBySize" >> _JoinBy(_size_bucket)
            | "FindSuspects" >> beam.FlatMap(_find_suspects).with_outputs("suspects", "twins", main="fresh")
        )
        hashed = (
            by_size.suspects
            | "BatchSuspects" >> beam.BatchElements(min_batch_size=_UNIT_IMAGES, max_batch_size=_UNIT_IMAGES)
            | "SpreadSuspects" >> beam.Reshuffle()
            | "Hash"
            >> beam.FlatMap(_hash_files, self.images, self.threads).with_outputs("unreadable", main="hashed")
        )
        matched = (
            (hashed.hashed, by_size.twins)
            | "JoinByDigest" >> _JoinBy(_digest_bucket)
            | "MatchDigests" >> beam.FlatMap(_match_digests).with_outputs("copies", main="leaders")
        )
        copied = (
            matched.copies
            | "BatchCopies" >> beam.BatchElements(min_batch_size=_UNIT_IMAGES, max_batch_size=_UNIT_IMAGES)
            | "Copy" >> beam.FlatMap(_copy, self.directory).with_outputs("failed", main="copied")
        )
        failed = (diff.failed, copied.failed) | "FlattenFailed" >> beam.Flatten()
        new = (by_size.fresh, hashed.unreadable, matched.leaders) | "FlattenNew" >> beam.Flatten()
        return Delta(
            new,
            diff.found,
            copied.copied,
            failed | "CountFailed" >> beam.Map(count_failure),
            keys.damaged,
        )


# What the store knows of a version of an image.
_Stored = StoredImage | KnownFailure


def _names(directory: str, retry_failed: bool) -> list[str]:
    return chunks.names(directory) + ([] if retry_failed else failures.names(directory))


def _read_keys(name: str, directory: str, feature_dim: int | None, limits: ImagesConfig) -> Iterator[Any]:
    """What of a file of the store is within `limits`, which may have been others when it was written."""
    try:
        if failures.holds(name):
            yield from failures.read(directory, name, limits)
        else:
            yield from store.read_keys(directory, name, feature_dim, limits)
    except DamagedError as error:
        logger.warning("%s: what it held is tried again", error)
        # It can never become right again, for its name says what it should hold.
        chunks.drop(directory, name)
        if not failures.holds(name):
            yield TaggedOutput("damaged", name)


def _images_and_failures(stored: Iterable[_Stored]) -> tuple[list[StoredImage], list[KnownFailure]]:
    images: list[StoredImage] = []
    known: list[KnownFailure] = []
    for one in stored:
        if isinstance(one, KnownFailure):
            known.append(one)
        else:
            images.append(one)
    return images, known


def _uri_bucket(image: ImageFile | _Stored | IndexedImage) -> int:
    return bucket_of(image.uri, JOIN_BUCKETS)


def _size_bucket(image: ImageFile | _Stored) -> int:
    return bucket_of(str(image.size), JOIN_BUCKETS)


def _digest_bucket(image: ImageFile | _Stored) -> int:
    return bucket_of(str(image.sha256), JOIN_BUCKETS)


# A bucket, and what of one side falls into it: 0 is the left side, 1 the right.
_Batch = tuple[int, tuple[int, list[Any]]]
# A bucket, and all that falls into it.
_Joined = tuple[int, Iterable[tuple[int, list[Any]]]]


@dataclass
class _JoinBy(beam.PTransform):  # type: ignore[misc]
    """Joins two PCollections by bucket: CoGroupByKey of batches, in a third of its steps."""

    bucket: Callable[[Any], int]

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, sides: tuple[Any, Any]) -> Any:
        left, right = sides
        return (
            left | "GatherLeft" >> beam.ParDo(_GatherBy(self.bucket, 0)),
            right | "GatherRight" >> beam.ParDo(_GatherBy(self.bucket, 1)),
        ) | "FlattenSides" >> beam.Flatten() | "GroupByBucket" >> beam.GroupByKey()  # fmt: skip


@beam.typehints.with_output_types(tuple[int, Any])  # a key whose coder every runner knows
class _GatherBy(beam.DoFn):  # type: ignore[misc]
    """Gathers a bundle's elements by bucket, so that they are shuffled in batches."""

    def __init__(self, bucket: Callable[[Any], int], side: int) -> None:
        self._bucket = bucket
        self._side = side

    def start_bundle(self) -> None:
        self._buckets: dict[int, list[Any]] = defaultdict(list)
        self._waiting = 0

    def process(self, element: Any) -> Iterator[_Batch]:
        self._buckets[self._bucket(element)].append(element)
        self._waiting += 1
        if self._waiting == _WAITING_IMAGES:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[Any]:
        for batch in self._flush():
            yield GlobalWindows.windowed_value(batch)

    def _flush(self) -> Iterator[_Batch]:
        for bucket, elements in self._buckets.items():
            yield bucket, (self._side, elements)
        self._buckets.clear()
        self._waiting = 0


def _left(joined: _Joined) -> Iterator[Any]:
    return (element for side, batch in joined[1] if side == 0 for element in batch)


def _right(joined: _Joined) -> Iterator[Any]:
    return (element for side, batch in joined[1] if side == 1 for element in batch)


def _diff_bucket(joined: _Joined) -> Iterator[Any]:
    images, known = _images_and_failures(_right(joined))
    missing, found = store.diff(_left(joined), images)
    untried, failed = failures.split(missing, known)
    yield from untried
    for failure in failed:
        yield TaggedOutput("failed", failure)
    for some in _in_elements(found):
        yield TaggedOutput("found", some)


def _in_elements(images: list[StoredImage]) -> Iterator[list[StoredImage]]:
    return (images[start : start + _ELEMENT_IMAGES] for start in range(0, len(images), _ELEMENT_IMAGES))


def _find_suspects(joined: _Joined) -> Iterator[Any]:
    """Files of a size that no other image has are fresh; the rest may be copies."""
    missing: dict[int, list[ImageFile]] = defaultdict(list)
    for file in _left(joined):
        missing[file.size].append(file)
    partners = set()
    for image in _right(joined):
        if image.size in missing:
            partners.add(image.size)
            yield TaggedOutput("twins", image)
    for size, files in missing.items():
        suspicious = len(files) > 1 or size in partners
        for file in files:
            yield TaggedOutput("suspects", file) if suspicious else file


def _hash_files(files: Sequence[ImageFile], limits: ImagesConfig, threads: int | None) -> Iterator[Any]:
    with ThreadPoolExecutor(threads or available_cores(), "hash") as pool:
        digests = pool.map(lambda file: hash_file(file, limits), files)
        for file, digest in zip(files, digests, strict=True):
            # What cannot be read fails where images are loaded, with its reason.
            yield TaggedOutput("unreadable", file) if digest is None else replace(file, sha256=digest)


def _match_digests(joined: _Joined) -> Iterator[Any]:
    """Files of the same bytes: copies of a stored image, or one to embed with the others as duplicates."""
    same: dict[str | None, list[ImageFile]] = defaultdict(list)
    for file in _left(joined):
        same[file.sha256].append(file)
    twins: dict[str | None, list[_Stored]] = defaultdict(list)
    for twin in _right(joined):
        twins[twin.sha256].append(twin)
    for digest, files in same.items():
        # Any twin would do; the choice must not depend on the order in which they come.
        images, known = _images_and_failures(twins.get(digest, ()))
        twin = min(images, key=lambda twin: (twin.chunk, twin.row), default=None) or failures.first(known)
        if twin is not None:
            for file in files:
                yield TaggedOutput("copies", (file, twin))
            continue
        files.sort(key=lambda file: file.uri)
        for start in range(0, len(files), _MAX_DUPLICATES):
            leader, *duplicates = files[start : start + _MAX_DUPLICATES]
            yield replace(leader, duplicates=tuple(duplicates))


def _copy(copies: Sequence[tuple[ImageFile, _Stored]], directory: str) -> Iterator[Any]:
    """Has the store know files under their own names as it knows their twins."""
    images = [(file, twin) for file, twin in copies if isinstance(twin, StoredImage)]
    if images:
        yield store.copy_rows(images, directory)
    known = [failures.known_as(twin.failure, file) for file, twin in copies if isinstance(twin, KnownFailure)]
    failures.write(directory, known)
    for failed in known:
        yield TaggedOutput("failed", failed.failure)


@dataclass
class CompareGenerations(beam.PTransform):  # type: ignore[misc]
    """Compares lists of `StoredImage`s that are to be indexed with the generation that `metadata` describes.

    Gives ``counts``, a PCollection of `Tally`s of added, changed, removed and unchanged images, and
    ``news``, one of lists of the `StoredImage`s that are added or changed.
    """

    metadata: Sequence[WrittenFile]  # the generation's metadata shards, with their whole paths

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, held: Any) -> Any:
        """Applies the transform."""
        before = (
            held.pipeline
            # Spreads them over workers where there are several.
            | "LocateShards" >> beam.Create(list(self.metadata))
            | "ReadDigests" >> beam.FlatMap(_read_digests)
        )
        now = held | "EachHeld" >> beam.FlatMap(lambda images: images)
        return (
            (before, now)
            | "JoinByUri" >> _JoinBy(_uri_bucket)
            | "Compare" >> beam.FlatMap(_compare_bucket).with_outputs("news", main="counts")
        )


def _read_digests(metadata: WrittenFile) -> Iterator[IndexedImage]:
    """What a metadata shard holds; of one that is damaged nothing, so that its images count as added."""
    try:
        yield from read_digests(metadata)
    except DamagedError as error:
        logger.warning("%s: its images count as added", error)


def _compare_bucket(joined: _Joined) -> Iterator[Any]:
    before = dict(_left(joined))
    counts = dict.fromkeys(("added", "changed", "removed", "unchanged"), 0)
    news = []
    kept = 0
    for image in _right(joined):
        digest = before.get(image.uri)
        kind = "added" if digest is None else "unchanged" if digest == image.sha256 else "changed"
        counts[kind] += 1
        kept += kind != "added"
        if kind != "unchanged":
            news.append(image)
    counts["removed"] = len(before) - kept
    for some in _in_elements(news):
        yield TaggedOutput("news", some)
    yield Tally(counts)


@dataclass
class GroupByChunk(beam.PTransform):  # type: ignore[misc]
    """Turns lists of `StoredImage`s into ``(chunk, rows)``, each chunk once."""

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, held: Any) -> Any:
        """Applies the transform."""
        return (
            held
            | "SplitByChunk" >> beam.FlatMap(_rows_by_chunk)
            | "GroupRows" >> beam.GroupByKey()
            | "SortRows" >> beam.MapTuple(_sorted_rows)
        )


def _rows_by_chunk(images: Iterable[StoredImage]) -> Iterable[tuple[str, list[int]]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for image in images:
        rows[image.chunk].append(image.row)
    return rows.items()


def _sorted_rows(chunk: str, parts: Iterable[list[int]]) -> tuple[str, list[int]]:
    return chunk, sorted(row for rows in parts for row in rows)
