"""Builds from and to Google Cloud Storage, as fake-gcs-server speaks it.

`make test-integration` builds that server, where Go is installed, and installs the extra that they need.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_stores import ObjectStoreTests, built, local

pytestmark = pytest.mark.integration

__all__ = ["built", "local"]  # fixtures of all object stores

NO_EXTRA = "needs the extra gcp: make test-integration installs it"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a server of Google Cloud Storage, a process of its own."""
    pytest.importorskip(
        "google.cloud.storage", reason="needs the extra gcp: make test-integration installs it"
    )
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("fake-gcs-server", path=here)
    if program is None:
        pytest.skip("needs fake-gcs-server, which make test-integration builds where Go is installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [program, "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-external-url={endpoint}"]
    log = tmp_path_factory.mktemp("gcs") / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen([*command, "-backend=memory"], stdout=file, stderr=file) as process,
    ):
        try:
            _create_bucket(endpoint, log)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
                yield endpoint
        finally:
            process.kill()


def _create_bucket(endpoint: str, log: Path) -> None:
    request = urllib.request.Request(
        f"{endpoint}/storage/v1/b?project=test", b'{"name": "photos"}', {"Content-Type": "application/json"}
    )
    for _ in range(300):
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except urllib.error.URLError:  # it has not started yet
            time.sleep(0.1)
    raise RuntimeError(f"fake-gcs-server does not start: {log.read_text()}")


@pytest.fixture(scope="module")
def bucket(server: str) -> str:
    return "gs://photos"


class TestGcs(ObjectStoreTests):
    def put_packed(self, path: str, data: bytes) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        bucket, _, name = path.removeprefix("gs://").partition("/")
        blob = Client("test", AnonymousCredentials()).bucket(bucket).blob(name)
        blob.content_encoding = "gzip"
        blob.upload_from_string(data, "image/jpeg")
