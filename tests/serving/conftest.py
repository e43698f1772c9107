"""An index of a few photos, with an engine that takes no time, and a client of a service of it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_engine import factory_of, registered
from labeled_photos import write_photos
from starlette.testclient import TestClient

import imgindex
from imgindex.serving.app import asgi_app


def build(folder: Path) -> str:
    """Builds the index of ``photos`` in `folder`; gives the generation's name."""
    config = imgindex.Config(
        input=str(folder / "photos"),
        output=str(folder / "index"),
        backbone=imgindex.BackboneConfig(name="MobileNetV2", weights="none"),
        engine=imgindex.EngineConfig(name="quarters"),
        pca=imgindex.PcaConfig(dims=6),
        publish=imgindex.PublishConfig(min_recall=0.0),
    )
    return str(imgindex.build(config)["generation"])


@pytest.fixture(scope="session", autouse=True)
def quarters() -> Iterator[None]:
    with registered("quarters", factory_of()):
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
