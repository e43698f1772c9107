"""The files of one generation, opened, and the answers that they give."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgindex.errors import DamagedError, UsageError
from imgindex.generations.layout import Output, files_of
from imgindex.generations.manifest import Manifest, Shard
from imgindex.indexing.shard_files import FILES_OF_A_SHARD, OpenedShard, contents_of, open_shard, read_basis
from imgindex.io.paths import absolute
from imgindex.models.ann.protocol import Items, SearchSettings
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.ann.shard_index import first_items
from imgindex.models.engines.protocol import Engine
from imgindex.models.similarity import cosine_similarity, rank
from imgindex.runtime.resources import allow_open_files, available_cores
from imgindex.runtime.temporary_folder import TemporaryFolder
from imgindex.search.filtered_search import nearest_among
from imgindex.search.filters import Filter
from imgindex.search.queries import Loaded, Recipe, own_names
from imgindex.search.query_engine import query_engine
from imgindex.search.query_vectors import Vectors, vectors_of
from imgindex.search.results import Neighbor, QueryError, Result
from imgindex.uris import is_encodable

# By how much deeper a search goes, one after the other, while it finds too few distinct images.
_DEEPER_SEARCHES = (8, 64)


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


@dataclass(frozen=True)
class _Among:
    """The images that may be answers."""

    items: tuple[npt.NDArray[np.int64], ...] | None  # of each shard; None: all
    counts: npt.NDArray[np.int64]  # how many of them have each content

    def places(self, distinct: bool, contents: frozenset[int] | None = None) -> int:
        """How many answers there can be at most, or how many of them are of these `contents`."""
        counts = self.counts if contents is None else self.counts[list(contents)]
        return int(np.count_nonzero(counts) if distinct else counts.sum())


def _deeper(settings: SearchSettings, times: int) -> SearchSettings:
    return {name: times * value for name, value in settings.items()}


def _short(answers: Sequence[Items], wanted: int) -> list[int]:
    """The numbers of the answers of fewer items than are wanted."""
    return [n for n, items in enumerate(answers) if len(items) < wanted]


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
        self._last_filter: tuple[Filter, _Among] | None = None

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
        known = self._known({query.sha256 for query in loaded if query.sha256 is not None})
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
        if not is_encodable(uri):
            return None
        for number, (shard, table) in enumerate(zip(self._shards, self._metadata, strict=True)):
            item = pc.index(table["uri"], uri).as_py()
            if item >= 0:
                return {**table.slice(item, 1).to_pylist()[0], "shard": number}, shard.vectors[item]
        return None

    def labels(self) -> Counter[str]:
        """How many images have each label. Those without one are left out."""
        counts: Counter[str] = Counter()
        for table in self._metadata:
            for row in pc.value_counts(table["label"].drop_null()).to_pylist():
                counts[row["values"]] += row["counts"]
        return counts

    def embedded(self, loaded: Sequence[Loaded]) -> tuple[Vectors, dict[int, QueryError]]:
        """As `vectors_of`: the vectors of queries, and the errors of those that have none."""
        return vectors_of(loaded, self.manifest.dims, self.basis, lambda: self.engine)

    def _known(self, digests: set[str]) -> dict[str, str]:
        """By their SHA-256, the first uri of each of `digests` that is indexed."""
        wanted = pa.array(sorted(digests), pa.string())
        found: dict[str, str] = {}
        for table in self._metadata if digests else ():
            rows = table.select(["sha256", "uri"]).filter(pc.is_in(table["sha256"], value_set=wanted))
            for digest, uri in zip(rows["sha256"].to_pylist(), rows["uri"].to_pylist(), strict=True):
                found[digest] = min(uri, found.get(digest, uri))
        return found

    def themselves(self, queries: Sequence[Loaded]) -> list[frozenset[int]]:
        """For each query the contents of the indexed images that it is: by its bytes, or by its path."""
        root = self.manifest.input_root
        names = [own_names(query, root) for query in queries]
        wanted = pa.array(sorted(set[str]().union(*names)), pa.string())
        contents: dict[str, int] = {}
        for table, numbers in zip(self._metadata, self._contents, strict=True):
            for column in ("sha256", "uri"):
                found = pc.indices_nonzero(pc.is_in(table[column], value_set=wanted)).to_numpy()
                values = table[column].take(found).to_pylist()
                contents.update(zip(values, numbers[found].tolist(), strict=True))
        return [frozenset(contents[name] for name in each if name in contents) for each in names]

    def neighbors(
        self, vectors: Vectors, wanted: Wanted, left_out: Sequence[frozenset[int]] | None = None
    ) -> list[tuple[Neighbor, ...]]:
        """The nearest images of each of `vectors` [n, dims], but for the contents `left_out` of each."""
        left_out = left_out or [frozenset()] * len(vectors)
        among = self._among(wanted.where)
        # What is left out takes places of an answer.
        places = [among.places(wanted.distinct, contents) for contents in left_out]
        neighbors: list[tuple[Neighbor, ...]] = [()] * len(vectors)
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
    ) -> Iterator[tuple[Neighbor, ...]]:
        """As `neighbors`, where what is left out of each answer takes `more` places."""
        available = among.places(wanted.distinct) - more
        k = min(wanted.k, max(1, available))
        answers = self._nearest_of_all(vectors, k + more, wanted, among)
        for n, (vector, contents) in enumerate(zip(vectors, left_out, strict=True)):
            found = tuple(self._merge(vector, [answer[n] for answer in answers], k, wanted, contents))
            if more and not wanted.exact and len(found) < min(k, available):
                # The search came across mostly what is left out.
                exactly = replace(wanted, exact=True)
                exact = self._nearest_of_all(vectors[n : n + 1], k + more, exactly, among)
                found = tuple(self._merge(vector, [each[0] for each in exact], k, wanted, contents))
            yield found

    def _among(self, where: Filter | None) -> _Among:
        """The images that fulfill a filter. Those of the last one are kept."""
        if where is None:
            return _Among(None, self._counts)
        last = self._last_filter  # at once, for other threads may replace it
        if last is None or last[0] != where:
            items = tuple(map(where.items, self._metadata))
            contents = [each[rows] for each, rows in zip(self._contents, items, strict=True)]
            counts = np.bincount(np.concatenate(contents), minlength=len(self._counts))
            last = self._last_filter = where, _Among(items, counts)
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
                self._contents[shard] if wanted.distinct else None,
            )
            for shard, (index, items) in enumerate(zip(self._shards, among.items, strict=True))
        ]
        return [[items for items, _ in answer] for answer in answers]

    def _nearest(
        self, shard: int, vectors: Vectors, k: int, settings: SearchSettings | None, distinct: bool
    ) -> list[Items]:
        """What a shard answers to each of `vectors`: `k` items at most, of those of the same bytes one."""
        index, contents = self._shards[shard], self._contents[shard] if distinct else None
        if settings is None:
            return [items for items, _ in index.nearest(vectors, k, None, contents)]
        answers = [index.candidates(vector, k, settings, contents) for vector in vectors]
        if contents is None:
            return answers
        wanted = min(k, self._distinct[shard])
        # Where copies took up all that the search came across. At last the search is exact.
        for times in _DEEPER_SEARCHES:
            for n in _short(answers, wanted):
                answers[n] = index.candidates(vectors[n], k, _deeper(settings, times), contents)
        short = _short(answers, wanted)
        for n, (items, _) in zip(short, index.nearest(vectors[short], k, None, contents), strict=True):
            answers[n] = items
        return answers

    def _merge(
        self,
        vector: Vectors,
        answers: Sequence[Items],
        k: int,
        wanted: Wanted,
        left_out: frozenset[int],
    ) -> Iterator[Neighbor]:
        distinct = wanted.distinct
        shards = np.repeat(np.arange(len(answers)), [len(items) for items in answers])
        items = np.concatenate(answers)
        stored = np.concatenate(
            [index.vectors[found] for index, found in zip(self._shards, answers, strict=True)]
        )
        most = len(items) if distinct or left_out else k
        places, squares, _ = rank(stored, vector, self.manifest.metric, most)
        numbers = [of[found] for of, found in zip(self._contents, answers, strict=True)]
        contents = np.concatenate(numbers)[places]
        if left_out:
            kept = np.flatnonzero(~np.isin(contents, list(left_out)))[: None if distinct else k]
            places, squares, contents = places[kept], squares[kept], contents[kept]
        if distinct:
            firsts = first_items(contents)[:k]
            places, squares, contents = places[firsts], squares[firsts], contents[firsts]
        cosines = cosine_similarity(stored[places], vector[np.newaxis])[0]
        for n, place in enumerate(places):
            shard, item = int(shards[place]), int(items[place])
            row = {name: column[item].as_py() for name, column in self._columns[shard].items()}
            yield Neighbor(
                rank=n + 1,
                uri=row["uri"],
                similarity=float(cosines[n]),
                distance=float(np.sqrt(squares[n])),
                label=row["label"],
                sha256=row["sha256"],
                width=row["width"],
                height=row["height"],
                shard=shard,
                item=item,
                copies=int(self._counts[contents[n]]) - 1,
                vector=stored[place] if wanted.vectors else None,
            )

    @cached_property
    def _numbered(self) -> tuple[list[npt.NDArray[np.int32]], npt.NDArray[np.int64]]:
        """For each shard the contents of its items, and how many items of all shards have each content.

        Some 4 bytes an image and 8 for each distinct one.
        """
        digests = [chunk for table in self._metadata for chunk in table["sha256"].chunks]
        contents = contents_of(pa.chunked_array(digests))
        ends = np.cumsum([len(table) for table in self._metadata])
        return np.split(contents, ends[:-1]), np.bincount(contents)

    @property
    def _contents(self) -> list[npt.NDArray[np.int32]]:
        return self._numbered[0]

    @property
    def _counts(self) -> npt.NDArray[np.int64]:
        return self._numbered[1]

    @cached_property
    def _distinct(self) -> list[int]:
        """How many distinct images each shard holds."""
        return [len(np.unique(contents)) for contents in self._contents]

    @cached_property
    def _columns(self) -> list[dict[str, Any]]:
        names = ("uri", "label", "sha256", "width", "height")
        return [{name: table[name] for name in names} for table in self._metadata]

    @cached_property
    def recipe(self) -> Recipe:
        """How the images were decoded, and queries are."""
        return Recipe.of(self.manifest)

    @cached_property
    def engine(self) -> Engine:
        """What embeds queries. Raises OutputError where it would not do so as when the index was built."""
        return query_engine(self.output.root, self.manifest, self.model)
