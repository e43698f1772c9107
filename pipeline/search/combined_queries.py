"""Several queries as one: like these images together, and not like those."""

from collections.abc import Sequence

import numpy as np

from imgindex.errors import UsageError
from imgindex.models.ann.protocol import Metric
from imgindex.models.blocked_search import unit_rows
from imgindex.models.engines.protocol import Engine
from imgindex.search.open_generation import OpenGeneration, Wanted
from imgindex.search.queries import Loaded, Recipe
from imgindex.search.query_vectors import Vectors
from imgindex.search.results import Result

# Names of queries that the name of their combination shows, at most.
_NAMED = 3


class CollectedQueries:
    """Queries that are loaded and embedded as others, and kept instead of being answered."""

    def __init__(self, opened: OpenGeneration) -> None:
        """Of a generation, whose recipe and engine they need."""
        self._opened = opened
        self._parts = [np.empty((0, opened.manifest.dims), np.float32)]
        self._names: list[str] = []
        self.themselves: frozenset[int] = frozenset()  # the contents of the indexed images that they are

    @property
    def recipe(self) -> Recipe:
        """How queries are decoded."""
        return self._opened.recipe

    @property
    def engine(self) -> Engine:
        """What embeds them."""
        return self._opened.engine

    def answers(self, loaded: Sequence[Loaded], wanted: Wanted) -> list[Result]:
        """Keeps the vectors of `loaded`; gives the results of those that have none, with their errors."""
        vectors, errors = self._opened.embedded(loaded)
        kept = [number for number in range(len(loaded)) if number not in errors]
        self._parts.append(vectors[kept])
        self._names += [loaded[number].name for number in kept]
        if wanted.exclude_self and kept:
            self.themselves = self.themselves.union(
                *self._opened.themselves([loaded[number] for number in kept])
            )
        return [Result(loaded[number].name, (), error) for number, error in errors.items()]

    @property
    def vectors(self) -> Vectors:
        """Their vectors [n, dims]."""
        return np.concatenate(self._parts)

    @property
    def name(self) -> str:
        """Their names, of many the first."""
        shown = self._names[:_NAMED]
        more = len(self._names) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")


def combined_answer(
    opened: OpenGeneration, positive: CollectedQueries, negative: CollectedQueries, wanted: Wanted
) -> Result:
    """The answer to the vector that queries make together. Raises UsageError where they make none."""
    vector = combined(positive.vectors, negative.vectors, opened.manifest.metric)
    left_out = [positive.themselves | negative.themselves]
    (neighbors,) = opened.neighbors(vector[np.newaxis], wanted, left_out)
    name = f"{positive.name}; not {negative.name}" if negative.name else positive.name
    return Result(name, neighbors, vector=vector if wanted.vectors else None)


def combined(positive: Vectors, negative: Vectors, metric: Metric) -> Vectors:
    """The vector [dims] of a query that is like `positive` [n, dims], and not like `negative` [m, dims].

    It is mean(positive), or 2 mean(positive) - mean(negative): what Qdrant's recommendations call the average
    vector. With the angular metric, each vector is scaled to length 1 before. Raises UsageError.
    """
    if not len(positive):
        raise UsageError("there is no image to search for; a combined query needs at least one positive one")
    if metric == "angular":
        positive, negative = unit_rows(positive), unit_rows(negative)
    mean = positive.astype(np.float64).mean(axis=0)
    if len(negative):
        mean = 2 * mean - negative.astype(np.float64).mean(axis=0)
    vector: Vectors = mean.astype(np.float32)
    if metric == "angular" and not vector.any():
        raise UsageError("the images of the combined query cancel each other; leave some of them out")
    return vector
