"""Builds from and to S3, as moto's server speaks it. `make test-integration` installs what they need."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from object_stores import ObjectStoreTests, built, local, s3_server

from imgindex.io import filesystem, object_stores, output_lock

pytestmark = pytest.mark.integration

__all__ = ["built", "local", "s3_server"]  # fixtures of all object stores


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> str:
    return "s3://photos"


class TestS3(ObjectStoreTests):
    def put_packed(self, path: str, data: bytes) -> None:
        import boto3

        bucket, _, key = path.removeprefix("s3://").partition("/")
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data, ContentEncoding="gzip")

    def test_flags_of_beam_name_the_endpoint_and_credentials(
        self, built: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from imgindex.cli import main

        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        flags = [f"--s3_endpoint_url={s3_server}", "--s3_access_key_id=key", "--s3_secret_access_key=secret"]
        given = ["--set", "backbone.name=MobileNetV2", "--set", "backbone.weights=bundled"]
        given += ["--set", "backbone.image_size=32", "--set", "engine.precision=float32"]
        given += ["--input", built.input, "--output", built.output, "--set", "index.items_per_shard=10"]
        assert main(["build", *given, *flags, "--dry_run"]) == 0
        assert "0; 24 are in the store" in capsys.readouterr().out
        assert main(["build", *given, *flags]) == 0
        assert "nothing has changed" in capsys.readouterr().out

    def test_current_is_replaced_by_one_request(self, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from botocore.client import BaseClient

        asked = []
        call = BaseClient._make_api_call

        def record(client: Any, operation: str, arguments: Any) -> Any:
            asked.append((operation, arguments.get("Key")))
            return call(client, operation, arguments)

        monkeypatch.setattr(BaseClient, "_make_api_call", record)
        current = filesystem.read_bytes(f"{built.output}/CURRENT")
        asked.clear()
        filesystem.write_bytes(f"{built.output}/CURRENT", current)
        assert asked == [("PutObject", "out/index/CURRENT")]

    def test_uploads_that_killed_builds_left_are_aborted_and_no_others(self, bucket: str) -> None:
        import boto3

        from imgindex.generations.layout import Output, delete_unfinished

        client = boto3.client("s3")

        def unfinished() -> list[str]:
            listed = client.list_multipart_uploads(Bucket="photos").get("Uploads", ())
            return sorted(upload["Key"] for upload in listed)

        spec, name = "store/0123", "generations/20260101T000000Z-01234567"
        ours = [f"{spec}/chunk-{'0' * 32}.parquet", f"{name}/index/index-00000-of-00001.ann"]
        theirs = [f"{spec}/backup.tar", f"{name}/notes.txt", "video.mp4", "generations/x/index/index.ann"]
        for key in ours + theirs:
            client.create_multipart_upload(Bucket="photos", Key=f"out/aborted/{key}")
        client.create_multipart_upload(Bucket="photos", Key=f"out/other/{ours[0]}")
        before = unfinished()
        # moto's uploads all began in November 2010.
        delete_unfinished(Output(f"{bucket}/out/aborted"), 1.2e9)
        assert unfinished() == before
        delete_unfinished(Output(f"{bucket}/out/aborted"), time.time())
        assert unfinished() == [key for key in before if key.removeprefix("out/aborted/") not in ours]

    def test_a_server_without_conditional_writes_is_noticed(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from moto.s3.responses import S3Response

        put_object = S3Response.put_object

        def put(response: Any) -> Any:
            response.headers = {
                name: value for name, value in response.headers.items() if not name.startswith("If-")
            }
            return put_object(response)

        monkeypatch.setattr(S3Response, "put_object", put)
        monkeypatch.setitem(object_stores._KEPT, "s3", SimpleNamespace())
        with output_lock.writer_lock(f"{bucket}/out/unconditional"):
            names = [found.path for found in filesystem.each_object(f"{bucket}/out/unconditional")]
        assert names == [f"{bucket}/out/unconditional/.lock"]
        assert "the server of s3://photos has no conditional writes" in caplog.text
        path = f"{bucket}/out/unconditional/.lock"
        assert filesystem.replace_version(path, b"other", None) is None
