"""Shared fixtures: small images, and a filesystem that Beam knows and that is not the local one."""

import errno
import gc
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem
from hypothesis import settings
from PIL import Image
from quick_beam import remember
from quick_reports import spare, want

from imgindex.commands.sample_images import write_samples

# No test asserts a time, and hypothesis would: a busy machine is no failure.
settings.register_profile("imgindex", deadline=None)
settings.load_profile("imgindex")

# Converted backbones go to a folder of this run, for all tests, workers of xdist and processes they start.
if "IMGINDEX_TEST_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="imgindex-test-cache-")
    os.environ["IMGINDEX_TEST_CACHE"] = _cache.name
os.environ["XDG_CACHE_HOME"] = os.environ["IMGINDEX_TEST_CACHE"]

remember()
spare()


def pytest_collection_finish() -> None:
    """Has the garbage collector pass over the half million objects of the libraries each time."""
    gc.collect()
    gc.freeze()


class MemoryFileSystem(FileSystem):
    """An object store in this process: no directories, and a file appears when its writer is closed.

    Nothing can be written below ``mem://readonly``. Like that of S3 it raises FileNotFoundError.
    """

    files: ClassVar[dict[str, tuple[bytes, float]]] = {}

    @classmethod
    def scheme(cls) -> str:
        return "mem"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        pass

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path in list(self.files):
            if path.startswith(dir_or_prefix):
                yield self.metadata(path)

    def create(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> io.BytesIO:
        if path.startswith("mem://readonly"):
            raise PermissionError(errno.EACCES, "read-only", path)
        files = self.files

        class Writer(io.BytesIO):
            def close(self) -> None:
                if not self.closed:
                    files[path] = self.getvalue(), float(len(files))
                super().close()

        return Writer()

    def open(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> io.BytesIO:
        return io.BytesIO(self._get(path)[0])

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            self.files[destination] = self._get(source)

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        self.copy(source_file_names, destination_file_names)
        self.delete(source_file_names)

    def exists(self, path: str) -> bool:
        return path in self.files

    def size(self, path: str) -> int:
        return len(self._get(path)[0])

    def last_updated(self, path: str) -> float:
        return self._get(path)[1]

    def checksum(self, path: str) -> str:
        return str(self.size(path))

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, self.size(path), self.last_updated(path))

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            self._get(path)
            del self.files[path]

    def _get(self, path: str) -> tuple[bytes, float]:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "Not found", path)
        return self.files[path]


@pytest.fixture
def forbid_listing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has folders of a name that cannot be listed. Root, as which tests may run, lists every one."""

    def forbid(name: str) -> None:
        scandir = os.scandir

        def refuse(path: str) -> object:
            if str(path).endswith(name):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)

    return forbid


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[bytes, float]]]:
    """The files of ``mem://``, by path: their bytes and modification time; none at first."""
    monkeypatch.setattr("imgindex.io.object_protocol.SETTLE_SECONDS", 0)  # nobody else writes there
    MemoryFileSystem.files.clear()
    yield MemoryFileSystem.files
    MemoryFileSystem.files.clear()


@pytest.fixture(params=["local", "mem"])
def place(request: pytest.FixtureRequest, tmp_path: Any, memory: Any) -> str:
    """An empty directory: a local one, and one of a filesystem that only Beam knows."""
    return str(tmp_path / "place") if request.param == "local" else "mem://bucket/place"


@pytest.fixture(scope="module")
def reports() -> Iterator[None]:
    """Has builds write their report, which the tests are otherwise spared."""
    want(True)
    yield
    want(False)


@pytest.fixture(scope="session")
def sample_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the 312 samples, which nobody changes: they take ten seconds to draw."""
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    return folder


@pytest.fixture(scope="session")
def image_bytes() -> Callable[..., bytes]:
    """Encodes an image of noise around one color, both drawn by `seed`."""

    def encode(seed: int, size: tuple[int, int] = (20, 16), kind: str = "PNG") -> bytes:
        generator = np.random.default_rng(seed)
        pixels = generator.integers(0, 60, (size[1], size[0], 3)) + generator.integers(0, 190, 3)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
        return file.getvalue()

    return encode
