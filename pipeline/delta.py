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

from imgindex import chunks, store
from imgindex.config import ImagesConfig
from imgindex.errors import DamagedError
from imgindex.loading import hash_file
from imgindex.models.engines import available_cores
from imgindex.opened import read_digests
from imgindex.records import ImageFile, StoredImage, Tally, WrittenFile, bucket_of

logger = logging.getLogger(__name__)

# Into how many parts a listing is cut where it meets the store: enough that a part of 10**8 images fits
# into a worker's memory, few enough that an element is a batch and not an image.
_BUCKETS = 256

# Images that are hashed or copied together, and again when a worker dies.
_UNIT_IMAGES = 512

# Copies of one image that share its embedding: more of them than fit into an element are embedded again.
_MAX_DUPLICATES = 1000


class Delta(NamedTuple):
    """A listing against the store."""

    new: Any  # `ImageFile`s to embed, with those of the same bytes as their `duplicates`
    found: Any  # lists of `StoredImage`s: what the store holds
    copied: Any  # `EmbeddedUnit`s of files whose bytes the store holds under another name or time
    damaged: Any  # the names of chunks that were dropped, for they are not as they were written


@dataclass
class DiffAgainstStore(beam.PTransform):  # type: ignore[misc]
    """Splits `ImageFile`s by whether the store at `directory` holds their features; gives a `Delta`.

    A file is held when its uri, size and modification time or etag are. Of the others, those that share
    their size with another file or a stored image are read and compared by SHA-256. A chunk that is damaged
    is deleted, and what it held is not held.
    """

    directory: str
    images: ImagesConfig = field(default_factory=ImagesConfig)
    threads: int | None = None  # that read files in a worker; None: as many as it has cores
    feature_dim: int | None = None  # of the store's features; None: whatever they have

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, files: Any) -> Any:
        """Applies the transform."""
        keys = (
            files.pipeline
            | beam.Create([self.directory])
            | beam.FlatMap(chunks.names)
            | beam.Reshuffle()
            | "ReadKeys"
            >> beam.FlatMap(_read_keys, self.directory, self.feature_dim).with_outputs(
                "damaged", main="stored"
            )
        )
        stored = keys.stored
        diff = (
            {
                "listed": files | "ListedByUri" >> beam.ParDo(_GatherBy(_uri_bucket)),
                "stored": stored | "StoredByUri" >> beam.ParDo(_GatherBy(_uri_bucket)),
            }
            | "JoinByUri" >> beam.CoGroupByKey()
            | "Diff" >> beam.FlatMap(_diff_bucket).with_outputs("found", main="missing")
        )
        by_size = (
            {
                "missing": diff.missing | "MissingBySize" >> beam.ParDo(_GatherBy(_size_bucket)),
                "stored": stored | "StoredBySize" >> beam.ParDo(_GatherBy(_size_bucket)),
            }
            | "JoinBySize" >> beam.CoGroupByKey()
            | "FindSuspects" >> beam.FlatMap(_find_suspects).with_outputs("suspects", "twins", main="fresh")
        )
        hashed = (
            by_size.suspects
            | beam.BatchElements(min_batch_size=_UNIT_IMAGES, max_batch_size=_UNIT_IMAGES)
            | "SpreadSuspects" >> beam.Reshuffle()
            | "Hash"
            >> beam.FlatMap(_hash_files, self.images, self.threads).with_outputs("unreadable", main="hashed")
        )
        matched = (
            {
                "files": hashed.hashed,
                "twins": by_size.twins | "TwinsByDigest" >> beam.Map(lambda twin: (twin.sha256, twin)),
            }
            | "JoinByDigest" >> beam.CoGroupByKey()
            | "MatchDigests" >> beam.FlatMap(_match_digests).with_outputs("copies", main="leaders")
        )
        copied = (
            matched.copies
            | "BatchCopies" >> beam.BatchElements(min_batch_size=_UNIT_IMAGES, max_batch_size=_UNIT_IMAGES)
            | "SpreadCopies" >> beam.Reshuffle()
            | "Copy" >> beam.Map(store.copy_rows, self.directory)
        )
        new = (by_size.fresh, hashed.unreadable, matched.leaders) | "New" >> beam.Flatten()
        return Delta(new, diff.found, copied, keys.damaged)


def _read_keys(chunk: str, directory: str, feature_dim: int | None) -> Iterator[Any]:
    try:
        yield from store.read_keys(directory, chunk, feature_dim)
    except DamagedError as error:
        logger.warning("%s: its images are embedded again", error)
        # It can never become right again, for its name says what it should hold.
        chunks.drop(directory, chunk)
        yield TaggedOutput("damaged", chunk)


