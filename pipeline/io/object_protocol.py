"""What is asked of an object store, whichever it is, and what its clients' errors mean."""

import errno
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from imgindex.runtime.temporary_folder import TemporaryFolder

# Sorts behind whatever may follow a prefix, where text is ordered by its UTF-8 bytes or its characters.
LAST = "\U0010ffff"

# On a store without conditional writes a write must stand for so long before it counts: of two writers at
# once the later one has overwritten the other.
SETTLE_SECONDS = 1.0


class Found(NamedTuple):
    """A file of an object store."""

    path: str
    size: int  # bytes
    modified: float  # seconds since the epoch
    version: str  # another one when the file has been written again


class Page(NamedTuple):
    """A part of a listing, in the order of paths."""

    found: list[Found]
    more: bool  # whether there are others behind them


class Versioned(NamedTuple):
    """What a file holds, and in which version."""

    data: bytes
    version: str  # a write of other bytes makes it another


class ObjectStore(Protocol):
    """What is asked of an object store. Paths have their schemes; errors are the client's own."""

    def find(self, path: str) -> Found | None:
        """The file at `path`."""

    def page(self, prefix: str, after: str, limit: int | None = None) -> Page:
        """Files whose paths begin with `prefix` and sort behind `after`: the first ones, or all.

        At most `limit`, or as many as a request gives.
        """

    def read(self, path: str, start: int, size: int | None) -> bytes:
        """`size` bytes from `start`, or all; fewer at the end of the file."""

    def write(self, source: Path, path: str) -> None:
        """Makes `path` hold the bytes of a local file; it holds what it held before until it has them all."""

    def delete(self, paths: Sequence[str]) -> None:
        """Deletes files."""

    def read_versioned(self, path: str) -> Versioned | None:
        """All of a small file with its version; None where there is no file."""

    def replace(self, path: str, data: bytes, version: str | None) -> str | None:
        """Makes `path` hold `data` if it has `version` still; None stands for no file.

        Gives the new version, or None where the file has another version and stays as it is.
        """

    def abort_uploads(self, prefix: str, before: float, is_ours: Callable[[str], bool]) -> None:
        """Gives up the uploads in parts that began `before` and were never finished.

        Of those whose paths begin with `prefix` only the ones whose path `is_ours`.
        """


def replace_and_look(store: ObjectStore, path: str, data: bytes, version: str | None) -> str | None:
    """`ObjectStore.replace` for a store that overwrites whatever is there.

    Both of two writers succeed where both look first, and the later one writes more than `SETTLE_SECONDS`
    after the other.
    """
    found = store.read_versioned(path)
    if (found and found.version) != version:
        return None
    with TemporaryFolder() as folder:
        source = Path(folder) / "data"
        source.write_bytes(data)
        store.write(source, path)
    time.sleep(SETTLE_SECONDS)
    found = store.read_versioned(path)
    return found.version if found and found.data == data else None


def as_os_error(error: Exception) -> OSError:
    """What a client raised as the OSError of the same meaning.

    S3ClientError, GoogleAPICallError and BlobStorageError have an HTTP status as `code` or `status_code`,
    boto's ClientError in its response. Beam passes them on, alone or in the details of a BeamIOError.
    """
    if isinstance(error, ValueError):  # no installed filesystem has this scheme, or it is no path of it
        return OSError(errno.EINVAL, str(error))
    details = getattr(error, "exception_details", None) or {}
    for cause in (error, *details.values()):
        status = status_of(cause)
        if status is not None:
            message = f"{getattr(cause, 'message', cause)} (HTTP status {status:d})"
            return OSError(_errno_of(status), message)
    return OSError(errno.EIO, str(error))


def status_of(error: Any) -> int | None:
    """The HTTP status that a client's error carries; None where it carries none."""
    response = getattr(error, "response", None)
    answered = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    for status in (
        getattr(error, "code", None), getattr(error, "status_code", None), answered.get("HTTPStatusCode"),
    ):  # fmt: skip
        if isinstance(status, int):
            return status
    return None


def _errno_of(status: int) -> int:
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return errno.ENOENT
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return errno.EACCES
    # S3 answers with a conflict where another conditional write of the same key is under way.
    passes = status >= 500 or status in (
        HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS,
    )  # fmt: skip
    return errno.EIO if passes else errno.EINVAL
