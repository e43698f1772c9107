"""The images of a generation: finds them by uri or digest, and counts their copies."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgindex.indexing.shard_files import contents_of

# Digests are first compared by so many of their last characters, which fit into one number.
_END = 8

# The columns that an answer shows of an image.
_TOLD = ("uri", "label", "sha256", "width", "height")

# An image's shard, and its item there.
Place = tuple[int, int]


class IndexedImages:
    """The metadata of all shards."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        """`tables` are those of the shards. Row i is that of item i; items are in the order of their uris."""
        self.tables = tables
        self._told = [
            pa.RecordBatch.from_arrays([table[name].combine_chunks() for name in _TOLD], _TOLD)
            for table in tables
        ]
        self._uris = [told.column(0) for told in self._told]
        ends = np.cumsum([len(table) for table in tables])
        self._firsts = ends - [len(table) for table in tables]

    @cached_property
    def _numbered(self) -> tuple[list[npt.NDArray[np.int32]], npt.NDArray[np.int64]]:
        contents = contents_of(self._digests)
        return np.split(contents, self._firsts[1:]), np.bincount(contents)

    @property
    def contents(self) -> list[npt.NDArray[np.int32]]:
        """For each shard a number for each of its items, the same for files of the same bytes.

        With `counts` some 4 bytes an image and 8 for each distinct one.
        """
        return self._numbered[0]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many images have each content."""
        return self._numbered[1]

    @cached_property
    def distinct(self) -> list[int]:
        """How many contents each shard holds."""
        return [len(np.unique(contents)) for contents in self.contents]

    def labels(self) -> Counter[str]:
        """How many images have each label. Those without one are left out."""
        counts: Counter[str] = Counter()
        for table in self.tables:
            for row in pc.value_counts(table["label"].drop_null()).to_pylist():
                counts[row["values"]] += row["counts"]
        return counts

    def told(self, shards: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> list[pa.Array]:
        """The columns that answers show, with a row for each of these images."""
        order: list[npt.NDArray[np.int64]] = []
        parts: list[list[pa.Array]] = []
        for shard in np.unique(shards).tolist() or [0]:  # without images, the columns are empty
            own = np.flatnonzero(shards == shard)
            order.append(own)
            parts.append(self._told[shard].take(pa.array(items[own])).columns)
        if len(parts) == 1:
            return parts[0]
        places = pa.array(np.argsort(np.concatenate(order)))
        return [pa.concat_arrays(column).take(places) for column in zip(*parts, strict=True)]

    def row(self, place: Place) -> dict[str, Any]:
        """All metadata of an image."""
        shard, item = place
        row: dict[str, Any] = self.tables[shard].slice(item, 1).to_pylist()[0]
        return row

    def with_uri(self, uri: str) -> Place | None:
        """The image that has this uri."""
        for shard, uris in enumerate(self._uris):
            item = bisect_left(range(len(uris)), uri, key=lambda row: uris[row].as_py())
            if item < len(uris) and uris[item].as_py() == uri:
                return shard, item
        return None

    def with_digest(self, digest: str) -> list[Place]:
        """The first image of each shard whose file has the SHA-256 `digest`."""
        if len(digest) < _END or not digest.isascii():
            return []
        ends, images = self._by_end
        (end,) = _ends_of(pa.array([digest]))
        found: dict[int, Place] = {}
        for image in images[slice(*np.searchsorted(ends, [end, end + np.uint64(1)]))].tolist():
            shard = int(np.searchsorted(self._firsts, image, side="right")) - 1
            item = image - int(self._firsts[shard])
            if shard not in found and self.tables[shard]["sha256"][item].as_py() == digest:
                found[shard] = shard, item
        return list(found.values())

    def known(self, digests: Iterable[str]) -> dict[str, str]:
        """By their SHA-256, the first uri of each of `digests` that is indexed."""
        found = {}
        for digest in digests:
            uris = [self._uris[shard][item].as_py() for shard, item in self.with_digest(digest)]
            if uris:
                found[digest] = min(uris)
        return found

    def contents_named(self, names: Iterable[str]) -> frozenset[int]:
        """The contents of the images that have one of `names` as their uri or as their SHA-256."""
        places = []
        for name in names:
            place = self.with_uri(name)
            places += [place] if place else self.with_digest(name)
        return frozenset(int(self.contents[shard][item]) for shard, item in places)

    @cached_property
    def _digests(self) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for table in self.tables for chunk in table["sha256"].chunks])

    @cached_property
    def _by_end(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
        """The ends of all digests, in order, and the image that each is of: 12 bytes an image."""
        ends = np.concatenate([_ends_of(chunk) for chunk in self._digests.chunks])
        order = np.argsort(ends, kind="stable")
        return ends[order], order.astype(np.int32)


def _ends_of(digests: pa.Array) -> npt.NDArray[np.uint64]:
    """The last characters of digests, as numbers."""
    ends = pc.binary_slice(digests.cast(pa.large_binary()), -_END).cast(pa.binary(_END))
    numbers: npt.NDArray[np.uint64] = np.frombuffer(ends.buffers()[1], ">u8").astype(np.uint64)
    return numbers
