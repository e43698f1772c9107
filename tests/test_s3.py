"""Builds from and to S3, as moto's server speaks it. `make test-integration` installs what they need."""

from typing import Any

import pytest
from object_stores import ObjectStoreTests, built, local, s3_server

pytestmark = pytest.mark.integration

__all__ = ["built", "local", "s3_server"]  # fixtures of all object stores


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> str:
    return "s3://photos"


class TestS3(ObjectStoreTests):
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
