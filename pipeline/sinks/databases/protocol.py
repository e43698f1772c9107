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
from imgindex.sinks.databases.index_kinds import IndexKind

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


class PassingError(OSError):
    """A database fails for a moment. The text says what it does, as of "PostgreSQL at db does not answer"."""


class NoDatabaseError(OutputError):
    """There is no database where one could be made, and none is to be made."""


def no_answer(why: object) -> PassingError:
    """A database that cannot be reached, or breaks off."""
    return PassingError(f"does not answer: {why}; see that it runs and can be reached, and run it again")


class Database(Protocol):
    """One database. Its methods raise what its client does, of which `told` makes errors for people."""

    at: str  # what it is and where, for messages
    longest_name: int  # of a collection
    longest_uri: int | None  # in bytes of UTF-8; None: any
    most_dims: int
    index_kinds: Sequence[str]  # the first is the default
    exact_kinds: Sequence[str]  # those whose collections can also be searched without the index

    def index_kind(self, name: str, rows: int) -> IndexKind:
        """The index of `index_kinds` that a collection of so many rows gets."""

    def collections(self, name: str) -> Mapping[str, str]:
        """The descriptions of the collections that `name` begins; empty of those that have none."""

    def live(self, name: str) -> str | None:
        """The collection that `name` leads to. Raises UsageError where it is none of imgindex's aliases."""

    def create(self, collection: str, description: str, dims: int, metric: Metric, index: IndexKind) -> None:
        """Makes an empty collection, which is to be indexed so."""

    def insert(self, collection: str, images: pa.Table, vectors: Vectors, *, again: bool) -> None:
        """Adds rows, whose images are of `source.IMAGES`. `again`: some of them may be there already."""

    def finish(self, collection: str, metric: Metric, index: IndexKind) -> None:
        """Makes the index of a collection that has all its rows, if it has none, and waits for it."""

    def count(self, collection: str) -> int:
        """How many rows a collection holds."""

    def fetch(self, collection: str, uris: Sequence[str]) -> list[Row]:
        """The rows of `uris`, in any order, without those that are missing."""

    def search(
        self, collection: str, vectors: Vectors, k: int, metric: Metric, settings: Mapping[str, int] | None
    ) -> list[list[Row]]:
        """The `k` nearest rows of each of `vectors` [n, dims], nearest first.

        `settings` are those of an `IndexKind`; None compares with every row, for one of `exact_kinds`.
        """

    def switch(self, name: str, collection: str, before: str | None) -> None:
        """Has `name` lead to `collection` where it led to `before`, in one step."""

    def drop(self, collection: str) -> None:
        """Deletes a collection, which no name leads to, if it is there."""

    def close(self) -> None:
        """Ends the connection."""

    def told(self, error: Exception) -> Exception | None:
        """`error` as a `PassingError` where another try may help, else as one for people; None for a bug."""


def asked(database: Database, call: Callable[[], T]) -> T:
    """What `call` gives, which is called again, a few seconds in all, while the database fails for a moment.

    Raises OutputError where it fails for longer or for good.
    """

    def attempt() -> T:
        try:
            return call()
        except Exception as error:
            told = no_answer(error) if isinstance(error, OSError) else database.told(error)
            if told is None:
                raise
            raise told from error

    try:
        return retried(attempt)
    except PassingError as error:
        raise OutputError(f"{database.at} {error}") from error


def inserted(database: Database, collection: str, images: pa.Table, vectors: Vectors, *, again: bool) -> None:
    """Adds rows, each once, however often it takes; `again` as for `Database.insert`. Raises OutputError."""
    attempts = count()
    asked(
        database,
        lambda: database.insert(collection, images, vectors, again=again or next(attempts) > 0),
    )
