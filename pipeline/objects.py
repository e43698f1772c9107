"""Files that are not on the local filesystem, through whatever Beam has for their scheme.

Beam's filesystems for S3 and Google Cloud Storage make a client for every operation, need PipelineOptions,
and list all of a prefix or nothing. For these two the clients that Beam makes are kept and asked directly.
"""

import contextlib
import errno
import hashlib
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple, Protocol

logger = logging.getLogger(__name__)

# Sorts behind whatever may follow a prefix, where text is ordered by its UTF-8 bytes or its characters.
LAST = "\U0010ffff"

# Objects that Google Cloud Storage gives a request at most, but emulators do not keep to it.
_PAGE = 1000

# Requests that are under way at once where many objects are deleted.
_DELETIONS = 10

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


@contextlib.contextmanager
def object_store(path: str) -> Iterator[ObjectStore]:
    """Yields the store in which `path` lies; what is raised in the block is an OSError."""
    try:
        yield _store_of(path)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _as_os_error(error) from error


# The stores, with the options that they were made of: boto3's client serves all threads, Google's only one.
_KEPT: dict[str, Any] = {"s3": SimpleNamespace(), "gs": threading.local()}


def _store_of(path: str) -> ObjectStore:
    scheme = path.partition("://")[0]
    if scheme not in _KINDS:
        return _BeamFiles()
    options = _pipeline_options()
    made_of, store = getattr(_KEPT[scheme], "store", (None, None))
    if store is None or made_of is not options:
        try:
            store = _KINDS[scheme](options)
        except ImportError as error:
            extra = "aws" if scheme == "s3" else "gcp"
            message = f"{scheme}:// needs the extra {extra}: pip install 'imgindex[{extra}]'"
            raise OSError(errno.ENOTSUP, message) from error
        _KEPT[scheme].store = options, store
    return store


def _pipeline_options() -> Any:
    """The options that Beam's filesystems have; where no pipeline has set them, Beam's defaults."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.options.value_provider import RuntimeValueProvider

    options = FileSystems._pipeline_options or RuntimeValueProvider.runtime_options
    if options is None:
        options = PipelineOptions([])
        FileSystems.set_options(options)
    return options


class _S3:
    """S3 by boto3's client, which Beam makes of its S3Options; what they leave open boto3 looks for."""

    def __init__(self, options: Any) -> None:
        import boto3  # noqa: F401 - Beam's client asserts that it is there
        from apache_beam.io.aws.s3io import S3IO, parse_s3_path

        self._client = S3IO(options=options).client.client
        self._split: Callable[..., tuple[str, str]] = parse_s3_path
        self._is_conditional: dict[str, bool] = {}  # by bucket: whether its server heeds If-Match

    def find(self, path: str) -> Found | None:
        bucket, key = self._split(path)
        try:
            head = self._client.head_object(Bucket=bucket, Key=key)
        except self._client.exceptions.ClientError as error:
            if _status_of(error) == HTTPStatus.NOT_FOUND:
                return None
            raise
        return self._found(path, head["ContentLength"], head)

    def page(self, prefix: str, after: str, limit: int | None = None) -> Page:
        bucket, key = self._split(prefix, object_optional=True)
        options: dict[str, Any] = {} if limit is None else {"MaxKeys": limit}
        if after:
            options["StartAfter"] = self._split(after, object_optional=True)[1]
        listed = self._client.list_objects_v2(Bucket=bucket, Prefix=key, **options)
        found = [
            self._found(f"s3://{bucket}/{item['Key']}", item["Size"], item)
            for item in listed.get("Contents", ())
        ]
        return Page(found, listed["IsTruncated"])

    def read(self, path: str, start: int, size: int | None) -> bytes:
        if size == 0:
            return b""
        bucket, key = self._split(path)
        whole = start == 0 and size is None
        options = {} if whole else {"Range": f"bytes={start}-{'' if size is None else start + size - 1}"}
        try:
            data: bytes = self._client.get_object(Bucket=bucket, Key=key, **options)["Body"].read()
        except self._client.exceptions.ClientError as error:
            if _status_of(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            raise
        return data

    def write(self, source: Path, path: str) -> None:
        bucket, key = self._split(path)
        # One request for a small file; parts, which are given up together, for a large one.
        with source.open("rb") as file:
            self._client.upload_fileobj(file, bucket, key)

    def delete(self, paths: Sequence[str]) -> None:
        keys: dict[str, list[str]] = {}
        for bucket, key in map(self._split, paths):
            keys.setdefault(bucket, []).append(key)
        for bucket, all_keys in keys.items():
            for start in range(0, len(all_keys), 1000):
                objects = [{"Key": key} for key in all_keys[start : start + 1000]]
                answer = self._client.delete_objects(
                    Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
                )
                for error in answer.get("Errors", ()):
                    denied = error["Code"] == "AccessDenied"
                    message = f"{error['Key']}: {error['Code']}: {error['Message']}"
                    raise OSError(errno.EACCES if denied else errno.EIO, message)

    def read_versioned(self, path: str) -> Versioned | None:
        bucket, key = self._split(path)
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key)
        except self._client.exceptions.NoSuchKey:
            return None
        return Versioned(answer["Body"].read(), answer["ETag"])

    def replace(self, path: str, data: bytes, version: str | None) -> str | None:
        bucket, key = self._split(path)
        if bucket not in self._is_conditional:
            self._is_conditional[bucket] = self._heeds_conditions(bucket, f"{key}.{uuid.uuid4().hex}")
        if not self._is_conditional[bucket]:
            return _replace_and_look(self, path, data, version)
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        return self._put_if(bucket, key, data, condition)

    def _heeds_conditions(self, bucket: str, key: str) -> bool:
        """Whether the server knows conditional writes, as it shows where there is no file at `key`."""
        try:
            heeds = self._put_if(bucket, key, b"", {"IfMatch": '"0"'}) is None
        except self._client.exceptions.ClientError as error:
            if _status_of(error) != HTTPStatus.NOT_IMPLEMENTED:
                raise
            heeds = False
        else:
            if not heeds:
                self._client.delete_object(Bucket=bucket, Key=key)
        if not heeds:
            logger.warning(
                "the server of s3://%s has no conditional writes: of two builds that start at once both may "
                "write", bucket,
            )  # fmt: skip
        return heeds

    def _put_if(self, bucket: str, key: str, data: bytes, condition: dict[str, str]) -> str | None:
        """Writes a file under a condition and gives its ETag; None where the condition does not hold."""
        try:
            answer = self._client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except self._client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "NoSuchKey"):
                return None
            raise
        etag: str = answer["ETag"]
        return etag

    def abort_uploads(self, prefix: str, before: float, is_ours: Callable[[str], bool]) -> None:
        bucket, start = self._split(prefix, object_optional=True)
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=start)
        for upload in (upload for page in pages for upload in page.get("Uploads", ())):
            key = upload["Key"]
            if upload["Initiated"].timestamp() < before and is_ours(f"s3://{bucket}/{key}"):
                with contextlib.suppress(self._client.exceptions.NoSuchUpload):  # it has just ended
                    self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload["UploadId"])

    def _found(self, path: str, size: int, described: Any) -> Found:
        # Times are of whole seconds. The etag alone would take an object for unchanged that was another one
        # when it was read and then came back.
        modified, etag = described["LastModified"].timestamp(), described.get("ETag", "").strip('"')
        return Found(path, size, modified, f"{int(modified)}-{etag}")


