"""Answers queries out of a database, with the recipe of the index that was pushed into it."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Self

import numpy as np

from imgindex.errors import DamagedError, OutputError
from imgindex.generations.layout import Output, current_name, files_of, read_manifest
from imgindex.generations.manifest import Manifest
from imgindex.indexing.shard_files import read_basis
from imgindex.models.engines.protocol import Engine
from imgindex.models.similarity import cosine_similarity, rank
from imgindex.search.index import answer_each
from imgindex.search.open_generation import Wanted
from imgindex.search.queries import Found, Loaded, Query, Recipe, image_path
from imgindex.search.query_engine import query_engine
from imgindex.search.query_vectors import Vectors, vectors_of
from imgindex.search.results import Neighbor, Result
from imgindex.sinks.databases.description import Description
from imgindex.sinks.databases.names import checked_name
from imgindex.sinks.databases.protocol import Database, Row, asked
from imgindex.uris import name_of


class DatabaseIndex:
    """A pushed generation, opened for searching: that to which the name led when it was opened."""

    def __init__(
        self, database: Database, collection: str, description: Description, output: Output, model: str | None
    ) -> None:
        """Answers from `collection`; `open` is the usual way here. Raises OutputError."""
        self._database = database
        self._collection = collection
        self.output = output
        self._model = model
        self.facts = _manifest(output, description)
        self._images = description.images
        self._basis = read_basis(files_of(output, self.facts)[self.facts.basis])

    @classmethod
    def open(
        cls, database: Database, name: str, *, output: str | None = None, model: str | None = None
    ) -> Self:
        """Opens what `name` leads to in `database`.

        The recipe is that of the index at `output`; by default, where it was pushed from. `model` is as for
        `Index.open`.

        Raises:
          UsageError: `name` is none of imgindex's.
          OutputError: nothing was pushed under it, or the recipe of the index is another.
        """
        checked_name(name, database.longest_name)
        collection = asked(database, lambda: database.live(name))
        if collection is None:
            raise OutputError(f"{database.at} has no {name}; `imgindex push` makes it")
        described = asked(database, lambda: database.collections(name))
        description = Description.parse(described.get(collection))
        if description is None:
            raise OutputError(
                f"{collection} in {database.at} does not say which index it is of; push it again"
            )
        return cls(database, collection, description, Output(output or name_of(description.output)), model)

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self._collection} in {self._database.at}"

    def image_path(self, uri: str) -> str:
        """Where an image lay when the index was built; see `Index.image_path`."""
        return image_path(self.facts, uri)

    def search_each(self, images: Iterable[Query | Found], k: int = 10) -> Iterator[Result]:
        """The `k` nearest images of each query, as of `Index.search_each`."""
        return answer_each(self, images, Wanted(k))

    def answers(self, loaded: Sequence[Loaded], wanted: Wanted) -> list[Result]:
        """The result of each of `loaded`. Raises UsageError for a vector that does not fit."""
        vectors, errors = vectors_of(loaded, self.facts.dims, self._basis, lambda: self.engine)
        numbers = [number for number in range(len(loaded)) if number not in errors]
        found = iter(self._nearest(vectors[numbers], min(wanted.k, self._images)))
        return [
            Result(query.name, (), errors[n])
            if n in errors
            else Result(query.name, _neighbors(next(found), vectors[n], self.facts))
            for n, query in enumerate(loaded)
        ]

    def _nearest(self, vectors: Vectors, k: int) -> list[list[Row]]:
        if not len(vectors):
            return []
        database, metric = self._database, self.facts.metric
        return asked(database, lambda: database.search(self._collection, vectors, k, metric))

    @cached_property
    def recipe(self) -> Recipe:
        """How the images were decoded, and queries are."""
        return Recipe.of(self.facts)

    @cached_property
    def engine(self) -> Engine:
        """What embeds queries. Raises OutputError where it would not do so as when the index was built."""
        return query_engine(self.output.root, self.facts, self._model)


def _manifest(output: Output, description: Description) -> Manifest:
    """The manifest of the pushed generation, or of the live one, if that has the same recipe.

    Raises OutputError where neither has.
    """
    live = current_name(output)
    if live is None:
        raise OutputError(f"{output.root} holds no index; say where the index is with --index INDEX")
    for generation in dict.fromkeys([description.generation, live]):
        try:
            manifest = read_manifest(output, generation)
        except DamagedError:  # pruned meanwhile
            continue
        found = Description.of(output, manifest, description.collection, description.search)
        if found.recipe == description.recipe:
            return manifest
    raise OutputError(
        f"queries would not fit {description.collection}: it was pushed from another index than "
        f"{output.root}, or the index has changed since; push it again, or say where the index is with "
        "--index INDEX"
    )


def _neighbors(rows: Sequence[Row], vector: Vectors, manifest: Manifest) -> tuple[Neighbor, ...]:
    if not rows:
        return ()
    stored = np.stack([row.vector for row in rows])
    places, squares, _ = rank(stored, vector, manifest.metric, len(rows))
    cosines = cosine_similarity(stored[places], vector[np.newaxis])[0]
    return tuple(
        Neighbor(
            rank=n + 1,
            uri=rows[place].uri,
            similarity=float(cosines[n]),
            distance=float(np.sqrt(squares[n])),
            label=rows[place].label,
            sha256=rows[place].sha256,
            width=rows[place].width,
            height=rows[place].height,
            shard=None,
            item=None,
            copies=None,
        )
        for n, place in enumerate(places)
    )
