"""What has changed: a listing against the store."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from imgindex import chunks, failures, store
from imgindex.config import ImagesConfig
from imgindex.errors import DamagedError, MismatchError
from imgindex.join import JoinBy, Joined, in_elements, left, right, uri_bucket
from imgindex.loading import hashed
from imgindex.metrics import count_failure
from imgindex.models.resources import available_cores
from imgindex.records import (
    JOIN_BUCKETS,
    EmbeddedUnit,
    Failure,
    ImageFile,
    KnownFailure,
    StoredImage,
    bucket_of,
)

logger = logging.getLogger(__name__)

# Images that are hashed together, and again when a worker dies.
_UNIT_IMAGES = 512

# Files of the same bytes that share an embedding. For more of them it is embedded again, so that neither an
# element nor a chunk grows with their number.
_MAX_COPIES = store.CHUNK_ROWS


class Delta(NamedTuple):
    """A listing against the store."""

    new: Any  # `ImageFile`s to embed, with those of the same bytes as their `duplicates`
    found: Any  # lists of `StoredImage`s: what the store holds
    copied: Any  # `EmbeddedUnit`s of files whose bytes the store holds under another name or time
    failed: Any  # `Failure`s of files whose bytes are known to be bad, or whose uri another file has
    damaged: Any  # the names of chunks that were dropped, for they are not as they were written


@dataclass
class DiffAgainstStore(beam.PTransform):  # type: ignore[misc]
    """Splits `ImageFile`s by whether the store at `directory` holds their features; gives a `Delta`.

    A file is held, or known to be bad, when its uri, size and times or etag are. Of the others, those that
    share their size with another file, a stored or a bad image are read and compared by SHA-256. So are those
    of which the store says two things, and with `rehash` all that it holds.

    Of several files of one uri the one whose path sorts first counts, but a file before a member of a tar;
    the others fail. A chunk whose bytes are not those that were written is deleted, and what it held is not
    held.
    """

    directory: str
    images: ImagesConfig = field(default_factory=ImagesConfig)
    threads: int | None = None  # that read files in a worker; None: as many as it has cores
    retry_failed: bool = False  # takes no image for bad
    feature_dim: int | None = None  # of the store's features; None: whatever they have
    rehash: bool = False  # takes no file for unchanged without reading it

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
            | "JoinByUri" >> JoinBy(uri_bucket)
            | "Diff"
            >> beam.FlatMap(_diff_bucket, self.rehash).with_outputs("found", "failed", main="missing")
        )
        by_size = (
            (diff.missing, stored)
            | "JoinBySize" >> JoinBy(_size_bucket)
            | "FindSuspects" >> beam.FlatMap(_find_suspects).with_outputs("suspects", "twins", main="fresh")
        )
        digests = (
            by_size.suspects
            | "BatchSuspects" >> beam.BatchElements(min_batch_size=_UNIT_IMAGES, max_batch_size=_UNIT_IMAGES)
            | "SpreadSuspects" >> beam.Reshuffle()
            | "Hash"
            >> beam.FlatMap(_hash_files, self.images, self.threads).with_outputs(
                "unreadable", "confirmed", "failed", main="hashed"
            )
        )
        matched = (
            (digests.hashed, by_size.twins)
            | "JoinByDigest" >> JoinBy(_digest_bucket)
            | "MatchDigests" >> beam.FlatMap(_match_digests).with_outputs("copies", "bad", main="leaders")
        )
        copied = (
            matched.copies
            # By the chunk, which is read once then.
            | "KeyCopies" >> beam.Map(_by_chunk)
            | "GroupCopies" >> beam.GroupByKey()
            | "Copy" >> beam.ParDo(_CopyRows(self.directory))
        )
        bad = (
            matched.bad
            | "BatchBad" >> beam.BatchElements(min_batch_size=_UNIT_IMAGES, max_batch_size=_UNIT_IMAGES)
            | "RememberBad" >> beam.FlatMap(_remember, self.directory)
        )
        failed = (diff.failed, digests.failed, bad) | "FlattenFailed" >> beam.Flatten()
        new = (by_size.fresh, digests.unreadable, matched.leaders) | "FlattenNew" >> beam.Flatten()
        return Delta(
            new,
            (diff.found, digests.confirmed) | "FlattenFound" >> beam.Flatten(),
            copied,
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
        if isinstance(error, MismatchError):
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


def _size_bucket(image: ImageFile | _Stored) -> int:
    return bucket_of(str(image.size), JOIN_BUCKETS)


def _digest_bucket(image: ImageFile | _Stored) -> int:
    return bucket_of(str(image.sha256), JOIN_BUCKETS)


def _diff_bucket(joined: Joined, rehash: bool) -> Iterator[Any]:
    files, repeated = each_uri_once(left(joined))
    images, known = _images_and_failures(right(joined))
    known = [failed for failed in known if failures.is_final(failed)]
    certain, doubtful = _doubtful(files, [*images, *known], rehash)
    missing, found = store.diff(certain, images)
    untried, failed = failures.split(missing, known)
    yield from untried
    yield from doubtful
    for failure in (*failed, *repeated):
        yield TaggedOutput("failed", failure)
    for some in in_elements(found):
        yield TaggedOutput("found", some)


def each_uri_once(files: Iterable[ImageFile]) -> tuple[list[ImageFile], list[Failure]]:
    """One file of each uri, and failures of the others; in whatever order they come."""
    by_uri: dict[str, list[ImageFile]] = defaultdict(list)
    for file in files:
        by_uri[file.uri].append(file)
    kept, repeated = [], []
    for uri, same in by_uri.items():
        first, *others = sorted(same, key=_preference) if len(same) > 1 else same
        kept.append(first)
        for other in others:
            # An object store may have a key that leads into a tar; a directory may name a file twice.
            what = "it is listed twice" if other.path == first.path else f"{first.path} has the same path"
            message = f"{what}, and one of the two is indexed; {other.path} is left out"
            repeated.append(Failure(uri, "list", "duplicate_uri", message))
    return kept, repeated


def _preference(file: ImageFile) -> tuple[bool, str, int, str, int]:
    return file.offset is not None, file.path, file.size, file.version, file.offset or 0


def _doubtful(
    files: Iterable[ImageFile], stored: Iterable[_Stored], rehash: bool
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Splits files by whether what the store says of them must be compared with their bytes.

    It is that the store says two things of one version, as after an edit that no time and no etag tells.
    """
    by_key: dict[tuple[str, int, str], dict[str | None, _Stored]] = defaultdict(dict)
    for one in stored:
        said = by_key[one.uri, one.size, one.version]
        said[one.sha256] = min(one, said.get(one.sha256, one), key=_rank)
    certain, doubtful = [], []
    for file in files:
        said = by_key.get((file.uri, file.size, file.version), {})
        if len(said) > 1 or (said and rehash):
            doubtful.append(replace(file, claims=tuple(said.values())))
        else:
            certain.append(file)
    return certain, doubtful


