"""The store: chunks come back bit for bit or not at all, and the diff finds what changed."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.errors import DamagedError
from imgindex.features.feature_store import RowCopier, diff, read_features, read_keys, read_rows, write_rows
from imgindex.io import filesystem
from imgindex.io.content_addressed import names as chunk_names
from imgindex.records import ImageFile, ImageRow, StoredImage

ROWS = [
    ImageRow("a.jpg", 10, "17", "aa" * 32, 640, 480),
    ImageRow("ä 猫/b\n.png", 2**40, "etag-'x'", "bb" * 32, 1, 30_000),
    ImageRow("c.jpg", 0, "", "cc" * 32, 2**31 - 1, 1),
]
# Beside ordinary values: the smallest and the largest that features have, and both zeros.
FEATURES = np.array([[1, -1, 0.1, 1 / 3], [6e-8, -6e-8, 1, -1], [0.0, -0.0, 0.5, 1e-4]], np.float16)


def write_chunk(directory: str, rows: Sequence[ImageRow], features: np.ndarray) -> str:
    """Writes a chunk and returns its name."""
    return write_rows(directory, rows, features)[0].chunk


def bits(features: np.ndarray) -> np.ndarray:
    assert features.dtype == np.float16
    return features.view(np.uint16)


def test_a_chunk_comes_back_bit_for_bit(place: str) -> None:
    chunk = write_chunk(place, ROWS, FEATURES)
    assert chunk_names(place) == [chunk]
    np.testing.assert_array_equal(bits(read_features(place, chunk, [0, 1, 2])), bits(FEATURES))
    where = [
        StoredImage(row.uri, row.size, row.version, row.sha256, chunk, number)
        for number, row in enumerate(ROWS)
    ]
    assert list(read_keys(place, chunk)) == list(write_rows(place, ROWS, FEATURES)) == where


def test_copies_have_the_features_of_their_originals(place: str) -> None:
    originals = [*write_rows(place, ROWS[:2], FEATURES[:2]), *write_rows(place, ROWS[2:], FEATURES[2:])]
    files = [ImageFile(f"copy-{n}.jpg", "", 100 + n, f"7.{n}") for n in range(3)]
    copier = RowCopier(place)
    assert list(copier.copy(originals[0].chunk, [(files[n], originals[n]) for n in (1, 0)])) == []
    assert list(copier.copy(originals[2].chunk, [(files[2], originals[2])])) == []
    (copied,) = copier.flush()
    for image in copied:
        number = int(image.uri[5])
        assert (image.size, image.version) == (100 + number, f"7.{number}")
        assert image.sha256 == ROWS[number].sha256
        images, features = read_rows(place, image.chunk, [image.row])
        (row,) = images.to_pylist()
        assert (row["width"], row["height"]) == (ROWS[number].width, ROWS[number].height)
        np.testing.assert_array_equal(bits(features), bits(FEATURES[[number]]))
    assert sorted(image.uri for image in copied) == [file.uri for file in files]
    assert list(copier.flush()) == []


def test_no_chunk_of_copies_grows_with_their_number(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgindex.features.feature_store.CHUNK_ROWS", 4)
    originals = write_rows(place, ROWS, FEATURES)
    copier = RowCopier(place)
    files = [ImageFile(f"{n:02}.jpg", "", 10, "8") for n in range(11)]
    written = [*copier.copy(originals[0].chunk, ((file, originals[0]) for file in files)), *copier.flush()]
    assert [len(images) for images in written] == [4, 4, 3]
    assert [image.uri for images in written for image in images] == [file.uri for file in files]


def test_rows_are_read_in_the_order_asked_for(place: str) -> None:
    chunk = write_chunk(place, ROWS, FEATURES)
    images, features = read_rows(place, chunk, [2, 0])
    assert images.to_pylist() == [
        {"uri": row.uri, "sha256": row.sha256, "size": row.size, "width": row.width, "height": row.height}
        for row in (ROWS[2], ROWS[0])
    ]
    np.testing.assert_array_equal(bits(features), bits(FEATURES[[2, 0]]))
    np.testing.assert_array_equal(bits(read_features(place, chunk, [1])), bits(FEATURES[[1]]))


def test_a_chunk_is_named_by_its_content(tmp_path: Path) -> None:
    names = {
        write_chunk(f"{tmp_path}/a", ROWS, FEATURES),
        write_chunk(f"{tmp_path}/a", ROWS, FEATURES),
        write_chunk(f"{tmp_path}/b", list(ROWS), FEATURES.copy()),
    }
    assert len(names) == 1
    name = names.pop()
    assert chunk_names(f"{tmp_path}/a") == [name]
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    others = FEATURES.copy()
    others[1, 1] = 0
    assert write_chunk(f"{tmp_path}/a", ROWS, others) != name
    assert write_chunk(f"{tmp_path}/a", ROWS[::-1], FEATURES) != name
    assert len(chunk_names(f"{tmp_path}/a")) == 3


def test_there_may_be_no_store_yet(place: str) -> None:
    assert chunk_names(place) == []


def damage(data: bytes, how: str) -> bytes:
    middle = len(data) // 2
    return {
        "altered": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "truncated": data[:middle],
        "longer": data + b"\0",
        "empty": b"",
    }[how]


@pytest.mark.parametrize("how", ["altered", "truncated", "longer", "empty"])
def test_a_damaged_chunk_is_refused_by_name(how: str, place: str) -> None:
    chunk = write_chunk(place, ROWS, FEATURES)
    path = filesystem.join(place, chunk)
    filesystem.write_bytes(path, damage(filesystem.read_bytes(path), how))
    for read in (lambda: list(read_keys(place, chunk)), lambda: read_rows(place, chunk, [0])):
        with pytest.raises(DamagedError, match=f"{path} is damaged: its bytes"):
            read()


def test_a_missing_chunk_is_refused_by_name(place: str) -> None:
    with pytest.raises(DamagedError, match=r"chunk-1\.parquet is not there"):
        read_features(place, "chunk-1.parquet", [0])


def file(uri: str, size: int = 1, version: str = "1") -> ImageFile:
    return ImageFile(uri, f"/in/{uri}", size, version)


@pytest.mark.parametrize(
    ("listed", "missing"),
    [
        (file("a"), False),
        (file("a", size=2), True),
        (file("a", version="2"), True),
        (file("A"), True),
        (file("b"), True),
    ],
)
def test_an_image_is_unchanged_when_uri_size_and_version_are(listed: ImageFile, missing: bool) -> None:
    stored = StoredImage("a", 1, "1", "", "chunk", 5)
    assert diff([listed], [stored]) == (([listed], []) if missing else ([], [stored]))


def test_what_is_no_longer_listed_is_not_found() -> None:
    assert diff([], [StoredImage("a", 1, "1", "", "chunk", 0)]) == ([], [])


def test_of_several_copies_the_choice_does_not_depend_on_their_order() -> None:
    copies = [
        StoredImage("a", 1, "1", "", chunk, row) for chunk in ("chunk-2", "chunk-1") for row in (3, 1, 2)
    ]
    for stored in itertools.permutations(copies):
        assert diff([file("a")], stored) == ([], [StoredImage("a", 1, "1", "", "chunk-1", 1)])


FILES = st.builds(file, st.sampled_from("abc"), st.integers(0, 1), st.sampled_from("12"))
STORED = st.builds(
    StoredImage,
    st.sampled_from("abc"),
    st.integers(0, 1),
    st.sampled_from("12"),
    st.just(""),
    st.sampled_from(["chunk-1", "chunk-2"]),
    st.integers(0, 2),
)


@given(st.lists(FILES, unique_by=lambda image: image.uri), st.lists(STORED, max_size=30), st.data())
def test_every_listed_image_is_missing_or_found_once_whatever_the_order(
    listed: list[ImageFile], stored: list[StoredImage], data: Any
) -> None:
    def key(image: ImageFile | StoredImage) -> tuple[str, int, str]:
        return image.uri, image.size, image.version

    missing, found = diff(listed, stored)
    assert sorted([*map(key, missing), *map(key, found)]) == sorted(map(key, listed))
    assert set(found) <= set(stored)
    assert set(map(key, missing)).isdisjoint(map(key, stored))
    again = diff(data.draw(st.permutations(listed)), data.draw(st.permutations(stored)))
    assert (set(again[0]), set(again[1])) == (set(missing), set(found))