def _uri_bucket(image: ImageFile | StoredImage) -> int:
    return bucket_of(image.uri, _BUCKETS)


def _size_bucket(image: ImageFile | StoredImage) -> int:
    return bucket_of(str(image.size), _BUCKETS)


class _GatherBy(beam.DoFn):  # type: ignore[misc]
    """Gathers a bundle's elements by bucket, so that they are shuffled in batches."""

    def __init__(self, bucket: Callable[[Any], int]) -> None:
        self._bucket = bucket

    def start_bundle(self) -> None:
        self._buckets: dict[int, list[Any]] = defaultdict(list)

    def process(self, element: Any) -> None:
        self._buckets[self._bucket(element)].append(element)

    def finish_bundle(self) -> Iterator[Any]:
        for bucket in self._buckets.items():
            yield GlobalWindows.windowed_value(bucket)


_Sides = dict[str, Iterable[list[Any]]]


def _each(batches: Iterable[list[Any]]) -> Iterator[Any]:
    for batch in batches:
        yield from batch


def _diff_bucket(element: tuple[int, _Sides]) -> Iterator[Any]:
    _, sides = element
    missing, found = store.diff(_each(sides["listed"]), _each(sides["stored"]))
    yield from missing
    if found:
        yield TaggedOutput("found", found)


def _find_suspects(element: tuple[int, _Sides]) -> Iterator[Any]:
    """Files of a size that no other image has are fresh; the rest may be copies."""
    _, sides = element
    missing: dict[int, list[ImageFile]] = defaultdict(list)
    for file in _each(sides["missing"]):
        missing[file.size].append(file)
    partners = set()
    for image in _each(sides["stored"]):
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
            yield TaggedOutput("unreadable", file) if digest is None else (digest, file)


def _match_digests(element: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[Any]:
    """Files of the same bytes: copies of a stored image, or one to embed with the others as duplicates."""
    digest, sides = element
    files = sorted(sides["files"], key=lambda file: file.uri)
    twin = min(sides["twins"], key=lambda twin: (twin.chunk, twin.row), default=None)
    if twin is not None:
        for file in files:
            yield TaggedOutput("copies", (file, twin))
        return
    for start in range(0, len(files), _MAX_DUPLICATES):
        leader, *duplicates = files[start : start + _MAX_DUPLICATES]
        yield replace(leader, sha256=digest, duplicates=tuple(duplicates))


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
            | beam.Create(list(self.metadata))
            | beam.Reshuffle()
            | beam.FlatMap(read_digests)
            | "BeforeByUri" >> beam.ParDo(_GatherBy(_pair_bucket))
        )
        now = (
            held
            | "EachHeld" >> beam.FlatMap(lambda images: images)
            | "HeldByUri" >> beam.ParDo(_GatherBy(_uri_bucket))
        )
        return (
            {"before": before, "now": now}
            | beam.CoGroupByKey()
            | "Compare" >> beam.FlatMap(_compare_bucket).with_outputs("news", main="counts")
        )


def _pair_bucket(pair: tuple[str, str]) -> int:
    return bucket_of(pair[0], _BUCKETS)


def _compare_bucket(element: tuple[int, _Sides]) -> Iterator[Any]:
    _, sides = element
    before = dict(_each(sides["before"]))
    counts = dict.fromkeys(("added", "changed", "removed", "unchanged"), 0)
    news = []
    kept = 0
    for image in _each(sides["now"]):
        digest = before.get(image.uri)
        kind = "added" if digest is None else "unchanged" if digest == image.sha256 else "changed"
        counts[kind] += 1
        kept += kind != "added"
        if kind != "unchanged":
            news.append(image)
    counts["removed"] = len(before) - kept
    if news:
        yield TaggedOutput("news", news)
    yield Tally(counts)


@dataclass
class GroupByChunk(beam.PTransform):  # type: ignore[misc]
    """Turns lists of `StoredImage`s into ``(chunk, rows)``, each chunk once."""

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, held: Any) -> Any:
        """Applies the transform."""
        return held | beam.FlatMap(_rows_by_chunk) | beam.GroupByKey() | beam.MapTuple(_sorted_rows)


def _rows_by_chunk(images: Iterable[StoredImage]) -> Iterable[tuple[str, list[int]]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for image in images:
        rows[image.chunk].append(image.row)
    return rows.items()


def _sorted_rows(chunk: str, parts: Iterable[list[int]]) -> tuple[str, list[int]]:
    return chunk, sorted(row for rows in parts for row in rows)
