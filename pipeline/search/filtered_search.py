"""Search among the images of a shard that fulfill a filter: few of them exactly, many by asking for more."""

import numpy as np
import numpy.typing as npt

from imgindex.models.ann.protocol import Float32, Items
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.ann.shard_index import Contents, ShardIndex, first_items
from imgindex.models.similarity import exact_nearest, rank

# Vectors that brute force compares for each of many queries in the time in which Annoy looks at one. For a
# single query it is about one, for most of the time goes into reading vectors (10**6 of 150 dimensions).
_QUICKER = 12
# By how much more neighbors are asked for where too few fulfill the filter.
_DEEPER = 4


def nearest_among(
    index: ShardIndex,
    queries: Float32,
    k: int,
    items: Items,
    search_k: int | None = None,
    contents: Contents | None = None,
) -> list[tuple[Items, Float32]]:
    """For each of `queries` [n, dims], at most `k` of `items` that are near, and their distances.

    A search for so many neighbors that `k` of them are among `items` is as deep as it takes to find that many
    with the recall that was measured. Where brute force is quicker, it is used.

    Args:
      index: the shard.
      queries: finite.
      k: how many items.
      items: those that may be answers, in ascending order.
      search_k: of a search for `RECALL_K` neighbors; None searches exactly, by brute force.
      contents: as of `ShardIndex.nearest`; each content is then found once.
    """
    compared = items if contents is None else items[first_items(contents[items])]
    k = min(k, len(compared))
    answers = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    if k == 0:
        return answers
    waiting = list(range(len(queries)))
    if search_k is not None:
        is_among = np.zeros(len(index.vectors), bool)
        is_among[items] = True
        asked = -(-k * len(index.vectors) // len(items))
        while waiting:
            quicker = min(_QUICKER, -(-len(waiting) // 2))
            if len(compared) <= quicker * _depth(search_k, asked):
                break
            left = []
            for number in waiting:
                found, _ = index.search(queries[number], asked, {"search_k": _depth(search_k, asked)})
                answer = _first(found, is_among, contents, k)
                if len(answer) < k:
                    left.append(number)
                    continue
                order, squares, _ = rank(index.vectors[answer], queries[number], index.metric, k)
                answers[number] = answer[order], np.sqrt(squares).astype(np.float32)
            waiting = left
            asked *= _DEEPER
    exact = exact_nearest(index.vectors, queries[waiting], k, index.metric, compared)
    for number, found_exactly in zip(waiting, exact, strict=True):
        answers[number] = found_exactly
    return answers


def _depth(search_k: int, asked: int) -> int:
    return search_k * -(-asked // RECALL_K)


def _first(found: Items, is_among: npt.NDArray[np.bool_], contents: Contents | None, k: int) -> Items:
    """The first `k` items found that may be answers, of each content one."""
    found = found[is_among[found]]
    return (found if contents is None else found[first_items(contents[found])])[:k]
