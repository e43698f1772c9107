"""What the service does, without HTTP: every method leaves the event loop free."""

import asyncio
import calendar
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pydantic_core import to_json

from imgindex.errors import UsageError
from imgindex.generations.manifest import Manifest
from imgindex.models.decoder import DecoderProcess
from imgindex.models.decoder_pool import DecoderPool
from imgindex.runtime.resources import available_cores
from imgindex.search.combined_queries import CollectedQueries, combined_answer
from imgindex.search.open_generation import OpenGeneration, Wanted
from imgindex.search.queries import Loaded, Recipe, load
from imgindex.search.query_vectors import as_vectors
from imgindex.search.results import QueryError, Result, compact_json
from imgindex.serving.batcher import Batcher
from imgindex.serving.duplicates import DuplicateSearch, Parameters
from imgindex.serving.errors import RefusedError, bad_request, busy, not_found
from imgindex.serving.live_index import Answering, LiveIndex
from imgindex.serving.metrics import Metrics
from imgindex.serving.pictures import Pictures
from imgindex.serving.requests import DuplicatesRequest, Queries, SearchRequest
from imgindex.serving.settings import ServiceSettings

_T = TypeVar("_T")

# Seconds that an image may compute for: a limit of what a hostile one costs.
_DECODE_SECONDS = 10.0

# What is no fault of an image: it may be decoded the next time.
_PASSING = frozenset({"killed", "stalled", "no_memory"})

# Why a uri is no query.
_NOT_FOUND, _NO_SUCH_URI = "not_found", "no indexed image has this uri"


