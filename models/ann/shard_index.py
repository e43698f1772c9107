"""The index of a shard: approximate answers of a library, exact ones, and answers without copies."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from imgindex.models.ann.protocol import AnnIndex, Float32, Items, Metric, SearchSettings
from imgindex.models.similarity import exact_nearest, rank

Contents = npt.NDArray[np.integer]

# By how much more neighbors are asked for where copies of an image take up an answer.
_DEEPER = 8


class ShardIndex(AnnIndex):
    """An opened index file that also holds its vectors: approximate and exact nearest items of a vector.

    It is pickled as the path of its file, which is opened again where it is unpickled.
    """

    # The searches that recall is measured of, the quickest first. Those behind the first `usual_searches` are
    # for shards in which thousands of copies of an image lie in the way of all others.
    searches: ClassVar[tuple[SearchSettings, ...]]
    usual_searches: ClassVar[int]

    metric: Metric
    vectors: Float32  # [items, dims]

    @abstractmethod
    def check(self) -> None:
        """Reads every byte. Raises OutputError where a search would go astray."""

    def nearest(
        self,
        queries: Float32,
        k: int,
        settings: SearchSettings | None = None,
        contents: Contents | None = None,
    ) -> list[tuple[Items, Float32]]:
        """For each of `queries` [n, dims], at most `k` near items and their distances, nearest first.

        Args:
          queries: finite.
          k: how many items.
          settings: of the approximate search; None searches exactly, by brute force.
          contents: a number for each item, the same for copies of an image. Each content is then found once,
            and what is given is `k` contents where the search came across so many.
        """
        if not len(queries):
            return []  # without a look at all contents
        if settings is None:
            items = None if contents is None else first_items(contents)
            return exact_nearest(self.vectors, queries, k, self.metric, items)
        answers = []
        for query in queries:
            items = self.candidates(query, k, settings, contents)
            # A library's own distances are float32, in which small ones are noise.
            order, squares, _ = rank(self.vectors[items], query, self.metric, k)
            answers.append((items[order], np.sqrt(squares).astype(np.float32)))
        return answers

    def candidates(
        self, query: Float32, k: int, settings: SearchSettings, contents: Contents | None = None
    ) -> Items:
        """The items that `nearest` gives for `query` [dims], in the order of the library."""
        asked = k = min(k, len(self.vectors))
        while True:
            found, _ = self.search(query, asked, settings)
            items = found if contents is None else found[first_items(contents[found])]
            if contents is None or len(items) >= k or len(found) < asked or asked == len(self.vectors):
                break
            asked = min(asked * _DEEPER, len(self.vectors))
        return items[:k]


def first_items(contents: Contents) -> Items:
    """The first item of each content, in ascending order."""
    return np.sort(np.unique(contents, return_index=True)[1])
