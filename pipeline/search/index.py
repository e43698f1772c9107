"""Reads a published generation and answers queries with it."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from imgindex.errors import InputError
from imgindex.generations.layout import Output, current_name, open_generation
from imgindex.generations.manifest import Manifest
from imgindex.models import decoder_pool
from imgindex.models.engines.loading import refuse_after_fork
from imgindex.models.engines.protocol import Engine
from imgindex.models.pca import Basis
from imgindex.models.preprocess import decode
from imgindex.runtime.resources import available_cores
from imgindex.search.combined_queries import CollectedQueries, combined_answer
from imgindex.search.filters import Filter, filter_of
from imgindex.search.open_generation import OpenGeneration, Wanted
from imgindex.search.queries import (
    KINDS,
    Found,
    Loaded,
    Query,
    Recipe,
    check_query,
    each_query,
    image_path,
    load,
)
from imgindex.search.query_vectors import as_vectors
from imgindex.search.results import Result, describe_error

# Queries that are embedded and searched together. The pixels of twice as many are held: 20 MiB as a rule.
_BATCH = 64


class Answering(Protocol):
    """What answers queries that are loaded as its recipe says."""

    @property
    def recipe(self) -> Recipe:
        """How queries are decoded."""

    @property
    def engine(self) -> Engine:
        """What embeds them."""

    def answers(self, loaded: Sequence[Loaded], wanted: Wanted) -> list[Result]:
        """The result of each of `loaded`. Raises UsageError for a vector that does not fit."""


def answer_each(opened: Answering, images: Iterable[Query | Found], wanted: Wanted) -> Iterator[Result]:
    """What `opened` answers to any number of queries, in their order; see `Index.search_each`."""
    refuse_after_fork()
    queries = iter(images)
    cores = available_cores()
    pool = decoder_pool.acquire(cores)
    try:
        with ThreadPoolExecutor(cores, "decode") as threads:

            def take() -> list[Future[Loaded]]:
                batch = list(islice(queries, _BATCH))
                for query in batch:
                    if not isinstance(query, Found):
                        check_query(query)
                return [threads.submit(load, query, opened.recipe, pool.decode) for query in batch]

            loading = take()
            if loading:
                _ = opened.engine  # it loads while the first are decoded
            while loading:
                following = take()
                yield from opened.answers([query.result() for query in loading], wanted)
                loading = following
    finally:
        decoder_pool.release()


class Index:
    """A generation, opened for searching. Whatever is published meanwhile, it holds it until `refresh`."""

    def __init__(self, opened: OpenGeneration) -> None:
        """Answers from `opened`; `Index.open` is the usual way here."""
        self._opened = opened

    @classmethod
    def open(
        cls,
        output: str | Path,
        generation: str | None = None,
        *,
        quick: bool = False,
        model: str | Path | None = None,
    ) -> Self:
        """Opens a generation of `output`, the live one by default.

        Every byte is read and compared with its digest. With `quick` those of the Annoy files are not: of
        them only the size is compared. That is for large files that something else looks after: Annoy follows
        damaged ones wherever they lead, also out of its memory.

        `model` is the file of the backbone, or of its weights, where it has moved since the index was built;
        the first search for an image checks that its digest is that of the index's backbone.

        Raises:
          OutputError: there is no index, or it is damaged.
        """
        return cls(_open(Output(str(output)), generation, quick, None if model is None else str(model)))

    def refresh(self) -> bool:
        """Moves to the live generation; says whether it is another than before.

        Searches that other threads have begun end in the generation that they began in.

        Raises:
          OutputError: the live generation cannot be opened; the index stays as it was.
        """
        live = current_name(self.output)
        if live == self.facts.generation:
            return False
        self._opened = _open(self.output, None, self._opened.quick, self._opened.model)
        return True

    @property
    def output(self) -> Output:
        """Where the index lies."""
        return self._opened.output

    @property
    def place(self) -> str:
        """Where it lies, for people."""
        return self.output.root

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the generation, as it stands in ``manifest.json``."""
        return dict(self._opened.manifest.content)

    @property
    def facts(self) -> Manifest:
        """The manifest of the generation, by typed fields."""
        return self._opened.manifest

    @property
    def basis(self) -> Basis:
        """The PCA basis that vectors are projected on."""
        return self._opened.basis

    @property
    def generation(self) -> str:
        """The name of the generation."""
        return self.facts.generation

    def __len__(self) -> int:
        """How many images are indexed."""
        return len(self._opened)

    def search(
        self,
        images: Query | Sequence[Query],
        k: int = 10,
        *,
        exact: bool = False,
        distinct: bool = False,
        exclude_self: bool = False,
        where: str | Sequence[str] | None = None,
        vectors: bool = False,
    ) -> list[Result]:
        """The `k` nearest images of each query.

        Args:
          images: one query or several: the path of an image, the bytes of its file, a PIL image, an RGB array
            [height, width, 3] of uint8, or a vector [dims] of floats as the index holds it.
          k: how many neighbors at most.
          exact: compare with every stored vector instead of asking Annoy.
          distinct: list images whose files have the same bytes once. Searches go as deep as it takes to find
            `k` images, where there are so many.
          exclude_self: leave out the indexed image that a query is, and its copies: what has the same bytes
            as the query, and what is indexed under its path. Queries must then be paths or bytes.
          where: answer only with images that fulfill this condition, or all of these, such as
            ``label=ketch,anchor`` or ``uri^=boats/``; `imgindex.search.filters` says what there is.
          vectors: give the vectors of the queries and of their neighbors, too.

        Raises:
          UsageError: `k`, an array or a condition does not fit.
          InputError: an image cannot be read. `search_each` answers the other queries all the same.
        """
        opened = self._opened  # one for the whole search, whatever `refresh` does in another thread
        wanted = Wanted(k, exact, distinct, exclude_self, filter_of(where), vectors)
        queries = iter(each_query(images))
        results: list[Result] = []
        while batch := list(islice(queries, _BATCH)):
            if not all(map(_is_vector, batch)):
                refuse_after_fork()
            for result in opened.answers([load(query, opened.recipe, decode) for query in batch], wanted):
                if result.error is not None:
                    raise InputError(f"query {result.query}: {describe_error(result.error)}")
                results.append(result)
        return results

    def search_each(
        self,
        images: Iterable[Query | Found],
        k: int = 10,
        *,
        exact: bool = False,
        distinct: bool = False,
        exclude_self: bool = False,
        where: str | Sequence[str] | None = None,
        vectors: bool = False,
    ) -> Iterator[Result]:
        """As `search`, for any number of queries, in their order; a bad one does not stop the others.

        Queries are taken 64 at a time, so that memory does not grow with their number. Files are decoded in
        processes of their own, as in a build. A query that cannot be read or decoded has a result without
        neighbors, whose `error` says why.

        Raises:
          UsageError: `k`, an array or a condition does not fit.
          WorkerError: the processes that decode do not start.
        """
        wanted = Wanted(k, exact, distinct, exclude_self, filter_of(where), vectors)
        return answer_each(self._opened, images, wanted)

    def search_combined(
        self,
        positive: Query | Iterable[Query | Found],
        negative: Query | Iterable[Query | Found] = (),
        k: int = 10,
        *,
        exact: bool = False,
        distinct: bool = False,
        exclude_self: bool = False,
        where: str | Sequence[str] | None = None,
        vectors: bool = False,
    ) -> Result:
        """The `k` images that are like all of `positive` together, and not like those of `negative`.

        The query is mean(positive) of the vectors, or 2 mean(positive) - mean(negative), as in Qdrant's
        recommendations. With the angular metric, each vector is scaled to length 1 before. The rest is as of
        `search`; files are decoded as of `search_each`.

        Args:
          positive: one query or more.
          negative: any number of queries.
          k: how many neighbors at most.
          exact, distinct, where, vectors: as of `search`.
          exclude_self: leave out the indexed images that any of the queries is, and their copies.

        Raises:
          UsageError: there is no positive query, one does not fit, or they cancel each other.
          InputError: a query cannot be read.
        """
        opened = self._opened
        wanted = Wanted(k, exact, distinct, exclude_self, filter_of(where), vectors)
        sides = []
        for queries in (positive, negative):
            side = CollectedQueries(opened)
            for result in answer_each(side, [queries] if isinstance(queries, KINDS) else queries, wanted):
                if result.error is not None:
                    raise InputError(f"query {result.query}: {describe_error(result.error)}")
            sides.append(side)
        return combined_answer(opened, sides[0], sides[1], wanted)

    def search_vectors(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        *,
        exact: bool = False,
        distinct: bool = False,
        where: str | Sequence[str] | None = None,
        names: Sequence[str] = (),
    ) -> list[Result]:
        """The `k` nearest images of each of `vectors` [n, dims]; see `search`. Raises UsageError."""
        opened, wanted = self._opened, Wanted(k, exact, distinct, where=filter_of(where))
        rows = as_vectors(vectors, opened.manifest.dims)
        names = names or [f"vector {n}" for n in range(len(rows))]
        found = opened.neighbors(rows, wanted)
        return [Result(name, neighbors) for name, neighbors in zip(names, found, strict=True)]

    def matching(self, where: str | Sequence[str]) -> int:
        """How many indexed images fulfill a condition, or all of several. Raises UsageError."""
        return self._opened.matching(Filter.parse(where))

    def image_path(self, uri: str) -> str:
        """Where the indexed image `uri` lay when the index was built.

        That of a member of a tar leads into the tar. Raises OutputError for one that would lead out of the
        input, as no build writes it.
        """
        return image_path(self.facts, uri)


def _is_vector(query: Query) -> bool:
    return isinstance(query, np.ndarray) and query.ndim == 1


def _open(output: Output, generation: str | None, quick: bool, model: str | None) -> OpenGeneration:
    return open_generation(
        output, generation, lambda manifest: OpenGeneration(output, manifest, quick, model)
    )
