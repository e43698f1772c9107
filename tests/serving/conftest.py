"""An index of a few photos, with an engine that takes no time, and a client of a service of it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_engine import factory_of, registered
from labeled_photos import write_photos
from served_index import build
from starlette.testclient import TestClient

from imgindex.serving.app import asgi_app


@pytest.fixture(scope="session", autouse=True)
def engine() -> Iterator[None]:
    # Until the process ends, beside what other tests register for a while.
    with registered("served", factory_of()):
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """A folder with ``photos``, the first of them twice, and an ``index``; nobody changes either."""
    folder = tmp_path_factory.mktemp("served")
    write_photos(folder / "photos", image_bytes)
    shutil.copy(folder / "photos/a/00.png", folder / "photos/b/copy of 00.png")
    build(folder)
    return folder


@pytest.fixture(scope="session")
def client(folder: Path) -> Iterator[TestClient]:
    """A client of a service with the limits that it has by itself."""
    with TestClient(asgi_app(folder / "index"), raise_server_exceptions=False) as client:
        yield client
