"""The files of one generation, opened, and the answers that they give."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from imgindex.errors import DamagedError, UsageError
from imgindex.generations.layout import Output, files_of
from imgindex.generations.manifest import Manifest, Shard
from imgindex.indexing.shard_files import FILES_OF_A_SHARD, OpenedShard, open_shard, read_basis
from imgindex.io.paths import absolute
from imgindex.models.ann.protocol import Items, SearchSettings
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.ann.shard_index import first_items
from imgindex.models.engines.protocol import Engine
from imgindex.models.similarity import cosine_similarity, rank_each
from imgindex.runtime.resources import allow_open_files, available_cores
from imgindex.runtime.temporary_folder import TemporaryFolder
from imgindex.search.filtered_search import nearest_among
from imgindex.search.filters import Filter
from imgindex.search.indexed_images import IndexedImages
from imgindex.search.neighbors import Neighbor, NeighborColumns, Neighbors
from imgindex.search.queries import Loaded, Recipe, own_names
from imgindex.search.query_engine import query_engine
from imgindex.search.query_vectors import Vectors, vectors_of
from imgindex.search.results import QueryError, Result
from imgindex.search.search_processes import SearchProcesses

# By how much deeper a search goes, one after the other, while it finds too few distinct images.
_DEEPER_SEARCHES = (8, 64)


# Candidates of several queries that are ranked at once: of 150 dimensions some 10 MiB.
_MERGED = 1 << 12

# Fewer vectors than these are searched for in less time than another process takes to be asked.
_FEWEST_FOR_A_PROCESS = 8


@dataclass(frozen=True)
class Wanted:
    """What each query asks for."""

    k: int = 10
    exact: bool = False
    distinct: bool = False
    exclude_self: bool = False
    where: Filter | None = None
    vectors: bool = False  # whether answers come with vectors

    def __post_init__(self) -> None:
        if not isinstance(self.k, SupportsIndex) or self.k < 1:
            raise UsageError(f"k is {self.k!r}; expected a whole number of at least 1")


class _Among:
    """The images that may be answers."""

    def __init__(
        self, counts: npt.NDArray[np.int64], items: tuple[npt.NDArray[np.int64], ...] | None = None
    ) -> None:
        """`items` are those of each shard, None for all; `counts` says how many of them have each content."""
        self.items = items
        self._counts = counts
        self._places = int(counts.sum()), int(np.count_nonzero(counts))

    def places(self, distinct: bool) -> int:
        """How many answers there can be at most."""
        return self._places[distinct]

    def places_of(self, contents: frozenset[int], distinct: bool) -> int:
        """How many answers can be of these `contents`."""
        if not contents:
            return 0
        counts = self._counts[list(contents)]
        return int(np.count_nonzero(counts) if distinct else counts.sum())


def _deeper(settings: SearchSettings, times: int) -> SearchSettings:
    return {name: times * value for name, value in settings.items()}


def _blocks(counts: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Queries in turn, as many at once as are merged at once by the `counts` of their candidates."""
    start = total = 0
    for place, count in enumerate(counts.tolist()):
        if place > start and total + count > _MERGED:
            yield slice(start, place)
            start, total = place, 0
        total += count
    if len(counts):
        yield slice(start, len(counts))


def _short(answers: Sequence[Items], wanted: int) -> list[int]:
    """The numbers of the answers of fewer items than are wanted."""
    return [n for n, items in enumerate(answers) if len(items) < wanted]