class _Gcs:
    """Google Cloud Storage by Google's client, which Beam makes of its GoogleCloudOptions."""

    def __init__(self, options: Any) -> None:
        from apache_beam.io.gcp.gcsio import GcsIO, create_storage_client, parse_gcs_path

        # An emulator wants no credentials, which Beam would look for in vain for half a minute.
        emulated = bool(os.environ.get("STORAGE_EMULATOR_HOST"))
        client = create_storage_client(options, use_credentials=not emulated)
        self._client = client
        self._retry = GcsIO(storage_client=client, pipeline_options=options)._storage_client_retry
        self._split: Callable[..., tuple[str, str]] = parse_gcs_path

    def find(self, path: str) -> Found | None:
        bucket, name = self._split(path)
        blob = self._client.bucket(bucket).get_blob(name, retry=self._retry)
        return None if blob is None else self._found(blob)

    def page(self, prefix: str, after: str, limit: int | None = None) -> Page:
        bucket, name = self._split(prefix, object_optional=True)
        limit = limit or _PAGE
        blobs = self._client.list_blobs(
            bucket,
            max_results=limit + 1,
            prefix=name,
            # What is there itself is given, too.
            start_offset=self._split(after, object_optional=True)[1] if after else None,
            fields="items(name,size,updated,generation,bucket),nextPageToken",
            retry=self._retry,
        )
        found = [self._found(blob) for blob in next(blobs.pages, ())]
        more = blobs.next_page_token is not None or len(found) > limit
        return Page([file for file in found if file.path != after][:limit], more)

    def read(self, path: str, start: int, size: int | None) -> bytes:
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        if size == 0:
            return b""
        bucket, name = self._split(path)
        blob = self._client.bucket(bucket).blob(name)
        whole = start == 0 and size is None
        options: dict[str, Any] = (
            {} if whole else {"start": start, "end": None if size is None else start + size - 1}
        )
        try:
            data: bytes = blob.download_as_bytes(raw_download=True, retry=self._retry, **options)
        except RequestRangeNotSatisfiable:
            return b""
        return data

    def write(self, source: Path, path: str) -> None:
        bucket, name = self._split(path)
        blob = self._client.bucket(bucket).blob(name)
        blob.upload_from_filename(str(source), content_type="application/octet-stream", retry=self._retry)

    def delete(self, paths: Sequence[str]) -> None:
        # One by one, and not in Google's batches, which emulators do not know.
        if len(paths) == 1:
            self._delete(paths[0])
            return
        with ThreadPoolExecutor(_DELETIONS, "delete") as pool:
            list(pool.map(_delete_from_gcs, paths))

    def _delete(self, path: str) -> None:
        from google.api_core.exceptions import NotFound

        bucket, name = self._split(path)
        with contextlib.suppress(NotFound):
            self._client.bucket(bucket).delete_blob(name, retry=self._retry)

    def read_versioned(self, path: str) -> Versioned | None:
        from google.api_core.exceptions import NotFound

        bucket, name = self._split(path)
        blob = self._client.bucket(bucket).blob(name)
        try:
            data: bytes = blob.download_as_bytes(raw_download=True, retry=self._retry)
        except NotFound:
            return None
        return Versioned(data, str(blob.generation))  # of the same answer

    def replace(self, path: str, data: bytes, version: str | None) -> str | None:
        from google.api_core.exceptions import PreconditionFailed

        bucket, name = self._split(path)
        blob = self._client.bucket(bucket).blob(name)
        try:
            blob.upload_from_string(
                data, "application/octet-stream", if_generation_match=int(version or 0), retry=self._retry
            )
        except PreconditionFailed:
            return None
        return str(blob.generation)

    def abort_uploads(self, prefix: str, before: float, is_ours: Callable[[str], bool]) -> None:
        # Google keeps those for a week and charges nothing.
        pass

    def _found(self, blob: Any) -> Found:
        path = f"gs://{blob.bucket.name}/{blob.name}"
        # Unlike its generation, the time changes with an object's labels and storage class.
        return Found(path, blob.size, blob.updated.timestamp(), str(blob.generation))


