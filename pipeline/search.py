"""Reads a published generation and answers queries with it."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, SupportsIndex

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex import storage
from imgindex.errors import DamagedError, InputError, OutputError, UsageError
from imgindex.generation import Output, current_name, files_of, read_manifest
from imgindex.listing import is_list
from imgindex.models.annoy_index import RECALL_K, first_items
from imgindex.models.engines import Engine, EngineChoice, embed_all, load_engine, refuse_after_fork
from imgindex.models.pca import Basis, normalize
from imgindex.models.resources import available_cores
from imgindex.models.similarity import cosine_similarity, rank
from imgindex.names import name_of
from imgindex.opened import OpenedShard, contents_of, open_shard, read_basis
from imgindex.queries import Query, each_query, name_of_query, pixels_of
from imgindex.uri_lists import is_whole

Vectors = npt.NDArray[np.float32]
# By how much deeper a search goes, one after the other, while it finds too few distinct images.
_DEEPER_SEARCHES = (8, 64)


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
    shard: int
    item: int  # Annoy's id in the shard
    copies: int  # other images in the index whose files have the same bytes


@dataclass(frozen=True)
class Result:
    """A query's neighbors, nearest first."""

    query: str  # the path, written as a uri is, or what was given instead of one
    neighbors: tuple[Neighbor, ...]


