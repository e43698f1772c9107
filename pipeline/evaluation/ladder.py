"""The ladder: exact search in features and in PCA vectors, and Annoy, each with its accuracy and price."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgindex.evaluation import annoy_search
from imgindex.evaluation.collection import Collection
from imgindex.evaluation.feature_search import FeatureSearch, search_vectors
from imgindex.evaluation.judging import Timing, precisions, recalls, time_exact, time_queries
from imgindex.evaluation.results import Rung
from imgindex.evaluation.sampling import some_of
from imgindex.indexing.shard_backend import SHARD_BACKEND
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.ann.shard_index import ShardIndex
from imgindex.runtime.temporary_folder import TemporaryFolder
from imgindex.text import counted

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

_ALL = slice(None)
_TOO_LARGE = "the features do not fit into the memory that is set aside for it"


@dataclass(frozen=True)
class Ladder:
    """Measures every way to search with the same `queries`."""

    collection: Collection
    queries: Items
    features: FeatureSearch
    k: int
    seed: int  # draws the queries that Annoy is asked where these are fewer

    @property
    def ranks(self) -> int:
        """How many answers each query asks for."""
        return max(self.k, RECALL_K)

    def rungs(self, annoy_seconds: float | None) -> tuple[Rung, ...]:
        """All of them. Annoy's index of PCA vectors took `annoy_seconds` to build."""
        return (
            self._exact_features(),
            self._exact_vectors(),
            self._annoy_vectors(annoy_seconds),
            self._annoy_features(),
        )

    def _exact_features(self) -> Rung:
        rows, dims = self.features.rows, self.collection.manifest.feature_dim
        return self._rung(
            "exact, features",
            dims,
            self.features.answers,
            None if rows is None else time_exact([rows], self.features.queries, "angular", self.ranks),
            0.0,
            len(self.collection) * dims * 4,
        )

    def _exact_vectors(self) -> Rung:
        vectors, manifest = self.collection.vectors, self.collection.manifest
        return self._rung(
            f"exact, PCA {manifest.dims}",
            manifest.dims,
            search_vectors(self.collection, vectors, self.queries, self.ranks),
            time_exact(vectors.parts, vectors[self.queries], manifest.metric, self.ranks),
            manifest.timings.get("pca"),
            vectors.nbytes,
        )

    def _annoy_vectors(self, seconds: float | None) -> Rung:
        manifest = self.collection.manifest
        indexes = {shard.index for shard in manifest.shards}
        size = sum(file.size for file in manifest.files if file.path in indexes)
        vectors, shards = self.collection.vectors[self.queries], self.collection.shards
        return self._annoy(f"Annoy, PCA {manifest.dims}", manifest.dims, shards, vectors, seconds, size)

    def _annoy_features(self) -> Rung:
        method, manifest, rows = "Annoy, features", self.collection.manifest, self.features.rows
        dims = manifest.feature_dim
        if rows is None:
            return Rung(method, dims, note=_TOO_LARGE)
        with TemporaryFolder() as folder:
            path = Path(folder, "index.ann")
            started = time.perf_counter()
            settings = {"trees": manifest.shards[0].trees, "seed": 0}
            SHARD_BACKEND.build(rows, path, metric="angular", settings=settings)
            seconds = time.perf_counter() - started
            shards = (SHARD_BACKEND.open(path, metric="angular", dims=dims, items=len(rows)),)
            return self._annoy(method, dims, shards, self.features.queries, seconds, path.stat().st_size)

    def _annoy(
        self,
        method: str,
        dims: int,
        shards: Sequence[ShardIndex],
        vectors: Float32,
        seconds: float | None,
        size: int,
    ) -> Rung:
        """What Annoy's files answer to the queries, whose `vectors` [q, dims] are given."""
        collection, manifest = self.collection, self.collection.manifest
        most = annoy_search.most_asked(manifest, self.ranks)
        asked = some_of(np.arange(len(self.queries)), most, self.seed)
        queries, vectors = self.queries[asked], vectors[asked]
        found = annoy_search.answers(
            shards,
            np.arange(len(collection)),
            vectors,
            left_out=collection.contents[queries],
            contents=collection.contents,
            copies=collection.copies[queries],
            ranks=self.ranks,
            search_k=manifest.search_k,
        )

        def search(query: Float32) -> object:
            return annoy_search.nearest(shards, query, self.ranks, manifest.search_k)

        rung = self._rung(method, dims, found, time_queries(search, vectors), seconds, size, asked)
        if len(asked) == len(self.queries):
            return rung
        few = counted(len(asked), "query", "queries")
        return replace(rung, note=f"{few} only, for each inspects up to {manifest.search_k:,} nodes a shard")

    def _rung(
        self,
        method: str,
        dims: int,
        found: Items,
        timing: Timing | None,
        seconds: float | None,
        size: int,
        asked: Items | slice = _ALL,
    ) -> Rung:
        """The figures of answers to those of the queries that were `asked`."""
        judged = precisions(self.collection, self.queries[asked], found, self.k)
        exact = self.features.answers[asked, :RECALL_K]
        return Rung(
            method=method,
            dims=dims,
            p_at_k=None if judged is None else float(judged.mean()),
            recall_at_10=float(recalls(self.collection, found[:, :RECALL_K], exact).mean()),
            ms_per_query=timing.p50 if timing else None,
            ms_p95=timing.p95 if timing else None,
            ms_p99=timing.p99 if timing else None,
            queries_per_second=timing.per_second if timing else None,
            build_seconds=seconds,
            bytes=size,
            note="" if timing else _TOO_LARGE,
        )
