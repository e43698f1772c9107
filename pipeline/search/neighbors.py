"""The neighbors of queries, kept as columns. Objects and JSON are made of them when they are asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import repeat
from json.encoder import encode_basestring
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Neighbor:
    """An indexed image that is near a query."""

    rank: int  # from 1
    uri: str
    similarity: float  # cosine of the two vectors
    distance: float  # in the index's metric
    label: str | None
    sha256: str
    width: int
    height: int
    # A database does not tell the next three: they are None then.
    shard: int | None
    item: int | None  # its number in the shard
    copies: int | None  # other images in the index whose files have the same bytes
    # [dims], as the index holds it, where it was asked for.
    vector: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


NEIGHBOR_FIELDS = tuple(each.name for each in fields(Neighbor) if each.name != "vector")
_NEIGHBOR_JSON = "{" + ",".join(f'"{name}":%s' for name in NEIGHBOR_FIELDS) + "%s}"


@dataclass
class NeighborColumns:
    """The neighbors of several queries, one in each row. The rows of a query follow one another."""

    ranks: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float64]
    distances: npt.NDArray[np.float64]
    images: Sequence[pa.Array]  # uri, label, sha256, width and height
    shards: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32] | None  # [rows, dims]
    _json: Sequence[str] | None = field(default=None, init=False, repr=False)

    def neighbors(self, start: int, stop: int) -> Iterator[Neighbor]:
        """The neighbors of these rows."""
        own = slice(start, stop)
        uris, *images = (column[own].to_pylist() for column in self.images)
        columns = (
            self.ranks[own].tolist(), uris, self.similarities[own].tolist(), self.distances[own].tolist(),
            *images, self.shards[own].tolist(), self.items[own].tolist(), self.copies[own].tolist(),
        )  # fmt: skip
        vectors = [None] * (stop - start) if self.vectors is None else self.vectors[own]
        return map(Neighbor, *columns, vectors)

    @property
    def json(self) -> Sequence[str]:
        """Each neighbor as a JSON object, whose floats are as `shortest_digits` writes them."""
        # At a cached_property of Python 3.11 all threads wait while one of them computes any.
        if self._json is None:
            self._json = self._written()
        return self._json

    def _written(self) -> Sequence[str]:
        uris, labels, digests, widths, heights = self.images
        digits = shortest_digits(np.concatenate([self.similarities, self.distances]))
        columns = (
            self.ranks.tolist(),
            map(encode_basestring, uris.to_pylist()),
            digits[: len(uris)],
            digits[len(uris) :],
            ("null" if label is None else encode_basestring(label) for label in labels.to_pylist()),
            map(encode_basestring, digests.to_pylist()),
            widths.to_numpy().tolist(),
            heights.to_numpy().tolist(),
            self.shards.tolist(),
            self.items.tolist(),
            self.copies.tolist(),
            repeat("", len(uris))
            if self.vectors is None
            else map(',"vector":%s'.__mod__, map(vector_json, self.vectors)),
        )
        return list(map(_NEIGHBOR_JSON.__mod__, zip(*columns, strict=True)))


class Neighbors(Sequence[Neighbor]):
    """The neighbors of one query, nearest first.

    They compare as a tuple of `Neighbor` does. The objects are made when the first of them is read.
    """

    def __init__(self, columns: NeighborColumns, start: int, stop: int) -> None:
        """Rows `start` to `stop` of `columns`."""
        self._columns, self._start, self._stop = columns, start, stop

    @cached_property
    def _objects(self) -> tuple[Neighbor, ...]:
        return tuple(self._columns.neighbors(self._start, self._stop))

    def __len__(self) -> int:
        """How many there are."""
        return self._stop - self._start

    @overload
    def __getitem__(self, place: int) -> Neighbor: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Neighbor, ...]: ...

    def __getitem__(self, place: int | slice) -> Neighbor | tuple[Neighbor, ...]:
        """One of them, or some as a tuple."""
        return self._objects[place]

    def __iter__(self) -> Iterator[Neighbor]:
        return iter(self._objects)

    def __eq__(self, other: object) -> bool:
        return tuple(other) == self._objects if isinstance(other, tuple | Neighbors) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._objects)

    def __repr__(self) -> str:
        return repr(self._objects)

    @property
    def json(self) -> str:
        """A JSON array of them, without a space."""
        return f"[{','.join(self._columns.json[self._start : self._stop])}]"


def vector_json(vector: npt.NDArray[np.float32]) -> str:
    """A vector [dims] as a JSON array, written by `shortest_digits`."""
    return f"[{','.join(shortest_digits(vector))}]"


def shortest_digits(values: npt.NDArray[np.floating[Any]]) -> list[str]:
    """Values [n] as JSON numbers, with just the digits that tell one float32 from the next."""
    texts: list[str] = pa.array(values.astype(np.float32)).cast(pa.string()).to_pylist()
    return texts
