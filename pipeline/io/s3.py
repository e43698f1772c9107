"""S3 as an object store."""

import contextlib
import errno
import logging
import uuid
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from imgindex.io.object_protocol import Found, Page, Versioned, replace_and_look, status_of

logger = logging.getLogger(__name__)


class S3:
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
            if status_of(error) == HTTPStatus.NOT_FOUND:
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
            if status_of(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
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
            return replace_and_look(self, path, data, version)
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        return self._put_if(bucket, key, data, condition)

    def _heeds_conditions(self, bucket: str, key: str) -> bool:
        """Whether the server knows conditional writes, as it shows where there is no file at `key`."""
        try:
            heeds = self._put_if(bucket, key, b"", {"IfMatch": '"0"'}) is None
        except self._client.exceptions.ClientError as error:
            if status_of(error) != HTTPStatus.NOT_IMPLEMENTED:
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