def _delete_from_gcs(path: str) -> None:
    _store_of(path).delete([path])  # by the client of this thread


_KINDS: dict[str, Callable[[Any], ObjectStore]] = {"s3": _S3, "gs": _Gcs}


class _BeamFiles:
    """Any other filesystem of Beam's."""

    def find(self, path: str) -> Found | None:
        return next(iter(self._match(path)), None)

    def page(self, prefix: str, after: str, limit: int | None = None) -> Page:
        return Page(sorted(found for found in self._match(f"{prefix}**") if found.path > after), False)

    def read(self, path: str, start: int, size: int | None) -> bytes:
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            if start:
                file.seek(start)
            data: bytes = file.read(-1 if size is None else size)
            return data

    def write(self, source: Path, path: str) -> None:
        with source.open("rb") as reader:
            self._create(path, reader)

    def _create(self, path: str, reader: BinaryIO) -> None:
        import shutil

        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        # Object stores show an object only once its writer is closed.
        with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)

    def delete(self, paths: Sequence[str]) -> None:
        from apache_beam.io.filesystems import FileSystems

        FileSystems.delete(list(paths))

    def read_versioned(self, path: str) -> Versioned | None:
        if self.find(path) is None:
            return None
        data = self.read(path, 0, None)
        return Versioned(data, hashlib.sha256(data).hexdigest())

    def replace(self, path: str, data: bytes, version: str | None) -> str | None:
        return _replace_and_look(self, path, data, version)

    def abort_uploads(self, prefix: str, before: float, is_ours: Callable[[str], bool]) -> None:
        # Beam's filesystems have no word for them.
        pass

    def _match(self, pattern: str) -> list[Found]:
        from apache_beam.io.filesystems import FileSystems

        matched = FileSystems.match([pattern])[0].metadata_list
        return [
            Found(
                file.path,
                file.size_in_bytes,
                file.last_updated_in_seconds,
                f"{file.last_updated_in_seconds:.6f}",
            )
            for file in matched
        ]


def _replace_and_look(store: ObjectStore, path: str, data: bytes, version: str | None) -> str | None:
    """`ObjectStore.replace` for a store that overwrites whatever is there.

    Both of two writers succeed where both look first, and the later one writes more than `SETTLE_SECONDS`
    after the other.
    """
    found = store.read_versioned(path)
    if (found and found.version) != version:
        return None
    with tempfile.TemporaryDirectory(prefix="imgindex-") as folder:
        source = Path(folder) / "data"
        source.write_bytes(data)
        store.write(source, path)
    time.sleep(SETTLE_SECONDS)
    found = store.read_versioned(path)
    return found.version if found and found.data == data else None


def _as_os_error(error: Exception) -> OSError:
    """What a client raised as the OSError of the same meaning.

    S3ClientError, GoogleAPICallError and BlobStorageError have an HTTP status as `code` or `status_code`,
    boto's ClientError in its response. Beam passes them on, alone or in the details of a BeamIOError.
    """
    if isinstance(error, ValueError):  # no installed filesystem has this scheme, or it is no path of it
        return OSError(errno.EINVAL, str(error))
    details = getattr(error, "exception_details", None) or {}
    for cause in (error, *details.values()):
        status = _status_of(cause)
        if status is not None:
            message = f"{getattr(cause, 'message', cause)} (HTTP status {status:d})"
            return OSError(_errno_of(status), message)
    return OSError(errno.EIO, str(error))


def _status_of(error: Any) -> int | None:
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
