"""What Annoy answers, over several shards, without the query's own content."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from imgindex.generations.manifest import Manifest
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.ann.shard_index import ShardIndex
from imgindex.models.similarity import rank
from imgindex.runtime.resources import available_cores

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]

# Nodes that all queries of a measurement inspect together, which takes less than a minute on a core. At least
# so many queries are asked all the same.
_INSPECTED = 10**8
_LEAST_ASKED = 100


def most_asked(manifest: Manifest, ranks: int) -> int:
    """How many queries a measurement asks at most: fewer where a search for `ranks` inspects many nodes."""
    search_k = _deepened(manifest.search_k, ranks)
    inspected = sum(min(search_k, shard.items * shard.trees) for shard in manifest.shards)
    return max(_LEAST_ASKED, _INSPECTED // inspected)


def _deepened(search_k: int, k: int) -> int:
    """How many nodes a search for `k` neighbors inspects.

    Recall was measured with searches for ten neighbors and the query itself. Where more are asked for, a
    search inspects proportionally more.
    """
    return search_k * max(1, -(-k // (RECALL_K + 1)))


def nearest(shards: Sequence[ShardIndex], query: Float32, k: int, search_k: int) -> tuple[Items, Float32]:
    """The shards and items [k, 2] nearest to `query` [dims], and their squared distances [k].

    There are fewer where no more are found.
    """
    settings = {"search_k": _deepened(search_k, k)}
    answers = [shard.nearest(query[np.newaxis], k, settings)[0] for shard in shards]
    if len(shards) == 1:  # it is in exact order
        items, distances = answers[0]
        return np.stack([np.zeros_like(items), items], axis=1), np.square(distances)
    found = [items for items, _ in answers]
    stored = np.concatenate([shard.vectors[items] for shard, items in zip(shards, found, strict=True)])
    order, squares, _ = rank(stored, query, shards[0].metric, k)
    numbers = np.concatenate([np.full(len(items), n) for n, items in enumerate(found)])
    return np.stack([numbers, np.concatenate(found)], axis=1)[order], squares.astype(np.float32)


def answers(
    shards: Sequence[ShardIndex],
    images: Items,
    queries: Float32,
    left_out: Items,
    contents: Items,
    copies: Items,
    ranks: int,
    search_k: int,
) -> Items:
    """The images [queries, ranks] that Annoy finds for `queries` [q, dims]; -1 where there are no more.

    Args:
      shards: the opened files.
      images: the number of the image of each item, shard after shard.
      queries: the vectors that are asked for.
      left_out: the content of each query, which is no answer to it.
      contents: the content of each image.
      copies: how many items have the content of each query.
      ranks: how many answers are wanted.
      search_k: how many nodes Annoy inspects for ten neighbors.
    """
    starts = np.concatenate([[0], np.cumsum([len(shard.vectors) for shard in shards])])
    found = np.full((len(queries), ranks), -1, np.int64)

    def answer(number: int) -> None:
        items, _ = nearest(shards, queries[number], ranks + int(copies[number]), search_k)
        each = images[starts[items[:, 0]] + items[:, 1]]
        each = each[contents[each] != left_out[number]][:ranks]
        found[number, : len(each)] = each

    with ThreadPoolExecutor(available_cores(), "annoy") as threads:  # Annoy lets go of Python's lock
        list(threads.map(answer, range(len(queries))))
    return found
