"""What a sample of images has next to it: the nearest, the closest pairs, and where all of them lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import NO_LABEL, Images
from imgindex.evaluation.feature_search import search_vectors
from imgindex.models.similarity import cosine_similarity

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

# Neighbors of a query that are shown, at most.
_MOST_SHOWN = 12
_SAMPLE = 1000
_PAIRS = 8
_ON_MAP = 600
# A map is divided into so many cells by so many, of each of which one image is shown as a picture.
_COLUMNS, _ROWS = 11, 7


@dataclass(frozen=True)
class Query:
    """An image, and those nearest to it, the nearest first; cosines of both."""

    image: int
    neighbors: tuple[int, ...]
    cosines: tuple[float, ...]


@dataclass(frozen=True)
class Map:
    """Where a sample of images lies: x and y from 0 to 1, and those of them that are shown as pictures."""

    images: Items  # [n]
    places: Float32  # [n, 2]
    pictures: tuple[int, ...]  # rows of `images`


@dataclass(frozen=True)
class Neighborhoods:
    """The nearest images of a sample, by exact search in the vectors; copies of a query are no answers."""

    collection: Images
    queries: Items  # [q]
    answers: Items  # [q, shown], -1 where there are no more
    cosines: Float32  # [q, shown]

    @property
    def shown(self) -> int:
        """How many neighbors of a query are shown."""
        return int(self.answers.shape[1])

    @property
    def nearest(self) -> Float32:
        """The cosine of each query and its nearest image, of those that have one."""
        nearest: Float32 = self.cosines[self.answers[:, 0] >= 0, 0]
        return nearest

    def pairs(self) -> list[Query]:
        """The closest pairs of a query and its nearest image, each pair once."""
        found: dict[tuple[int, int], Query] = {}
        contents = self.collection.contents
        for row in np.argsort(-np.where(self.answers[:, 0] >= 0, self.cosines[:, 0], -np.inf), kind="stable"):
            one, other = int(self.queries[row]), int(self.answers[row, 0])
            if other < 0 or len(found) == _PAIRS:
                break
            key = tuple(sorted((int(contents[one]), int(contents[other]))))
            found.setdefault((key[0], key[1]), self._query(int(row), 1))
        return list(found.values())

    def of_label(self, label: str, count: int) -> list[Query]:
        """Queries of a label, those with the fewest right neighbors first."""
        number = self.collection.label_names.index(label)
        rows = np.flatnonzero(self.collection.labels[self.queries] == number)
        answers = self.answers[rows]
        hits = ((self.collection.labels[answers] == number) & (answers >= 0)).sum(axis=1)
        return [self._query(int(row)) for row in rows[np.argsort(hits, kind="stable")][:count]]

    def some(self, count: int) -> list[Query]:
        """Queries of the whole sample, evenly spread."""
        rows = np.unique(np.linspace(0, len(self.queries) - 1, min(count, len(self.queries))).astype(int))
        return [self._query(int(row)) for row in rows]

    def _query(self, row: int, most: int = _MOST_SHOWN) -> Query:
        kept = np.flatnonzero(self.answers[row] >= 0)[:most]
        return Query(
            int(self.queries[row]),
            tuple(self.answers[row, kept].tolist()),
            tuple(self.cosines[row, kept].tolist()),
        )

    def map(self, most_pictures: int) -> Map | None:
        """Part of the sample by the first two principal components; None where there are no two."""
        if self.collection.manifest.dims < 2 or len(self.queries) < 3:
            return None
        images = self.queries[:: -(-len(self.queries) // _ON_MAP)]
        places = self.collection.vectors[images][:, :2]
        low, high = np.quantile(places, [0.01, 0.99], axis=0)
        places = np.clip((places - low) / np.maximum(high - low, np.finfo(np.float32).tiny), 0, 1)
        return Map(images, places, _spread(places, most_pictures))


def _spread(places: Float32, most: int) -> tuple[int, ...]:
    """Rows of `places` [n, 2], each nearest to the middle of a cell of its own."""
    scaled = places * (_COLUMNS - 1e-3, _ROWS - 1e-3)
    cells = np.floor(scaled)
    offsets = np.abs(scaled - cells - 0.5).max(axis=1)
    best: dict[tuple[float, ...], int] = {}
    for row in np.argsort(offsets, kind="stable"):
        best.setdefault(tuple(cells[row]), int(row))
    return tuple(sorted(best.values(), key=lambda row: float(offsets[row]))[:most])


def look_around(collection: Images, seed: int, k: int) -> Neighborhoods:
    """Finds the `k` images nearest to each of a sample that `seed` draws; 12 at most."""
    count = len(collection)
    queries = np.arange(count)
    if count > _SAMPLE:
        queries = np.sort(np.random.default_rng(seed).choice(count, _SAMPLE, replace=False))
    vectors = collection.vectors
    answers = search_vectors(collection, vectors, queries, min(k, _MOST_SHOWN, count))
    cosines = np.stack(
        [
            cosine_similarity(vectors[row], vectors[query : query + 1])[0]
            for query, row in zip(queries, answers, strict=True)
        ]
    )
    return Neighborhoods(collection, queries, answers, np.where(answers >= 0, cosines, -1))


def label_of(collection: Images, image: int) -> str | None:
    """The name of an image's label."""
    number = int(collection.labels[image])
    return None if number == NO_LABEL else collection.label_names[number]


def names_of(collection: Images, images: Sequence[int]) -> list[str]:
    """The uris of images."""
    return [collection.uris[image].as_py() for image in images]
