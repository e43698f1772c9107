"""Builds from and to S3, as moto's server speaks it. `make test-integration` installs what they need."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from object_stores import ObjectStoreTests, built, local

pytestmark = pytest.mark.integration

__all__ = ["built", "local"]  # fixtures of all object stores

NO_SERVER = "needs the extra integration: make test-integration installs it"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The endpoint of a server of S3 in this process."""
    boto3 = pytest.importorskip("boto3", reason=NO_SERVER)
    moto = pytest.importorskip("moto.server", reason=NO_SERVER)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = moto.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    running.start()
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="photos")
        yield endpoint
    running.stop()


@pytest.fixture(scope="module")
def bucket(server: str) -> str:
    return "s3://photos"


class TestS3(ObjectStoreTests):
    def test_flags_of_beam_name_the_endpoint_and_credentials(
        self, built: Any, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from imgindex.cli import main

        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        flags = [f"--s3_endpoint_url={server}", "--s3_access_key_id=key", "--s3_secret_access_key=secret"]
        given = ["--set", "backbone.name=MobileNetV2", "--set", "backbone.weights=bundled"]
        given += ["--set", "backbone.image_size=32", "--set", "engine.precision=float32"]
        given += ["--input", built.input, "--output", built.output, "--set", "index.items_per_shard=10"]
        assert main(["build", *given, *flags, "--dry_run"]) == 0
        assert "0; 24 are in the store" in capsys.readouterr().out
        assert main(["build", *given, *flags]) == 0
        assert "nothing has changed" in capsys.readouterr().out

    def test_current_is_replaced_by_one_request(self, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from botocore.client import BaseClient

        from imgindex import storage

        asked = []
        call = BaseClient._make_api_call

        def record(client: Any, operation: str, arguments: Any) -> Any:
            asked.append((operation, arguments.get("Key")))
            return call(client, operation, arguments)

        monkeypatch.setattr(BaseClient, "_make_api_call", record)
        current = storage.read_bytes(f"{built.output}/CURRENT")
        asked.clear()
        storage.write_bytes(f"{built.output}/CURRENT", current)
        assert asked == [("PutObject", "out/index/CURRENT")]