def _parts(lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The row numbers of parts of these lengths, which follow one another."""
    return np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])


def _kept(contents: npt.NDArray[np.int64], distinct: bool, out: frozenset[int]) -> npt.NDArray[np.int64]:
    """The places in `contents` of what is not `out`; where it shall be `distinct`, of each the first."""
    kept = np.flatnonzero(~np.isin(contents, list(out)))
    return kept[first_items(contents[kept])] if distinct else kept


class OpenGeneration:
    """The files of one generation, mapped or read."""

    def __init__(self, output: Output, manifest: Manifest, quick: bool, model: str | None) -> None:
        """Opens every shard, `quick` and `model` as for `Index.open`. Raises DamagedError."""
        self.output = output
        self.manifest = manifest
        self.quick = quick
        self.model = None if model is None else absolute(model)
        allow_open_files(FILES_OF_A_SHARD * len(manifest.shards))
        # Files are mapped; those of an object store are copied here first.
        self._copies = TemporaryFolder()
        files = files_of(output, manifest)

        def opened(shard: Shard) -> OpenedShard:
            return open_shard(
                files[shard.index],
                files[shard.metadata],
                Path(self._copies.name),
                items=shard.items,
                dims=manifest.dims,
                metric=manifest.metric,
                quick=quick,
            )

        self.basis = read_basis(files[manifest.basis])
        with ThreadPoolExecutor(available_cores(), "open") as pool:
            shards = list(pool.map(opened, manifest.shards))
        if (self.basis.dims, self.basis.feature_dim) != (manifest.dims, manifest.feature_dim):
            raise DamagedError(f"{files[manifest.basis].path} is of other dimensions")
        self._shards = [shard.index for shard in shards]
        self._metadata = [shard.metadata for shard in shards]
        self.images = IndexedImages(self._metadata)
        self._all: _Among | None = None
        self._last_filter: tuple[Filter, _Among] | None = None
        self._processes: SearchProcesses | None = None

    def use_processes(self, count: int) -> None:
        """From now on, has batches of vectors searched for in up to `count` processes beside this one."""
        self._processes = SearchProcesses(self._shards, count)

    def __len__(self) -> int:
        """How many images are indexed."""
        return self.manifest.items

    def answers(self, loaded: Sequence[Loaded], wanted: Wanted) -> list[Result]:
        """The result of each of `loaded`, of which those that are images are embedded together.

        Raises UsageError for a vector that does not fit, and where it is not known what to leave out.
        """
        vectors, errors = self.embedded(loaded)
        asked = [number for number in range(len(loaded)) if number not in errors]
        left_out = self.themselves([loaded[n] for n in asked]) if wanted.exclude_self else None
        found = iter(self.neighbors(vectors[asked], wanted, left_out))
        known = self.images.known({query.sha256 for query in loaded if query.sha256 is not None})
        return [
            Result(query.name, (), errors[n])
            if n in errors
            else Result(
                query.name,
                next(found),
                known=known.get(query.sha256 or ""),
                vector=vectors[n] if wanted.vectors else None,
            )
            for n, query in enumerate(loaded)
        ]

    def find(self, uri: str) -> tuple[dict[str, Any], Vectors] | None:
        """The metadata of the indexed image `uri`, and its vector [dims]; None where there is none.

        The metadata also tells `shard` and `item`, the image's number in the shard.
        """
        place = self.images.with_uri(uri)
        if place is None:
            return None
        shard, item = place
        return {**self.images.row(place), "shard": shard}, self._shards[shard].vectors[item]

    def embedded(self, loaded: Sequence[Loaded]) -> tuple[Vectors, dict[int, QueryError]]:
        """As `vectors_of`: the vectors of queries, and the errors of those that have none."""
        return vectors_of(loaded, self.manifest.dims, self.basis, lambda: self.engine)

    def themselves(self, queries: Sequence[Loaded]) -> list[frozenset[int]]:
        """For each query the contents of the indexed images that it is: by its bytes, or by its path."""
        root = self.manifest.input_root
        return [self.images.contents_named(own_names(query, root)) for query in queries]

    def neighbors(
        self, vectors: Vectors, wanted: Wanted, left_out: Sequence[frozenset[int]] | None = None
    ) -> list[Sequence[Neighbor]]:
        """The nearest images of each of `vectors` [n, dims], but for the contents `left_out` of each."""
        left_out = left_out or [frozenset()] * len(vectors)
        among = self._among(wanted.where)
        # What is left out takes places of an answer.
        places = [among.places_of(contents, wanted.distinct) for contents in left_out]
        neighbors: list[Sequence[Neighbor]] = [()] * len(vectors)
        for more in sorted(set(places)):
            numbers = [n for n, place in enumerate(places) if place == more]
            for n, found in zip(
                numbers,
                self._answer(vectors[numbers], wanted, among, more, [left_out[n] for n in numbers]),
                strict=True,
            ):
                neighbors[n] = found
        return neighbors

    def _answer(
        self,
        vectors: Vectors,
        wanted: Wanted,
        among: _Among,
        more: int,
        left_out: Sequence[frozenset[int]],
    ) -> list[Sequence[Neighbor]]:
        """As `neighbors`, where what is left out of each answer takes `more` places."""
        available = among.places(wanted.distinct) - more
        k = min(wanted.k, max(1, available))
        neighbors = self._merge(
            vectors, self._nearest_of_all(vectors, k + more, wanted, among), k, wanted, left_out
        )
        if more and not wanted.exact:
            # These searches came across mostly what is left out.
            short = [n for n, found in enumerate(neighbors) if len(found) < min(k, available)]
            answers = self._nearest_of_all(vectors[short], k + more, replace(wanted, exact=True), among)
            exact = self._merge(vectors[short], answers, k, wanted, [left_out[n] for n in short])
            for n, found in zip(short, exact, strict=True):
                neighbors[n] = found
        return neighbors

    def _among(self, where: Filter | None) -> _Among:
        """The images that fulfill a filter. Those of the last one are kept."""
        if where is None:
            if self._all is None:
                self._all = _Among(self.images.counts)
            return self._all
        last = self._last_filter  # at once, for other threads may replace it
        if last is None or last[0] != where:
            items = tuple(map(where.items, self._metadata))
            contents = [each[rows] for each, rows in zip(self.images.contents, items, strict=True)]
            counts = np.bincount(np.concatenate(contents), minlength=len(self.images.counts))
            last = self._last_filter = where, _Among(counts, items)
        return last[1]

    def matching(self, where: Filter) -> int:
        """How many images fulfill a filter."""
        return self._among(where).places(distinct=False)

    def _nearest_of_all(self, vectors: Vectors, k: int, wanted: Wanted, among: _Among) -> list[list[Items]]:
        """For each shard, the items that it answers to each of `vectors`, in no order that counts."""
        if among.items is None:
            # Recall was measured for RECALL_K neighbors; more of them take a search that is as much deeper.
            times = max(1, -(-k // RECALL_K))
            settings = None if wanted.exact else _deeper({"search_k": self.manifest.search_k}, times)
            return [
                self._nearest(shard, vectors, k, settings, wanted.distinct)
                for shard in range(len(self._shards))
            ]
        answers = [
            nearest_among(
                index,
                vectors,
                k,
                items,
                None if wanted.exact else self.manifest.search_k,
                self.images.contents[shard] if wanted.distinct else None,
            )
            for shard, (index, items) in enumerate(zip(self._shards, among.items, strict=True))
        ]
        return [[items for items, _ in answer] for answer in answers]

    def _nearest(
        self, shard: int, vectors: Vectors, k: int, settings: SearchSettings | None, distinct: bool
    ) -> list[Items]:
        """What a shard answers to each of `vectors`: `k` items at most, of those of the same bytes one."""
        index, contents = self._shards[shard], self.images.contents[shard] if distinct else None
        if settings is None:
            return [items for items, _ in index.nearest(vectors, k, None, contents)]
        if contents is None:
            return self._candidates(shard, vectors, k, settings)
        answers = [index.candidates(vector, k, settings, contents) for vector in vectors]
        wanted = min(k, self.images.distinct[shard])
        # Where copies took up all that the search came across. At last the search is exact.
        for times in _DEEPER_SEARCHES:
            for n in _short(answers, wanted):
                answers[n] = index.candidates(vectors[n], k, _deeper(settings, times), contents)
        short = _short(answers, wanted)
        for n, (items, _) in zip(short, index.nearest(vectors[short], k, None, contents), strict=True):
            answers[n] = items
        return answers

    def _candidates(self, shard: int, vectors: Vectors, k: int, settings: SearchSettings) -> list[Items]:
        """What the library finds in a shard for each of `vectors`: `k` items at most."""
        if self._processes is not None and len(vectors) >= _FEWEST_FOR_A_PROCESS:
            found = self._processes.candidates(shard, vectors, k, settings)
            if found is not None:
                return found
        return [self._shards[shard].candidates(vector, k, settings) for vector in vectors]

    def _merge(
        self,
        vectors: Vectors,
        answers: Sequence[Sequence[Items]],
        k: int,
        wanted: Wanted,
        left_out: Sequence[frozenset[int]],
    ) -> list[Sequence[Neighbor]]:
        """The neighbors of each of `vectors`, of what each shard answers to each of them."""
        counts = np.array([[len(items) for items in answer] for answer in answers], np.int64)
        neighbors: list[Sequence[Neighbor]] = []
        for block in _blocks(counts.sum(axis=0)):
            neighbors += self._merged(
                vectors[block],
                [answer[block] for answer in answers],
                counts[:, block],
                k,
                wanted,
                left_out[block],
            )
        return neighbors

    def _merged(
        self,
        vectors: Vectors,
        answers: Sequence[Sequence[Items]],
        counts: npt.NDArray[np.int64],
        k: int,
        wanted: Wanted,
        left_out: Sequence[frozenset[int]],
    ) -> list[Sequence[Neighbor]]:
        """As `_merge`; `counts` [shards, queries] of items."""
        shards = np.repeat(np.tile(np.arange(len(answers)), len(vectors)), counts.T.ravel())
        items = np.concatenate([items for each in zip(*answers, strict=True) for items in each])
        stored = np.empty((len(items), self.manifest.dims), np.float32)
        contents = np.empty(len(items), np.int64)
        for number, (index, numbers) in enumerate(zip(self._shards, self.images.contents, strict=True)):
            own = shards == number
            stored[own], contents[own] = index.vectors[items[own]], numbers[items[own]]
        totals = counts.sum(axis=0)
        cut = wanted.distinct or any(left_out)
        places, squares, lengths = rank_each(
            stored, totals, vectors, self.manifest.metric, len(items) if cut else k
        )
        if cut:
            kept = [
                own[_kept(contents[places[own]], wanted.distinct, out)[:k]]
                for own, out in zip(_parts(lengths), left_out, strict=True)
            ]
            lengths = np.array([len(own) for own in kept])
            places, squares = places[np.concatenate(kept)], squares[np.concatenate(kept)]
        if self.manifest.metric == "angular":
            cosines = 1 - squares / 2  # a squared angular distance is 2 (1 - cos)
        else:
            cosines = np.concatenate(
                [
                    cosine_similarity(stored[places[own]], vector[np.newaxis])[0]
                    for own, vector in zip(_parts(lengths), vectors, strict=True)
                ]
            )
        stops = np.cumsum(lengths)
        columns = NeighborColumns(
            np.arange(1, len(places) + 1) - np.repeat(stops - lengths, lengths),
            cosines,
            np.sqrt(squares),
            self.images.told(shards[places], items[places]),
            shards[places],
            items[places],
            self.images.counts[contents[places]] - 1,
            stored[places] if wanted.vectors else None,
        )
        return [
            Neighbors(columns, start, stop)
            for start, stop in zip((stops - lengths).tolist(), stops.tolist(), strict=True)
        ]

    @cached_property
    def recipe(self) -> Recipe:
        """How the images were decoded, and queries are."""
        return Recipe.of(self.manifest)

    @cached_property
    def engine(self) -> Engine:
        """What embeds queries. Raises OutputError where it would not do so as when the index was built."""
        return query_engine(self.output.root, self.manifest, self.model)
