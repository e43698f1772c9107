"""Files that are not on the local filesystem, through whatever Beam has for their scheme.

Beam's filesystems for S3 and Google Cloud Storage make a client for every operation, need PipelineOptions,
and list all of a prefix or nothing. For these two the clients that Beam makes are kept and asked directly.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from imgindex.io.object_protocol import Found, ObjectStore, Page, Versioned, as_os_error, replace_and_look
from imgindex.io.s3 import S3

logger = logging.getLogger(__name__)

# Objects that Google Cloud Storage gives a request at most, but emulators do not keep to it.
_PAGE = 1000

# Requests that are under way at once where many objects are deleted.
_DELETIONS = 10


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
        raise as_os_error(error) from error


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


_KINDS: dict[str, Callable[[Any], ObjectStore]] = {"s3": S3, "gs": _Gcs}


def _literally(path: str) -> str:
    """The glob that matches `path` alone, as Beam reads globs."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)


class _BeamFiles:
    """Any other filesystem of Beam's."""

    def find(self, path: str) -> Found | None:
        return next(iter(self._match(_literally(path))), None)

    def page(self, prefix: str, after: str, limit: int | None = None) -> Page:
        matched = self._match(f"{_literally(prefix)}**")
        return Page(sorted(found for found in matched if found.path > after), False)

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
        return replace_and_look(self, path, data, version)

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
