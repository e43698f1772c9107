"""What travels through the pipeline and between its runs."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

# Into how many parts a listing is cut where it meets the store: enough that a part of 10**10 images fits
# into a worker's memory, few enough that an element is a batch and not an image.
JOIN_BUCKETS = 4096


# Not with slots: it is pickled by the million, which for slots runs in Python.
@dataclass(frozen=True)
class ImageFile:
    """A listed image."""

    uri: str  # relative to the input root, /-separated: the record's key
    path: str  # where to open it
    size: int  # bytes
    version: str  # times or an etag, and the offset if any: changes when the content may have changed
    sha256: str | None = None  # where it had to be read before
    duplicates: tuple["ImageFile", ...] = ()  # files of the same bytes, which share its feature
    offset: int | None = None  # of its first byte, where it is a part of the file at `path`
    claims: tuple["StoredImage | KnownFailure", ...] = ()  # what the store says of it, where that is in doubt
    tries: int = 0  # builds in which its bytes have failed for want of something else


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be indexed, and why."""

    uri: str
    stage: str  # list, read, decode or embed
    reason: str  # a stable code
    message: str
    sha256: str | None = None  # of the bytes that failed, where they could be read


@dataclass(frozen=True)
class StoredImage:
    """Where the store holds the features of one version of an image."""

    uri: str
    size: int
    version: str
    sha256: str
    chunk: str
    row: int


class IndexedImage(NamedTuple):
    """Which version of an image a generation holds."""

    uri: str
    sha256: str


@dataclass(frozen=True)
class ImageRow:
    """An embedded image as a store chunk holds it, but for its feature."""

    uri: str
    size: int
    version: str
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class KnownFailure:
    """A failure of a version of an image, which its bytes decide or which may pass."""

    failure: Failure
    size: int
    version: str
    tries: int | None = None  # builds in which it has failed so; None where the bytes alone decide

    @property
    def uri(self) -> str:
        """The image's uri."""
        return self.failure.uri

    @property
    def sha256(self) -> str | None:
        """The digest of the bytes."""
        return self.failure.sha256


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of a generation: its path there, size in bytes and SHA-256."""

    path: str
    size: int
    sha256: str


def version_of_file(version: str) -> str:
    """The version of the file that holds an image of `version`: of a tar, where it is a member of one."""
    return version.rpartition("+")[0] or version


def bucket_of(uri: str, buckets: int) -> int:
    """Which of `buckets` `uri` falls into: a hash of the uri alone, the same everywhere."""
    return int.from_bytes(blake2b(uri.encode(), digest_size=8).digest()) % buckets