class Index:
    """A generation, opened for searching. Whatever is published meanwhile, it holds it until `refresh`."""

    def __init__(self, opened: "OpenGeneration") -> None:
        """Answers from `opened`; `Index.open` is the usual way here."""
        self._opened = opened

    @classmethod
    def open(cls, output: str | Path, generation: str | None = None, *, quick: bool = False) -> Self:
        """Opens a generation of `output`, the live one by default.

        Every byte is read and compared with its digest. With `quick` those of the Annoy files are not: of
        them only the size is compared. That is for large files that something else looks after: Annoy follows
        damaged ones wherever they lead, also out of its memory.

        Raises:
          OutputError: there is no index, or it is damaged.
        """
        return cls(_open(Output(str(output)), generation, quick))

    def refresh(self) -> bool:
        """Moves to the live generation; says whether it is another than before.

        Searches that other threads have begun end in the generation that they began in.

        Raises:
          OutputError: the live generation cannot be opened; the index stays as it was.
        """
        live = current_name(self.output)
        if live == self.manifest["generation"]:
            return False
        self._opened = _open(self.output, None, self._opened.quick)
        return True

    @property
    def output(self) -> Output:
        """Where the index lies."""
        return self._opened.output

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the generation."""
        return self._opened.manifest

    @property
    def basis(self) -> Basis:
        """The PCA basis that vectors are projected on."""
        return self._opened.basis

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
    ) -> list[Result]:
        """The `k` nearest images of each query.

        Args:
          images: one query or several: the path of an image, a PIL image, an RGB array
            [height, width, 3] of uint8, or a vector [dims] of floats as the index holds it.
          k: how many neighbors at most.
          exact: compare with every stored vector instead of asking Annoy.
          distinct: list images whose files have the same bytes once. Searches go as deep as it takes to find
            `k` images, where there are so many.

        Raises:
          UsageError: `k` or an array does not fit.
          InputError: an image cannot be read.
        """
        opened = self._opened  # one for the whole search, whatever `refresh` does in another thread
        queries = each_query(images)
        if not queries:
            return []
        names = [name_of_query(query) for query in queries]
        vectors = opened.vectors_of(queries)
        return opened.search_vectors(vectors, k, exact=exact, distinct=distinct, names=names)

    def search_vectors(
        self,
        vectors: Vectors,
        k: int = 10,
        *,
        exact: bool = False,
        distinct: bool = False,
        names: Sequence[str] = (),
    ) -> list[Result]:
        """The `k` nearest images of each of `vectors` [n, dims]; see `search`. Raises UsageError."""
        return self._opened.search_vectors(vectors, k, exact=exact, distinct=distinct, names=names)

    def image_path(self, uri: str) -> str:
        """Where the indexed image `uri` lay when the index was built.

        That of a member of a tar leads into the tar. Raises OutputError for one that would lead out of the
        input, as no build writes it.
        """
        if ".." in uri.split("/"):
            raise OutputError(f"{uri!r} leads out of the input {self.manifest['input_root']}")
        if is_whole(uri) and is_list(self.manifest["config"]["input"]):
            return name_of(uri)
        return storage.join(self.manifest["input_root"], name_of(uri))


def _open(output: Output, generation: str | None, quick: bool) -> "OpenGeneration":
    while True:
        name = generation or current_name(output)
        try:
            return OpenGeneration(output, read_manifest(output, name), quick)
        except OutputError:
            # It may have been pruned since its name was read; then another is live by now.
            if generation or current_name(output) in (None, name):
                raise


class OpenGeneration:
    """The files of one generation, mapped or read, and the answers that they give."""

    def __init__(self, output: Output, manifest: dict[str, Any], quick: bool) -> None:
        """Opens every shard, `quick` as for `Index.open`. Raises DamagedError."""
        self.output = output
        self.manifest = manifest
        self.quick = quick
        # Annoy and Arrow map files; those of an object store are copied here first.
        self._copies = tempfile.TemporaryDirectory(prefix="imgindex-")
        files = files_of(output, manifest)

        def opened(shard: dict[str, Any]) -> OpenedShard:
            return open_shard(
                files[shard["index"]],
                files[shard["metadata"]],
                Path(self._copies.name),
                items=shard["items"],
                dims=manifest["dims"],
                metric=manifest["metric"],
                quick=quick,
            )

        self.basis = read_basis(files[manifest["basis"]])
        with ThreadPoolExecutor(available_cores(), "open") as pool:
            shards = list(pool.map(opened, manifest["shards"]))
        if (self.basis.dims, self.basis.feature_dim) != (manifest["dims"], manifest["feature_dim"]):
            raise DamagedError(f"{files[manifest['basis']].path} is of other dimensions")
        self._shards = [shard.annoy for shard in shards]
        self._metadata = [shard.metadata for shard in shards]

    def __len__(self) -> int:
        """How many images are indexed."""
        return sum(shard["items"] for shard in self.manifest["shards"])

    def search_vectors(
        self,
        vectors: Vectors,
        k: int = 10,
        *,
        exact: bool = False,
        distinct: bool = False,
        names: Sequence[str] = (),
    ) -> list[Result]:
        """The `k` nearest images of each of `vectors` [n, dims]; see `Index.search`. Raises UsageError."""
        if not isinstance(k, SupportsIndex) or k < 1:
            raise UsageError(f"k is {k!r}; expected a whole number of at least 1")
        k = min(k, max(1, len(self)))
        dims = self.manifest["dims"]
        if vectors.ndim != 2 or vectors.shape[1] != dims:
            raise UsageError(f"expected vectors of {dims} values, got shape {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise UsageError("expected vectors of finite values, got others")
        # Recall was measured for RECALL_K neighbors; more of them take proportionally more effort.
        effort = None if exact else self.manifest["search_k"] * max(1, -(-k // RECALL_K))
        answers = [self._nearest(shard, vectors, k, effort, distinct) for shard in range(len(self._shards))]
        names = names or [f"vector {n}" for n in range(len(vectors))]
        return [
            Result(name, tuple(self._merge(vector, [answer[n] for answer in answers], k, distinct)))
            for n, (name, vector) in enumerate(zip(names, vectors, strict=True))
        ]

    def _nearest(
        self, shard: int, vectors: Vectors, k: int, effort: int | None, distinct: bool
    ) -> list[tuple[npt.NDArray[np.int64], Vectors]]:
        """What a shard answers to each of `vectors`: `k` items at most, of those of the same bytes one."""
        annoy = self._shards[shard]
        if not distinct:
            return annoy.nearest(vectors, k, effort)
        contents = self._contents[shard]
        answers = annoy.nearest(vectors, k, effort, contents)
        if effort is None:
            return answers
        wanted = min(k, self._distinct[shard])
        deeper: list[int | None] = [effort * step for step in _DEEPER_SEARCHES]
        # Where copies took up all the nodes that were inspected. At last no node is left out.
        for effort in [*deeper, None]:
            short = [n for n, (items, _) in enumerate(answers) if len(items) < wanted]
            if not short:
                break
            found = annoy.nearest(vectors[short], k, effort, contents)
            for n, answer in zip(short, found, strict=True):
                answers[n] = answer
        return answers

    def _merge(
        self,
        vector: Vectors,
        answers: Sequence[tuple[npt.NDArray[np.int64], Vectors]],
        k: int,
        distinct: bool,
    ) -> Iterator[Neighbor]:
        shards = np.concatenate([np.full(len(found), n) for n, (found, _) in enumerate(answers)])
        items = np.concatenate([found for found, _ in answers])
        stored = np.concatenate(
            [annoy.vectors[found] for annoy, (found, _) in zip(self._shards, answers, strict=True)]
        )
        places, squares, _ = rank(stored, vector, self.manifest["metric"], len(items) if distinct else k)
        contents = np.array([self._contents[shards[place]][items[place]] for place in places], np.int64)
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

    def vectors_of(self, queries: Sequence[Query]) -> Vectors:
        """Vectors [n, dims] of queries; whatever is an image goes through the index's own recipe."""
        vectors = np.empty((len(queries), self.manifest["dims"]), np.float32)
        images = []
        for number, query in enumerate(queries):
            if isinstance(query, np.ndarray) and query.ndim == 1:
                if query.shape != vectors.shape[1:] or not np.isfinite(query).all():
                    raise UsageError(
                        f"a query vector must be {vectors.shape[1]} finite values, got {query.shape}"
                    )
                vectors[number] = query
            else:
                images.append(number)
        if images:
            refuse_after_fork()
        for start in range(0, len(images), self._engine.batch_size if images else 1):
            batch = images[start : start + self._engine.batch_size]
            size, color_profile = self._engine.image_size, self._color_profile
            pixels = np.stack([pixels_of(queries[n], size, color_profile) for n in batch])
            features, valid = normalize(embed_all(self._engine, pixels))
            if not valid.all():
                query = queries[batch[int(np.argmin(valid))]]
                raise InputError(f"query {name_of_query(query)} has a feature without direction")
            vectors[batch] = self.basis.project(features)
        return vectors

    @property
    def _color_profile(self) -> str:
        # Manifests of before the key have none.
        return str(self.manifest["config"]["images"].get("color_profile", "srgb"))

    @cached_property
    def _engine(self) -> Engine:
        backbone = self.manifest["config"]["backbone"]
        recorded = self.manifest["engine"]
        choice = EngineChoice(
            name=backbone["name"],
            weights=backbone["weights"],
            pooling=backbone["pooling"],
            image_size=backbone["image_size"],
            engine=recorded["name"],
            precision=recorded["precision"],
            batch_size=recorded["batch_size"],
            color_profile=self._color_profile,
        )
        engine = load_engine(choice, available_cores())
        spec = self.manifest["spec"]
        if engine.spec.digest != spec["digest"]:
            differing = " and ".join(engine.spec.differences(spec)) or "spec"
            raise OutputError(
                f"queries would not fit the index: the {differing} of {backbone['name']} with weights "
                f"{backbone['weights']} differ from those that it was built with; bring back the file or the "
                "version of imgindex, or build the index again"
            )
        if engine.feature_dim != self.manifest["feature_dim"]:
            raise DamagedError(f"its manifest has features of {self.manifest['feature_dim']} values")
        return engine


def to_json(results: Sequence[Result]) -> str:
    """Results as a JSON array of queries, each with its neighbors."""
    return json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False)
