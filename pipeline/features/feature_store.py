"""The store: an append-only, content-addressed cache of features in Parquet chunks.

A chunk holds the features of at most `CHUNK_ROWS` images under one spec, and is named by the digest of its
bytes. It appears whole or not at all, so that whatever a run that died has left is usable as it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgindex.config import ImagesConfig
from imgindex.io import content_addressed, filesystem, parquet_tables
from imgindex.records import ImageFile, ImageRow, StoredImage

# Rows of a chunk, at most: some 2 MiB of ResNet50's features. Older stores have larger chunks.
CHUNK_ROWS = 512

_COLUMNS: parquet_tables.Columns = {
    "uri": pa.types.is_string,
    "size": pa.types.is_int64,
    "etag_or_mtime": pa.types.is_string,
    "sha256": pa.types.is_string,
    "width": pa.types.is_int32,
    "height": pa.types.is_int32,
}
# The bits of 1.0. Features are of length 1.
_ONE = 0x3C00
_KEYS = ["uri", "size", "etag_or_mtime", "sha256"]
_DESCRIPTION = ["uri", "sha256", "size", "width", "height"]


def write_rows(
    directory: str, rows: Sequence[ImageRow], features: npt.NDArray[np.float16]
) -> tuple[StoredImage, ...]:
    """Writes a chunk of `rows` and their `features` [n, feature_dim] and tells where each lies."""
    table = pa.table(
        {
            "uri": [row.uri for row in rows],
            "size": pa.array([row.size for row in rows], pa.int64()),
            "etag_or_mtime": [row.version for row in rows],
            "sha256": [row.sha256 for row in rows],
            "width": pa.array([row.width for row in rows], pa.int32()),
            "height": pa.array([row.height for row in rows], pa.int32()),
            "feature": content_addressed.matrix_column(features),
        }
    )
    chunk = content_addressed.write(directory, table)
    return tuple(
        StoredImage(row.uri, row.size, row.version, row.sha256, chunk, number)
        for number, row in enumerate(rows)
    )


class RowCopier:
    """Writes rows of the store again, for files of the same bytes, in chunks of `CHUNK_ROWS` rows."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._rows: list[ImageRow] = []
        self._features: list[npt.NDArray[np.float16]] = []

    def copy(
        self, chunk: str, copies: Iterable[tuple[ImageFile, StoredImage]]
    ) -> Iterator[tuple[StoredImage, ...]]:
        """Copies rows of one chunk, which is read once; gives what is written meanwhile, chunk by chunk."""
        table = _read(self._directory, chunk)
        copies = iter(copies)
        while some := list(islice(copies, CHUNK_ROWS - len(self._rows))):
            taken = table.take([image.row for _, image in some])
            described = taken.select(["sha256", "width", "height"]).to_pylist()
            for (file, _), image in zip(some, described, strict=True):
                self._rows.append(ImageRow(file.uri, file.size, file.version, **image))
            self._features.append(content_addressed.matrix(taken, "feature"))
            if len(self._rows) == CHUNK_ROWS:
                yield from self.flush()

    def flush(self) -> Iterator[tuple[StoredImage, ...]]:
        """Writes the rows that still wait, if any."""
        if self._rows:
            yield write_rows(self._directory, self._rows, np.concatenate(self._features))
            self._rows, self._features = [], []


def read_keys(
    directory: str, chunk: str, feature_dim: int | None = None, limits: ImagesConfig | None = None
) -> Iterator[StoredImage]:
    """Which version of which image each row of a chunk holds, whose features have `feature_dim` values.

    Rows of images beyond `limits` are left out. Raises what `content_addressed.read` does before the first
    row.
    """
    table = _read(directory, chunk, feature_dim)
    keys = table.select(_KEYS).to_pydict()
    beyond = set() if limits is None else set(_rows_beyond(table, limits))
    for row, (uri, size, version, sha256) in enumerate(zip(*(keys[name] for name in _KEYS), strict=True)):
        if row not in beyond:
            yield StoredImage(uri, size, version, sha256, chunk, row)


def _rows_beyond(table: pa.Table, limits: ImagesConfig) -> list[int]:
    width, height = (table[side].cast(pa.int64()) for side in ("width", "height"))
    many_pixels = pc.greater(pc.multiply(width, height), limits.max_pixels)
    rows: list[int] = pc.indices_nonzero(
        pc.or_(many_pixels, pc.greater(table["size"], limits.max_bytes))
    ).to_pylist()
    return rows


def read_features(directory: str, chunk: str, rows: Sequence[int]) -> npt.NDArray[np.float16]:
    """The features [n, feature_dim] of `rows` of a chunk."""
    return content_addressed.matrix(_read(directory, chunk).take(rows), "feature")


def read_rows(directory: str, chunk: str, rows: Sequence[int]) -> tuple[pa.Table, npt.NDArray[np.float16]]:
    """What describes `rows` of a chunk (uri, sha256, size, width, height), and their features."""
    table = _read(directory, chunk).take(rows)
    return table.select(_DESCRIPTION), content_addressed.matrix(table, "feature")


def read_chunk(directory: str, chunk: str) -> tuple[pa.ChunkedArray, npt.NDArray[np.float16]]:
    """The SHA-256 of every image of a chunk, and their features [rows, feature_dim]."""
    table = _read(directory, chunk)
    return table["sha256"], content_addressed.matrix(table, "feature")


def each_rows(
    directory: str, chunk: str, rows: Sequence[int]
) -> Iterator[tuple[pa.Table, npt.NDArray[np.float16]]]:
    """What `read_rows` gives, at most `CHUNK_ROWS` rows at a time: chunks of older stores are larger."""
    table = _read(directory, chunk)
    for start in range(0, len(rows), CHUNK_ROWS):
        some = table.take(rows[start : start + CHUNK_ROWS])
        yield some.select(_DESCRIPTION), content_addressed.matrix(some, "feature")


def _read(directory: str, chunk: str, feature_dim: int | None = None) -> pa.Table:
    def is_feature(kind: pa.DataType) -> bool:
        halves = pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type)
        return halves and feature_dim in (None, kind.list_size)

    table = content_addressed.read(directory, chunk, {**_COLUMNS, "feature": is_feature})
    # As whole numbers, which are compared many times faster: without its sign a float16 grows with its bits.
    magnitudes = content_addressed.matrix(table, "feature").view(np.uint16) & 0x7FFF
    if magnitudes.max(initial=0) > _ONE:
        raise content_addressed.unusable(filesystem.join(directory, chunk), "it has features beyond [-1, 1]")
    return table


def diff(
    listed: Iterable[ImageFile], stored: Iterable[StoredImage]
) -> tuple[list[ImageFile], list[StoredImage]]:
    """Splits a listing into the images to embed and those whose features the store holds.

    An image is taken for unchanged when its uri, size and modification time or etag are.
    """
    held: dict[tuple[str, int, str], StoredImage] = {}
    for image in stored:
        key = (image.uri, image.size, image.version)
        # Any copy would do; the choice must not depend on the order in which they come.
        if key not in held or (image.chunk, image.row) < (held[key].chunk, held[key].row):
            held[key] = image
    missing: list[ImageFile] = []
    found: list[StoredImage] = []
    for file in listed:
        match = held.get((file.uri, file.size, file.version))
        if match is None:
            missing.append(file)
        else:
            found.append(match)
    return missing, found
