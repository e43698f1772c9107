"""What a vector database does for imgindex, and another try where that fails for a moment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.errors import OutputError
from imgindex.io.retries import retried
from imgindex.models.ann.protocol import Metric

Vectors = npt.NDArray[np.float32]

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """An image as a collection holds it."""

    uri: str
    label: str | None
    sha256: str
    width: int
    height: int
    vector: Vectors  # [dims]; where the metric is angular, perhaps at length 1


class Database(Protocol):
    """One database. Its methods raise what its client does, of which `told` makes errors for people."""

    at: str  # what it is and where, for messages
    longest_name: int  # of a collection
    longest_uri: int | None  # in bytes of UTF-8; None: any
    most_dims: int
    search_settings: Mapping[str, int]  # of all searches, as they stand in the description

    def collections(self, name: str) -> Mapping[str, str]:
        """The descriptions of the collections that `name` begins; empty of those that have none."""

    def live(self, name: str) -> str | None:
        """The collection that `name` leads to. Raises UsageError where it is none of imgindex's aliases."""

    def create(self, collection: str, description: str, dims: int, metric: Metric) -> None:
        """Makes an empty collection."""

    def insert(self, collection: str, images: pa.Table, vectors: Vectors, *, again: bool) -> None:
        """Adds rows, whose images are of `source.IMAGES`. `again`: some of them may be there already."""

    def finish(self, collection: str, metric: Metric) -> None:
        """Makes the index of a collection that has all its rows, if it has none, and waits for it."""

    def count(self, collection: str) -> int:
        """How many rows a collection holds."""

    def fetch(self, collection: str, uris: Sequence[str]) -> list[Row]:
        """The rows of `uris`, in any order, without those that are missing."""

    def search(self, collection: str, vectors: Vectors, k: int, metric: Metric) -> list[list[Row]]:
        """The `k` nearest rows of each of `vectors` [n, dims] by `search_settings`, nearest first."""

    def switch(self, name: str, collection: str, before: str | None) -> None:
        """Has `name` lead to `collection` where it led to `before`, in one step."""

    def drop(self, collection: str) -> None:
        """Deletes a collection, which no name leads to, if it is there."""

    def close(self) -> None:
        """Ends the connection."""

    def told(self, error: Exception) -> Exception | None:
        """`error` as an OSError where another try may help, else as one for people; None for a bug."""


def asked(database: Database, call: Callable[[], T]) -> T:
    """What `call` gives, which is called again, a few seconds in all, while the database fails for a moment.

    Raises OutputError where it fails for longer or for good.
    """

    def attempt() -> T:
        try:
            return call()
        except Exception as error:
            told = database.told(error)
            if told is None:
                raise
            raise told from error

    try:
        return retried(attempt)
    except OSError as error:
        raise OutputError(
            f"{database.at} does not answer: {error}; see that it runs and can be reached, and run it again"
        ) from error


def inserted(database: Database, collection: str, images: pa.Table, vectors: Vectors) -> None:
    """Adds rows, each once, however often it takes. Raises OutputError."""
    attempts = count()
    asked(
        database,
        lambda: database.insert(collection, images, vectors, again=next(attempts) > 0),
    )
