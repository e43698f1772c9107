"""Failures that the bytes of an image alone decide: remembered beside the chunks, and not tried again.

They lie in Parquet files that, as chunks do, appear whole or not at all and are named by the digest of
their bytes. What depends on the config, as on `images.max_pixels`, and what may pass is never there.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from imgindex import chunks, tables
from imgindex.config import ImagesConfig
from imgindex.records import Failure, ImageFile, ImageRow, KnownFailure

_KIND = "failed"
_COLUMNS: tables.Columns = {
    "uri": pa.types.is_string,
    "size": pa.types.is_int64,
    "etag_or_mtime": pa.types.is_string,
    "sha256": pa.types.is_string,
    "stage": pa.types.is_string,
    "reason": pa.types.is_string,
    "message": pa.types.is_string,
}

_LASTING = frozenset({
    ("decode", "empty"), ("decode", "not_an_image"), ("decode", "truncated"), ("decode", "undecodable"),
    ("decode", "crashed"), ("decode", "timed_out"), ("decode", "out_of_memory"), ("embed", "no_direction"),
})  # fmt: skip


def is_lasting(failure: Failure) -> bool:
    """Whether the same bytes will fail again."""
    return failure.sha256 is not None and (failure.stage, failure.reason) in _LASTING


def fingerprint(failure: Failure) -> int:
    """A digest of what a failure says, but for its message. Sums of them are equal for equal failures."""
    parts = failure.uri, failure.stage, failure.reason, failure.sha256
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:16])


def write(directory: str, known: Sequence[KnownFailure]) -> None:
    """Remembers failures in the store at `directory`. Raises OutputError."""
    if not known:
        return
    # In one order, so that the same failures make the same file again.
    rows = sorted(
        (f.uri, f.size, f.version, f.failure.sha256, f.failure.stage, f.failure.reason, f.failure.message)
        for f in known
    )
    columns = [list(column) for column in zip(*rows, strict=True)]
    chunks.write(directory, pa.table(columns, list(_COLUMNS)), _KIND)


def names(directory: str) -> list[str]:
    """The names of the files of failures in the store at `directory`. Raises OutputError."""
    return chunks.names(directory, _KIND)


def holds(name: str) -> bool:
    """Whether the file of the store of this name is one of failures."""
    return name.startswith(_KIND)


def read(directory: str, name: str, limits: ImagesConfig | None = None) -> Iterator[KnownFailure]:
    """The failures in a file, but for those of images beyond `limits`, which have another reason now.

    Raises DamagedError before the first.
    """
    columns = chunks.read(directory, name, _COLUMNS).select(list(_COLUMNS)).to_pydict()
    for uri, size, version, sha256, stage, reason, message in zip(*columns.values(), strict=True):
        if limits is None or size <= limits.max_bytes:
            yield KnownFailure(Failure(uri, stage, reason, message, sha256), size, version)


def split(
    missing: Iterable[ImageFile], known: Iterable[KnownFailure]
) -> tuple[list[ImageFile], list[Failure]]:
    """Splits images that the store does not hold into those to try and the failures of those `known`."""
    by_key: dict[tuple[str, int, str], KnownFailure] = {}
    for failed in known:
        key = (failed.uri, failed.size, failed.version)
        by_key[key] = min(failed, by_key.get(key, failed), key=_order)
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


def first(known: Iterable[KnownFailure]) -> KnownFailure | None:
    """The one of several failures of the same bytes that is told, in whatever order they come."""
    return min(known, key=_order, default=None)


def _order(failed: KnownFailure) -> tuple[str, ...]:
    return failed.uri, failed.version, failed.failure.reason, failed.failure.message
