"""Answers queries out of a database, with the recipe of the index that was pushed into it."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Self

import numpy as np

from imgindex.errors import OutputError, UsageError
from imgindex.generations.layout import Output, current_name, files_of, read_manifest
from imgindex.generations.manifest import Manifest
from imgindex.indexing.shard_files import read_basis
from imgindex.io import filesystem
from imgindex.models.engines.protocol import Engine
from imgindex.models.similarity import cosine_similarity, rank
from imgindex.search.index import answer_each
from imgindex.search.neighbors import Neighbor
from imgindex.search.open_generation import Wanted
from imgindex.search.queries import Found, Loaded, Query, Recipe, image_path, own_names
from imgindex.search.query_engine import query_engine
from imgindex.search.query_vectors import Vectors, vectors_of
from imgindex.search.results import Result
from imgindex.sinks.databases.description import Description
from imgindex.sinks.databases.index_kinds import IndexKind
from imgindex.sinks.databases.names import checked_name
from imgindex.sinks.databases.protocol import Database, Row, asked
from imgindex.uris import name_of

# By how much deeper a search goes while it finds too few images, and how deep at most: Milvus gives no more
# rows than that.
_DEEPER = 8
_MOST_ROWS = 16_384


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
        self.generation = description.generation
        self._kind = description.index
        if description.index not in database.index_kinds:
            raise OutputError(
                f"{collection} in {database.at} has an index of a kind that this version does not know; push "
                "it again"
            )
        own = database.index_kind(description.index, description.images).search
        self._settings = {name: description.search.get(name, value) for name, value in own.items()}
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

    def __len__(self) -> int:
        """How many images were pushed."""
        return self._images

    def image_path(self, uri: str) -> str:
        """Where an image lay when the index was built; see `Index.image_path`."""
        return image_path(self.facts, uri)

    def search_each(
        self,
        images: Iterable[Query | Found],
        k: int = 10,
        *,
        exact: bool = False,
        distinct: bool = False,
        exclude_self: bool = False,
    ) -> Iterator[Result]:
        """The `k` nearest images of each query, as of `Index.search_each`.

        Raises UsageError also where the database cannot search without its index.
        """
        if exact and self._kind not in self._database.exact_kinds:
            kinds = " or ".join(self._database.exact_kinds)
            raise UsageError(
                f"{self._database.at} cannot search {self._collection} exactly, whose index is {self._kind}; "
                f"leave out --exact, or push with --index_kind {kinds}"
            )
        return answer_each(self, images, Wanted(k, exact, distinct, exclude_self))

    def answers(self, loaded: Sequence[Loaded], wanted: Wanted) -> list[Result]:
        """The result of each of `loaded`. Raises UsageError for a vector that does not fit."""
        vectors, errors = vectors_of(loaded, self.facts.dims, self._basis, lambda: self.engine)
        numbers = [number for number in range(len(loaded)) if number not in errors]
        found = iter(self._neighbors(vectors[numbers], [loaded[n] for n in numbers], wanted))
        return [
            Result(query.name, (), errors[n]) if n in errors else Result(query.name, next(found))
            for n, query in enumerate(loaded)
        ]

    def _neighbors(
        self, vectors: Vectors, queries: Sequence[Loaded], wanted: Wanted
    ) -> Iterator[tuple[Neighbor, ...]]:
        if not len(vectors):
            return
        left_out = self._themselves(queries) if wanted.exclude_self else [frozenset[str]()] * len(queries)
        k = min(wanted.k, self._images)
        first = min(k + wanted.exclude_self, self._images)
        answers = self._nearest(vectors, first, wanted.exact)
        for rows, vector, contents in zip(answers, vectors, left_out, strict=True):
            depth, found = first, _neighbors(rows, vector, self.facts, k, wanted.distinct, contents)
            # Where copies, or the query itself, took up places of the answer.
            while len(found) < k and depth < min(self._images, _MOST_ROWS):
                depth = min(_DEEPER * depth, self._images, _MOST_ROWS)
                (rows,) = self._nearest(vector[np.newaxis], depth, wanted.exact)
                found = _neighbors(rows, vector, self.facts, k, wanted.distinct, contents)
            yield found

    def _themselves(self, queries: Sequence[Loaded]) -> list[frozenset[str]]:
        """For each query its names, and the SHA-256 of the indexed images that it is by one of them."""
        names = [own_names(query, self.facts.input_root) for query in queries]
        database, wanted = self._database, sorted(set[str]().union(*names))
        rows = asked(database, lambda: database.fetch(self._collection, wanted))
        digests = {row.uri: row.sha256 for row in rows}
        return [frozenset(each | {digests[name] for name in each if name in digests}) for each in names]

    def _nearest(self, vectors: Vectors, k: int, exact: bool) -> list[list[Row]]:
        database, metric = self._database, self.facts.metric
        settings = None if exact else self._settings
        return asked(database, lambda: database.search(self._collection, vectors, k, metric, settings))

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
        if not filesystem.exists(output.manifest(generation)):  # pruned meanwhile
            continue
        manifest = read_manifest(output, generation)
        index = IndexKind(description.index, search=description.search)
        found = Description.of(output, manifest, description.collection, index)
        if found.recipe == description.recipe:
            return manifest
    raise OutputError(
        f"queries would not fit {description.collection}: it was pushed from another index than "
        f"{output.root}, or the index has changed since; push it again, or say where the index is with "
        "--index INDEX"
    )


def _neighbors(
    rows: Sequence[Row],
    vector: Vectors,
    manifest: Manifest,
    k: int,
    distinct: bool,
    left_out: frozenset[str],
) -> tuple[Neighbor, ...]:
    """The `k` nearest of `rows` but for those `left_out`; of equal distances the first by its uri."""
    kept = sorted((row for row in rows if row.sha256 not in left_out), key=lambda row: row.uri)
    if not kept:
        return ()
    stored = np.stack([row.vector for row in kept])
    places, squares, _ = rank(stored, vector, manifest.metric, len(kept))
    if distinct:
        firsts = np.sort(np.unique([kept[place].sha256 for place in places], return_index=True)[1])
        places, squares = places[firsts], squares[firsts]
    places, squares = places[:k], squares[:k]
    cosines = cosine_similarity(stored[places], vector[np.newaxis])[0]
    return tuple(
        Neighbor(
            rank=n + 1,
            uri=kept[place].uri,
            similarity=float(cosines[n]),
            distance=float(np.sqrt(squares[n])),
            label=kept[place].label,
            sha256=kept[place].sha256,
            width=kept[place].width,
            height=kept[place].height,
            shard=None,
            item=None,
            copies=None,
        )
        for n, place in enumerate(places)
    )
