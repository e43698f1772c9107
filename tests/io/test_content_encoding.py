"""Objects with ``Content-Encoding: gzip``, which a store gives packed: read as if they were not."""

import gzip
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import imgindex
from imgindex.config import ImagesConfig
from imgindex.inputs.image_reader import hashed, load_image
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.inputs.tar_members import read_image
from imgindex.io import filesystem
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import decode
from imgindex.models.resizing import Resizing
from imgindex.records import Failure, ImageFile
from imgindex.search.queries import Recipe, load
from imgindex.search.results import QueryError

LIMITS = ImagesConfig(max_bytes=10_000)
RECIPE = Recipe(Resizing((8, 8)), "srgb", LIMITS.max_bytes)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    process = DecoderProcess()
    yield process
    process.close()


def stored(data: bytes, path: str = "mem://bucket/photo.jpg") -> ImageFile:
    """An object of these bytes, as a listing tells of it."""
    filesystem.write_bytes(path, data)
    (file,) = list_images(path.rpartition("/")[0], Selection((".jpg",)))
    assert isinstance(file, ImageFile)
    return file


def test_a_packed_image_is_the_image(
    memory: Any, image_bytes: Callable[..., bytes], decoder: DecoderProcess
) -> None:
    data = image_bytes(1)
    plain = load_image(stored(data), RECIPE.resizing, LIMITS, decoder)
    file = stored(gzip.compress(data))
    (row,), pixels = load_image(file, RECIPE.resizing, LIMITS, decoder)  # type: ignore[misc]
    assert not isinstance(plain, Failure)
    # Its size and version are the object's, by which the next build knows it; its SHA-256 is the image's.
    assert (row.size, row.sha256) == (file.size, hashlib.sha256(data).hexdigest())
    assert (pixels == plain[1]).all()
    found = hashed(file, LIMITS)
    assert found is not None
    assert found.sha256 == row.sha256
    assert (load(file.path, RECIPE, decode).value == pixels).all()
    assert read_image(file.path) == data


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_packed_images_fail_by_themselves(
    damage: str, memory: Any, image_bytes: Callable[..., bytes], decoder: DecoderProcess
) -> None:
    packed = bytearray(gzip.compress(image_bytes(1)))
    if damage == "cut":
        del packed[-20:]
    else:
        packed[len(packed) // 2] ^= 255
    failure = load_image(stored(bytes(packed)), RECIPE.resizing, LIMITS, decoder)
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.reason) == ("decode", "undecodable")
    assert "its gzip encoding is damaged" in failure.message
    query = load("mem://bucket/photo.jpg", RECIPE, decode).value
    assert isinstance(query, QueryError)
    assert (query.stage, query.reason, query.message) == ("decode", "undecodable", failure.message)


def test_little_that_unpacks_to_much_is_refused(memory: Any, decoder: DecoderProcess) -> None:
    file = stored(gzip.compress(bytes(50_000_000)))
    assert file.size < 100_000
    limits = ImagesConfig(max_bytes=100_000)
    failure = load_image(file, RECIPE.resizing, limits, decoder)
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.reason) == ("read", "too_many_bytes")
    assert len(read_image(file.path, 100_000)) == 100_001
    query = load(file.path, Recipe(Resizing((8, 8)), "srgb", 100_000), decode).value
    assert isinstance(query, QueryError)
    assert query.reason == "too_many_bytes"


def test_an_object_that_is_too_large_as_it_lies_there_is_not_called_damaged(
    memory: Any, image_bytes: Callable[..., bytes]
) -> None:
    data = gzip.compress(image_bytes(1, (200, 200)), compresslevel=0)
    file = stored(data)
    query = load(file.path, Recipe(Resizing((8, 8)), "srgb", len(data) // 2), decode).value
    assert isinstance(query, QueryError)
    assert query.reason == "too_many_bytes"


@pytest.mark.parametrize(("name", "text"), [("list.txt", "a.jpg\n"), ("list.csv", "label;path\ncat;a.jpg\n")])
def test_a_packed_list_is_the_list(name: str, text: str, memory: Any) -> None:
    filesystem.write_bytes(f"mem://bucket/{name}", gzip.compress(text.encode()))
    filesystem.write_bytes("mem://bucket/a.jpg", b"a")
    assert [found.uri for found in list_images(f"mem://bucket/{name}", Selection((".jpg",)))] == ["a.jpg"]
    filesystem.write_bytes(f"mem://bucket/{name}", gzip.compress(text.encode())[:-9])
    with pytest.raises(
        imgindex.errors.InputError, match="is no list of images: Compressed file ended before"
    ):
        list(list_images(f"mem://bucket/{name}", Selection((".jpg",))))


def test_a_local_file_is_what_it_is(tmp_path: Any, image_bytes: Callable[..., bytes]) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(gzip.compress(image_bytes(1)))
    assert read_image(str(path)) == path.read_bytes()
