"""Pairs of images that may be duplicates: what the index finds next to each, and what cannot be ruled out.

A vector is a feature after a rotation that leaves out some dimensions, and after whitening, which can be
undone. So two features are at least as far apart as their vectors are without whitening. Of L2-normalized
features with a cosine of at least t, that distance is at most sqrt(2 (1 - t)). A pair whose vectors are
farther apart is no pair of duplicates, and its features need not be read.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from imgindex.models.ann.shard_index import ShardIndex
from imgindex.models.pca import Basis, whitening
from imgindex.runtime.resources import available_cores

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

# Candidates of an image in each shard, as long as all of them may be duplicates of it.
MOST = 32
# Vectors that Annoy looks at for them: a duplicate is much nearer than other images, so that a quick search
# finds it. In 10**6 vectors with 40 trees, 1,000 found 99.5 % of 200 images at a cosine of 0.95, 2,000 all
# of them. If both images of a pair are queries, it is enough that one of them finds the other.
_BOTH_WAYS, _ONE_WAY = 1000, 2000
# By how much more is asked for where copies take up all that was found.
_DEEPER = 8
# Images that a thread works on at a time.
_BLOCK = 512

# Stored features are rounded to float16. That multiplies a squared distance by at most the second, after it
# has added at most the first.
_ROUNDING, _PROPORTION = 4 * 2.0**-22, 1 + 2.0**-9


class CandidateSearch:
    """Asks the shards of one generation for what may be a duplicate of a vector."""

    def __init__(
        self,
        shards: Sequence[ShardIndex],
        basis: Basis,
        contents: Items,
        threshold: float,
        *,
        both_ways: bool,
    ) -> None:
        """Of a generation.

        Args:
          shards: its indexes.
          basis: its PCA.
          contents: a number for each image [n], shard after shard; the same for images of the same bytes.
          threshold: the least cosine of the features of duplicates.
          both_ways: whether all images of the generation are queries.
        """
        self._shards = shards
        self._search_k = _BOTH_WAYS if both_ways else _ONE_WAY
        ends = np.cumsum([len(shard.vectors) for shard in shards])
        self._contents = np.split(contents, ends[:-1])
        self._most = (2 * (1 - threshold) + _ROUNDING) * _PROPORTION
        self._scale = (
            whitening(basis.explained_variance, basis.whiten).astype(np.float32) if basis.whiten else None
        )

    def pairs(self, queries: Iterable[tuple[Items, Float32]], count: int) -> Iterator[Items]:
        """Pairs [p, 2] of a query and a content that may be duplicates of each other, some at a time.

        `queries` are blocks of numbers [n] and their vectors [n, dims], `count` in all. A pair comes once. On
        a terminal, standard error shows how far the search is.
        """
        quiet = not sys.stderr.isatty()
        with (
            # Annoy lets go of Python's lock.
            ThreadPoolExecutor(available_cores(), "candidates") as threads,
            tqdm(total=count, desc="comparing", unit=" images", disable=quiet, leave=False) as bar,
        ):
            for numbers, vectors in queries:
                starts = range(0, len(numbers), _BLOCK)
                blocks = [slice(start, start + _BLOCK) for start in starts]
                parts = [numbers[block] for block in blocks]
                found = threads.map(self._near, parts, [vectors[block] for block in blocks])
                for part, pairs in zip(parts, found, strict=True):
                    yield pairs
                    bar.update(len(part))

    def _near(self, numbers: Items, vectors: Float32) -> Items:
        parts = [
            self._near_in(shard, contents, vectors)
            for shard, contents in zip(self._shards, self._contents, strict=True)
        ]
        places, found = np.unique(np.concatenate(parts), axis=0).T
        return np.stack([numbers[places], found], axis=1)

    def _near_in(self, shard: ShardIndex, contents: Items, vectors: Float32) -> Items:
        """Places of `vectors` [n, dims] and the contents of the shard that are near them: pairs [p, 2]."""
        waiting = np.arange(len(vectors))
        asked = MOST + 1  # an image that is indexed finds itself
        pairs = [np.empty((0, 2), np.int64)]
        while len(waiting):
            settings = {"search_k": self._search_k * -(-asked // (MOST + 1))}
            found = [shard.search(vectors[place], asked, settings)[0] for place in waiting]
            counts = np.array([len(items) for items in found])
            places, items = np.repeat(waiting, counts), np.concatenate(found)
            near = self._may_be(vectors[places], shard.vectors[items])
            part = np.unique(np.stack([places[near], contents[items[near]]], axis=1), axis=0)
            pairs.append(part)
            if asked >= len(shard.vectors):
                break
            # If all that was found is near, and most of it is copies, there may be more that is near.
            near_ones = np.bincount(places[near], minlength=len(vectors))[waiting]
            distinct = np.bincount(part[:, 0], minlength=len(vectors))[waiting]
            waiting = waiting[(near_ones == counts) & (counts == asked) & (distinct <= MOST)]
            asked = min(asked * _DEEPER, len(shard.vectors))
        return np.concatenate(pairs)

    def _may_be(self, one: Float32, other: Float32) -> npt.NDArray[np.bool_]:
        differences = one - other
        if self._scale is not None:
            differences *= self._scale
        may_be: npt.NDArray[np.bool_] = np.einsum("ij,ij->i", differences, differences) <= self._most
        return may_be
