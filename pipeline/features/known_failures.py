"""Failures that the store remembers beside the chunks.

What the bytes of an image alone decide is not tried again. What this machine's state has caused, as a decoder
that was killed, is tried again in later builds, but not for ever. The failures lie in Parquet files that, as
chunks do, appear whole or not at all and are named by the digest of their bytes. What depends on the config,
as on `images.max_pixels`, is never there.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from imgindex.config import ImagesConfig
from imgindex.io import content_addressed, parquet_tables
from imgindex.records import Failure, ImageFile, ImageRow, KnownFailure

_KIND = "failed"
_COLUMNS: parquet_tables.Columns = {
    "uri": pa.types.is_string,
    "size": pa.types.is_int64,
    "etag_or_mtime": pa.types.is_string,
    "sha256": pa.types.is_string,
    "stage": pa.types.is_string,
    "reason": pa.types.is_string,
    "message": pa.types.is_string,
    "tries": pa.types.is_int32,
}
# Null, or missing in a file, where the bytes alone decide.
_OPTIONAL = ("tries",)

# Builds that try an image whose decoder fails for want of something else. Perhaps it is the image after all.
MAX_TRIES = 3

_LASTING = frozenset({
    ("decode", "empty"), ("decode", "not_an_image"), ("decode", "truncated"), ("decode", "undecodable"),
    ("decode", "crashed"), ("decode", "timed_out"), ("decode", "out_of_memory"), ("embed", "no_direction"),
})  # fmt: skip
_ENVIRONMENTAL = frozenset({("decode", "killed"), ("decode", "stalled"), ("decode", "no_memory")})


def is_lasting(failure: Failure) -> bool:
    """Whether the same bytes will fail again."""
    return failure.sha256 is not None and (failure.stage, failure.reason) in _LASTING


def is_environmental(stage: str, reason: str) -> bool:
    """Whether a failure is the machine's, for all that is known, and not the image's."""
    return (stage, reason) in _ENVIRONMENTAL


def to_remember(failure: Failure, images: Iterable[ImageFile | ImageRow], tries: int) -> list[KnownFailure]:
    """What the store is to remember of `images`, whose bytes have failed after so many `tries` before."""
    if is_lasting(failure):
        return [known_as(failure, image) for image in images]
    if is_environmental(failure.stage, failure.reason):
        return [replace(known_as(failure, image), tries=tries + 1) for image in images]
    return []


def is_final(known: KnownFailure) -> bool:
    """Whether an image is not tried again."""
    return known.tries is None or known.tries >= MAX_TRIES


def fingerprint(failure: Failure) -> int:
    """A digest of what a failure says, but for its message. Sums of them are equal for equal failures."""
    parts = failure.uri, failure.stage, failure.reason, failure.sha256
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:16])


def write(directory: str, known: Sequence[KnownFailure]) -> None:
    """Remembers failures in the store at `directory`. Raises OutputError."""
    if not known:
        return
    # In one order, so that the same failures make the same file again.
    rows = sorted(map(_row, known), key=lambda row: (*row[:-1], row[-1] or 0))
    columns = dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    tries = pa.array(columns.pop("tries"), pa.int32())
    table = pa.table(columns)
    # Without the column the file is the one that earlier versions write.
    content_addressed.write(
        directory, table if tries.null_count == len(rows) else table.append_column("tries", tries), _KIND
    )


def _row(known: KnownFailure) -> tuple[Any, ...]:
    failure = known.failure
    what = failure.stage, failure.reason, failure.message
    return known.uri, known.size, known.version, known.sha256, *what, known.tries


def names(directory: str) -> list[str]:
    """The names of the files of failures in the store at `directory`. Raises OutputError."""
    return content_addressed.names(directory, _KIND)


def holds(name: str) -> bool:
    """Whether the file of the store of this name is one of failures."""
    return name.startswith(_KIND)


def read(directory: str, name: str, limits: ImagesConfig | None = None) -> Iterator[KnownFailure]:
    """The failures in a file, but for those that `limits` change.

    Those are images of too many bytes, which have another reason now, and cut ones where these are accepted.

    Raises what `content_addressed.read` does before the first.
    """
    table = content_addressed.read(directory, name, _COLUMNS, _OPTIONAL)
    if "tries" not in table.column_names:
        table = table.append_column("tries", pa.nulls(len(table), pa.int32()))
    columns = table.select(list(_COLUMNS)).to_pydict()
    for uri, size, version, sha256, stage, reason, message, tries in zip(*columns.values(), strict=True):
        is_accepted = limits is not None and limits.truncated == "accept" and reason == "truncated"
        if not is_accepted and (limits is None or size <= limits.max_bytes):
            yield KnownFailure(Failure(uri, stage, reason, message, sha256), size, version, tries)


def split(
    missing: Iterable[ImageFile], known: Iterable[KnownFailure]
) -> tuple[list[ImageFile], list[Failure]]:
    """Splits images that the store does not hold into those to try and the failures of those `known`."""
    by_key: dict[tuple[str, int, str], KnownFailure] = {}
    for failed in known:
        key = (failed.uri, failed.size, failed.version)
        by_key[key] = min(failed, by_key.get(key, failed), key=order)
    untried: list[ImageFile] = []
    failures: list[Failure] = []
    for file in missing:
        match = by_key.get((file.uri, file.size, file.version))
        if match is None:
            untried.append(file)
        else:
            failures.append(match.failure)
    return untried, failures


def known_as(failure: Failure, image: ImageFile | ImageRow) -> KnownFailure:
    """What is known of `image`, which has the bytes that failed."""
    return KnownFailure(replace(failure, uri=image.uri), image.size, image.version)


def order(failed: KnownFailure) -> tuple[str, ...]:
    """Sorts failures of the same bytes, of which the first is told."""
    return failed.uri, failed.version, failed.failure.reason, failed.failure.message
