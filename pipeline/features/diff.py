"""What has changed: a listing against the store, by the names of files."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from apache_beam.pvalue import TaggedOutput

from imgindex.config import ImagesConfig
from imgindex.errors import DamagedError, MismatchError
from imgindex.features import feature_store, known_failures
from imgindex.features.join import Joined, in_elements, left, right
from imgindex.io import content_addressed
from imgindex.records import Failure, ImageFile, KnownFailure, StoredImage

logger = logging.getLogger(__name__)


# What the store knows of a version of an image.
Stored = StoredImage | KnownFailure


def file_names(directory: str, retry_failed: bool) -> list[str]:
    """The names of the files of the store at `directory`: those of failures only without `retry_failed`."""
    return content_addressed.names(directory) + ([] if retry_failed else known_failures.names(directory))


def read_keys(name: str, directory: str, feature_dim: int | None, limits: ImagesConfig) -> Iterator[Any]:
    """What of a file of the store is within `limits`, which may have been others when it was written."""
    try:
        if known_failures.holds(name):
            yield from known_failures.read(directory, name, limits)
        else:
            yield from feature_store.read_keys(directory, name, feature_dim, limits)
    except DamagedError as error:
        logger.warning("%s: what it held is tried again", error)
        if isinstance(error, MismatchError):
            # It can never become right again, for its name says what it should hold.
            content_addressed.drop(directory, name)
        if not known_failures.holds(name):
            yield TaggedOutput("damaged", name)


def _images_and_failures(stored: Iterable[Stored]) -> tuple[list[StoredImage], list[KnownFailure]]:
    images: list[StoredImage] = []
    known: list[KnownFailure] = []
    for one in stored:
        if isinstance(one, KnownFailure):
            known.append(one)
        else:
            images.append(one)
    return images, known


def diff_bucket(joined: Joined, rehash: bool) -> Iterator[Any]:
    """A bucket's files that the store does not hold; others, tagged, as `found` or `failed`."""
    files, repeated = each_uri_once(left(joined))
    images, known = _images_and_failures(right(joined))
    known = [failed for failed in known if known_failures.is_final(failed)]
    certain, doubtful = _doubtful(files, [*images, *known], rehash)
    missing, found = feature_store.diff(certain, images)
    untried, failed = known_failures.split(missing, known)
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
    files: Iterable[ImageFile], stored: Iterable[Stored], rehash: bool
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Splits files by whether what the store says of them must be compared with their bytes.

    It is that the store says two things of one version, as after an edit that no time and no etag tells.
    """
    by_key: dict[tuple[str, int, str], dict[str | None, Stored]] = defaultdict(dict)
    for one in stored:
        said = by_key[one.uri, one.size, one.version]
        said[one.sha256] = min(one, said.get(one.sha256, one), key=rank)
    certain, doubtful = [], []
    for file in files:
        said = by_key.get((file.uri, file.size, file.version), {})
        if len(said) > 1 or (said and rehash):
            doubtful.append(replace(file, claims=tuple(said.values())))
        else:
            certain.append(file)
    return certain, doubtful


def rank(stored: Stored) -> tuple[Any, ...]:
    """Sorts what the store says of the same bytes: features before failures, and then in one order."""
    if isinstance(stored, StoredImage):
        return 0, stored.chunk, stored.row
    return 1, *known_failures.order(stored)