def _rank(stored: _Stored) -> tuple[Any, ...]:
    """Sorts what the store says of the same bytes: features before failures, and then in one order."""
    if isinstance(stored, StoredImage):
        return 0, stored.chunk, stored.row
    return 1, *failures.order(stored)


def _find_suspects(joined: Joined) -> Iterator[Any]:
    """Files of a size that no other image has are fresh; the rest may be copies.

    Of what is joined only sizes are held: all images of a collection may have the same.
    """
    count_of = Counter(file.size for file in left(joined))
    partners = set()
    for image in right(joined):
        if image.size in count_of:
            partners.add(image.size)
            yield TaggedOutput("twins", image)
    for file in left(joined):
        suspicious = count_of[file.size] > 1 or file.size in partners
        yield TaggedOutput("suspects", file) if suspicious else file


def _hash_files(files: Sequence[ImageFile], limits: ImagesConfig, threads: int | None) -> Iterator[Any]:
    confirmed = []
    with ThreadPoolExecutor(threads or available_cores(), "hash") as pool:
        for file, read in zip(files, pool.map(lambda file: hashed(file, limits), files), strict=True):
            if read is None:
                # What cannot be read fails where images are loaded, with its reason.
                yield TaggedOutput("unreadable", replace(file, claims=()))
                continue
            match next((claim for claim in file.claims if claim.sha256 == read.sha256), None):
                case None:
                    yield replace(read, claims=())
                case StoredImage() as image:
                    confirmed.append(image)
                case known:
                    yield TaggedOutput("failed", known.failure)
    if confirmed:
        yield TaggedOutput("confirmed", confirmed)


def _match_digests(joined: Joined) -> Iterator[Any]:
    """Files of the same bytes: copies of a stored or a bad image, or one to embed with others as duplicates.

    Of each digest little is held, for all files of a collection may have the same.
    """
    digests = {file.sha256 for file in left(joined)}
    twins: dict[str | None, _Stored] = {}
    tries: dict[str | None, int] = {}
    for twin in right(joined):
        digest = twin.sha256
        if digest not in digests:
            continue
        if isinstance(twin, KnownFailure) and not failures.is_final(twin):
            tries[digest] = max(twin.tries or 0, tries.get(digest, 0))
        else:
            # Any twin would do; the choice must not depend on the order in which they come.
            twins[digest] = min(twin, twins.get(digest, twin), key=_rank)
    same: dict[str | None, list[ImageFile]] = defaultdict(list)
    for file in left(joined):
        digest = file.sha256
        match twins.get(digest):
            case StoredImage() as image:
                yield TaggedOutput("copies", (file, image))
            case KnownFailure() as known:
                yield TaggedOutput("bad", replace(failures.known_as(known.failure, file), tries=known.tries))
            case None:
                same[digest].append(file)
                if len(same[digest]) == _MAX_COPIES:
                    yield _led(same.pop(digest), tries.get(digest, 0))
    for digest, files in same.items():
        yield _led(files, tries.get(digest, 0))


def _led(files: list[ImageFile], tries: int) -> ImageFile:
    leader, *duplicates = sorted(files, key=lambda file: file.uri)
    return replace(leader, duplicates=tuple(duplicates), tries=tries)


# Its types say the key's coder, which every runner knows.
def _by_chunk(copy: tuple[ImageFile, StoredImage]) -> tuple[str, tuple[ImageFile, StoredImage]]:
    return copy[1].chunk, copy


@beam.typehints.with_input_types(tuple[str, Any])
class _CopyRows(beam.DoFn):  # type: ignore[misc]
    """Has the store know files under their own names as it knows their twins, by the chunk of these."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def start_bundle(self) -> None:
        self._copier = store.RowCopier(self._directory)

    def process(self, element: tuple[str, Iterable[tuple[ImageFile, StoredImage]]]) -> Iterator[EmbeddedUnit]:
        return map(_copied_unit, self._copier.copy(*element))

    def finish_bundle(self) -> Iterator[Any]:
        for images in self._copier.flush():
            yield GlobalWindows.windowed_value(_copied_unit(images))


def _copied_unit(images: tuple[StoredImage, ...]) -> EmbeddedUnit:
    now = time.time()
    return EmbeddedUnit(images, failures=(), started=now, finished=now, engine_seconds=0.0)


def _remember(known: Sequence[KnownFailure], directory: str) -> Iterator[Failure]:
    """Has the store know files under their own names as it knows bad ones of the same bytes."""
    failures.write(directory, known)
    return (failed.failure for failed in known)