class Service:
    """Answers queries by the live generation of an index."""

    def __init__(self, live: LiveIndex, settings: ServiceSettings, metrics: Metrics) -> None:
        self.live = live
        self.settings = settings
        self.metrics = metrics
        self._working = 0
        cores = available_cores()
        self._decoders = DecoderPool(cores, make=partial(DecoderProcess, time_limit=_DECODE_SECONDS))
        self._decoding = ThreadPoolExecutor(cores, "decode")
        # While some wait for search processes, others write answers.
        self._searching = ThreadPoolExecutor(2 * cores, "search")
        self._batcher = Batcher(self.metrics.batch)
        self._pictures = Pictures(self._decoders.decode)
        self._duplicates = DuplicateSearch(live.output)

    def start(self) -> None:
        """Begins to follow the live generation."""
        self.live.switched = self._tell
        self.live.follow()

    def close(self) -> None:
        """Ends threads and processes; nobody may wait for an answer."""
        self.live.close()
        self._batcher.close()
        self._pictures.close()
        self._duplicates.close()
        for pool in (self._decoding, self._searching):
            pool.shutdown(cancel_futures=True)
        self._decoders.close()

    def _tell(self, found: Answering) -> None:
        self.metrics.answering(found, begun(found.manifest), lambda: self.live.trouble is not None)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[Answering]:
        """A place among the requests that are worked on, and the generation that answers all of this one.

        Raises RefusedError where there is no place, and TimeoutError.
        """
        if self._working >= self.settings.max_requests:
            raise busy(f"{self._working} requests are being worked on; try again")
        self._working += 1
        self.metrics.working.set(self._working)
        try:
            async with asyncio.timeout(self.settings.seconds):
                yield self.live.current
        finally:
            self._working -= 1
            self.metrics.working.set(self._working)

    async def search(self, answering: Answering, queries: Queries, wanted: Wanted) -> list[Result]:
        """The neighbors of each of some queries. Raises RefusedError for one that is none."""
        loaded = await self._loaded(answering, queries)
        search = partial(answering.opened.answers, loaded, wanted)
        return await self._in(self._searching, self._searched, search)

    async def answer(self, answering: Answering, asked: SearchRequest) -> bytes:
        """The JSON of the answer to a request.

        Raises RefusedError where the only query cannot be searched for. Of combined queries, each must be one
        that can, and so must the query that they make together.
        """
        opened, wanted = answering.opened, asked.wanted
        loaded = await self._loaded(answering, asked.queries)
        if asked.combine:
            negative = await self._loaded(answering, asked.negative)
            for query in loaded + negative:
                if isinstance(query.value, QueryError):
                    raise refusal_of(query.value, query.name)
            search = partial(_combined, opened, (loaded, negative), wanted)
        else:
            search = partial(opened.answers, loaded, wanted)
        return await self._in(self._searching, self._answered, answering, search, wanted)

    def _answered(self, answering: Answering, search: Callable[[], list[Result]], wanted: Wanted) -> bytes:
        results = self._searched(search)
        if len(results) == 1 and results[0].error is not None:
            raise refusal_of(results[0].error)
        started = time.monotonic()
        head = to_json(
            {
                "generation": answering.generation,
                "metric": answering.manifest.metric,
                "k": wanted.k,
                "exact": wanted.exact,
            }
        )
        body = b'%b,"results":[%b]}' % (head[:-1], ",".join(map(compact_json, results)).encode())
        self.metrics.stage("metadata", time.monotonic() - started)
        return body

    def _searched(self, search: Callable[[], list[Result]]) -> list[Result]:
        started = time.monotonic()
        try:
            results = search()
        except UsageError as error:
            raise bad_request(str(error)) from error
        self.metrics.stage("search", time.monotonic() - started)
        return results

    async def _loaded(self, answering: Answering, queries: Queries) -> list[Loaded]:
        """The queries with their vectors: images, uris, vectors."""
        files = [self._embedded(answering, name, data) for name, data in queries.images]
        loaded: list[Loaded] = [*await asyncio.gather(*files)]
        for uri in queries.uris:
            found = await self._found(answering, uri)
            if found is None:
                loaded.append(Loaded(uri, QueryError("list", _NOT_FOUND, _NO_SUCH_URI)))
            else:
                row, vector = found
                loaded.append(Loaded(uri, vector, None, row["sha256"]))
        if queries.vectors:
            try:
                vectors = as_vectors(queries.vectors, answering.manifest.dims)
            except UsageError as error:
                raise bad_request(str(error)) from error
            loaded += [Loaded(f"vector {number}", vector) for number, vector in enumerate(vectors)]
        return loaded

    async def duplicates(
        self, answering: Answering, asked: DuplicatesRequest
    ) -> tuple[dict[str, Any], list[dict[str, Any]]] | float:
        """What is known of all groups of duplicates, and the groups that are asked for.

        Where they are being looked for, it gives for how many seconds that has been so. Raises RefusedError.
        """
        parameters = Parameters(answering.generation, asked.threshold, asked.across)
        found = await self._duplicates.groups(parameters)
        if isinstance(found, float):
            return found
        head = found.head | {"across": asked.across, "group_count": len(found), "offset": asked.offset}
        return head, await self._in(self._searching, found.part, asked.offset, asked.limit)

    async def item(self, answering: Answering, uri: str) -> dict[str, Any]:
        """The metadata of an indexed image. Raises RefusedError."""
        return await self._row(answering, uri)

    async def thumbnail(self, answering: Answering, uri: str) -> tuple[bytes, str]:
        """A small JPEG of an indexed image, and the SHA-256 of the image. Raises RefusedError."""
        row = await self._row(answering, uri)
        return await self._pictures.thumbnail(answering.manifest, row), row["sha256"]

    async def original(self, answering: Answering, uri: str) -> tuple[bytes, str]:
        """The file of an indexed image, and its SHA-256. Raises RefusedError."""
        row = await self._row(answering, uri)
        return await self._pictures.original(answering.manifest, row), row["sha256"]

    async def _row(self, answering: Answering, uri: str) -> dict[str, Any]:
        found = await self._found(answering, uri)
        if found is None:
            raise not_found(_NO_SUCH_URI)
        return found[0]

    async def _found(self, answering: Answering, uri: str) -> tuple[dict[str, Any], Any] | None:
        started = time.monotonic()
        found = await self._in(self._searching, answering.opened.find, uri)
        self.metrics.stage("metadata", time.monotonic() - started)
        return found

    async def _embedded(self, answering: Answering, name: str, data: bytes) -> Loaded:
        """A query with its vector in the place of its pixels, or with why it has none."""
        opened = answering.opened
        recipe = replace(opened.recipe, max_pixels=min(opened.recipe.max_pixels, self.settings.max_pixels))
        with self._batcher.decoding():
            query = await self._in(self._decoding, self._decode, name, data, recipe)
            if isinstance(query.value, QueryError):
                return query
            embedding = self._batcher.submit(answering, query)
        return replace(query, value=await asyncio.wrap_future(embedding))

    def _decode(self, name: str, data: bytes, recipe: Recipe) -> Loaded:
        started = time.monotonic()
        query = replace(load(data, recipe, self._decoders.decode), name=name)
        self.metrics.stage("decode", time.monotonic() - started)
        return query

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(function, *arguments))


def _combined(opened: OpenGeneration, sides: Sequence[Sequence[Loaded]], wanted: Wanted) -> list[Result]:
    collected = [CollectedQueries(opened) for _ in sides]
    for side, loaded in zip(collected, sides, strict=True):
        side.answers(loaded, wanted)
    return [combined_answer(opened, collected[0], collected[1], wanted)]


def refusal_of(error: QueryError, name: str = "the query") -> RefusedError:
    """What a request is answered with that has no answer because of one of its queries."""
    status = 503 if error.reason in _PASSING else 404 if error.reason == _NOT_FOUND else 422
    headers = {"Retry-After": "1"} if status == 503 else {}
    return RefusedError(status, error.reason, f"{name} cannot be searched for: {error.message}", headers)


def begun(manifest: Manifest) -> float:
    """When a generation was begun to be built, in seconds since the epoch, by its name."""
    return float(calendar.timegm(time.strptime(manifest.generation[:16], "%Y%m%dT%H%M%SZ")))
