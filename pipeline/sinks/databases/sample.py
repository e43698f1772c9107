"""A sample of a generation, by which a collection is compared with it."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.models.ann.recall import RECALL_K, RECALL_SAMPLE
from imgindex.models.similarity import exact_nearest, exact_squares
from imgindex.sinks.databases.protocol import Row, Vectors
from imgindex.sinks.source import Batch, Source


class Sample:
    """Images evenly spread over a generation. They are picked as its batches go by."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._images: list[pa.Table] = []
        self._vectors: list[Vectors] = []

    def watched(self) -> Iterator[Batch]:
        """All batches of the generation, of which the sample is picked."""
        items = self._source.manifest.items
        places = np.unique(np.linspace(0, items - 1, min(items, RECALL_SAMPLE)).astype(np.int64))
        start = 0
        for batch in self._source.batches():
            picked = places[(places >= start) & (places < start + len(batch.vectors))] - start
            # One without a direction is as near to everything.
            if self._source.manifest.metric == "angular":
                picked = picked[batch.vectors[picked].any(axis=1)]
            self._images.append(batch.images.take(picked))
            self._vectors.append(batch.vectors[picked])
            start += len(batch.vectors)
            yield batch

    @property
    def images(self) -> list[dict[str, object]]:
        """What the generation says of each image of the sample."""
        rows: list[dict[str, object]] = pa.concat_tables(self._images).to_pylist()
        return rows

    @property
    def vectors(self) -> Vectors:
        """The vectors of the sample, [n, dims]."""
        return np.concatenate(self._vectors)

    def wrong_rows(self, found: Sequence[Row]) -> list[str]:
        """The uris of the sample of which `found` does not have what the generation holds."""
        rows = {row.uri: row for row in found}
        return [
            str(image["uri"])
            for image, vector in zip(self.images, self.vectors, strict=True)
            if not self._is_right(rows.get(str(image["uri"])), image, vector)
        ]

    def _is_right(self, row: Row | None, image: dict[str, object], vector: Vectors) -> bool:
        if row is None or row.vector.shape != vector.shape:
            return False
        same = all(getattr(row, key) == image[key] for key in ("label", "sha256", "width", "height"))
        return same and self._square([row], vector)[0] <= self._as_near(0.0)

    def searched(self, answers: Sequence[Sequence[Row]]) -> tuple[int, float]:
        """How many of the sample did not come first in its own answer, and the recall@10 of the others.

        `answers` are the `depth` nearest of each vector of the sample. Copies of an image are as near as it
        is. What is as near as the last of the exact neighbors counts, but for the rounding of float32.
        """
        exact = self._exact_squares()
        lost = hits = 0
        for rows, vector, squares in zip(answers, self.vectors, exact, strict=True):
            found = self._square(rows, vector)
            if not len(found) or found[0] > self._as_near(0.0):
                lost += 1
            hits += max(0, int(np.count_nonzero(found <= self._as_near(squares[-1]))) - 1)
        wanted = len(exact) * (self.depth - 1)
        return lost, hits / wanted if wanted else 1.0

    @property
    def depth(self) -> int:
        """How many neighbors a search of the sample asks for: itself and ten others, if there are."""
        return min(RECALL_K + 1, self._source.manifest.items)

    def _exact_squares(self) -> npt.NDArray[np.float64]:
        """The squared distances [n, depth] of the nearest of all vectors, in ascending order."""
        vectors, metric = self.vectors, self._source.manifest.metric
        nearest = np.full((len(vectors), self.depth), np.inf)
        for shard in self._source.shards:
            for n, (_, distances) in enumerate(exact_nearest(shard.vectors, vectors, self.depth, metric)):
                both = np.concatenate([nearest[n], distances.astype(np.float64) ** 2])
                nearest[n] = np.sort(both)[: self.depth]
        return nearest

    def _square(self, rows: Sequence[Row], vector: Vectors) -> npt.NDArray[np.float64]:
        """The squared distances of rows to a vector, by the metric of the generation."""
        if not rows:
            return np.empty(0)
        stored = np.stack([row.vector for row in rows])
        return exact_squares(stored, vector, self._source.manifest.metric)[0]

    def _as_near(self, square: float) -> float:
        """Up to which squared distance a database may take a row for as near as one at `square`.

        It sums in float32, and may scale vectors to length 1, which rounds them.
        """
        rounding = 2.0**-20 * float(np.sqrt(self._source.manifest.dims))
        return square + rounding * (1.0 if self._source.manifest.metric == "angular" else square)
