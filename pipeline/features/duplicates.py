"""Files of the same bytes under several names: found by their size, told by their SHA-256."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from apache_beam.pvalue import TaggedOutput

from imgindex.config import ImagesConfig
from imgindex.features import feature_store, known_failures
from imgindex.features.diff import Stored, rank
from imgindex.features.join import Joined, left, right
from imgindex.inputs.image_reader import hashed
from imgindex.records import JOIN_BUCKETS, ImageFile, KnownFailure, StoredImage, bucket_of
from imgindex.runtime.resources import available_cores

# Files of the same bytes that share an embedding. For more of them it is embedded again, so that neither an
# element nor a chunk grows with their number.
_MAX_COPIES = feature_store.CHUNK_ROWS


def size_bucket(image: ImageFile | Stored) -> int:
    """The bucket of an image by its size."""
    return bucket_of(str(image.size), JOIN_BUCKETS)


def digest_bucket(image: ImageFile | Stored) -> int:
    """The bucket of an image by its SHA-256."""
    return bucket_of(str(image.sha256), JOIN_BUCKETS)


def find_suspects(joined: Joined) -> Iterator[Any]:
    """Files of a size that no other image has are fresh; the rest may be copies.

    Of what is joined only sizes are held: all images of a collection may have the same.
    """
    count_of = Counter(file.size for file in left(joined))
    partners = set()
    for image in right(joined):
        if image.size in count_of:
            partners.add(image.size)
            yield TaggedOutput("same_size", image)
    for file in left(joined):
        suspicious = count_of[file.size] > 1 or file.size in partners
        yield TaggedOutput("suspects", file) if suspicious else file


def hash_files(files: Sequence[ImageFile], limits: ImagesConfig, threads: int | None) -> Iterator[Any]:
    """Files with their SHA-256; tagged `confirmed` or `failed` where the store knows one by it."""
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


def match_digests(joined: Joined) -> Iterator[Any]:
    """Files of the same bytes: copies of a stored or a bad image, or one to embed with others as duplicates.

    Of each digest little is held, for all files of a collection may have the same.
    """
    digests = {file.sha256 for file in left(joined)}
    known_by_digest: dict[str | None, Stored] = {}
    tries: dict[str | None, int] = {}
    for known_file in right(joined):
        digest = known_file.sha256
        if digest not in digests:
            continue
        if isinstance(known_file, KnownFailure) and not known_failures.is_final(known_file):
            tries[digest] = max(known_file.tries or 0, tries.get(digest, 0))
        else:
            # Any of them would do; the choice must not depend on the order in which they come.
            known_by_digest[digest] = min(known_file, known_by_digest.get(digest, known_file), key=rank)
    same: dict[str | None, list[ImageFile]] = defaultdict(list)
    for file in left(joined):
        digest = file.sha256
        match known_by_digest.get(digest):
            case StoredImage() as image:
                yield TaggedOutput("copies", (file, image))
            case KnownFailure() as known:
                yield TaggedOutput(
                    "bad", replace(known_failures.known_as(known.failure, file), tries=known.tries)
                )
            case None:
                same[digest].append(file)
                if len(same[digest]) == _MAX_COPIES:
                    yield _with_duplicates(same.pop(digest), tries.get(digest, 0))
    for digest, files in same.items():
        yield _with_duplicates(files, tries.get(digest, 0))


def _with_duplicates(files: list[ImageFile], tries: int) -> ImageFile:
    first, *duplicates = sorted(files, key=lambda file: file.uri)
    return replace(first, duplicates=tuple(duplicates), tries=tries)
