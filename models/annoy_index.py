"""One Annoy shard: building it from vectors, opening and searching it, measuring its recall."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from imgindex.errors import OutputError
from imgindex.models.similarity import exact_nearest, exact_squares, rank

Metric = Literal["angular", "euclidean"]
METRICS: tuple[Metric, ...] = ("angular", "euclidean")

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Items = npt.NDArray[np.int64]
Contents = npt.NDArray[np.integer]

RECALL_K = 10
RECALL_SAMPLE = 200

# Values of Annoy's `search_k`, the nodes that a search inspects, at which recall is measured. Those behind
# the usual ones are for shards in which thousands of copies of an image lie in the way of all others.
USUAL_EFFORTS = tuple(100 << step for step in range(8))
EFFORTS = (*USUAL_EFFORTS, *(100 << step for step in range(8, 14)))

# Tree counts that `auto` chooses among.
AUTO_TREES = (10, 20, 40, 80)

# Annoy takes it as an int of C.
_MAX_SEARCH_K = 2**31 - 1

# By how much more neighbours are asked for where copies of an image take up an answer.
_DEEPER = 8

# Nodes that are looked at at once: of 150 dimensions 10 MiB.
_CHECKED_NODES = 1 << 14

# How Annoy 1.17 lays out a node (annoylib.h). Items are the file's first nodes, in the order of their ids,
# so that their vectors can be mapped instead of being copied out one Python list at a time.
_NODE_FIELDS: dict[Metric, list[tuple[Any, ...]]] = {
    "angular": [("descendants", "i4"), ("children", "i4", 2)],
    "euclidean": [("descendants", "i4"), ("plane", "f4"), ("children", "i4", 2)],
}


def build_shard(
    blocks: Iterable[tuple[Items, Float32]],
    path: Path,
    *,
    items: int,
    dims: int,
    metric: Metric,
    trees: int,
    seed: int,
    on_disk: bool = False,
) -> None:
    """Writes an Annoy file of `items` vectors, at least one.

    Each of `blocks` is item numbers [n] and their vectors [n, dims]; each item from 0 to `items` - 1 comes
    once, in any order. The file's bytes depend on vectors and arguments alone: Annoy's builds are
    reproducible on one thread, in memory or, for `on_disk`, in the mapped file, whose pages the system can
    take back. Raises OutputError where Annoy cannot write `path`.
    """
    from annoy import AnnoyIndex

    index = AnnoyIndex(dims, metric)
    index.set_seed(seed)  # before the first item, as Annoy wants it
    if on_disk:
        _prepare_file(path, build_bytes(items, dims, trees))
        index.on_disk_build(str(path))
    index.add_item(items - 1, [0.0] * dims)  # room for all at once, where it would grow again and again
    for numbers, vectors in blocks:
        # Lists: Annoy takes an array's values one NumPy scalar at a time.
        for item, vector in zip(numbers.tolist(), vectors.tolist(), strict=True):
            index.add_item(item, vector)
    index.build(trees, n_jobs=1)
    if on_disk:
        index.unload()
        return
    try:
        index.save(str(path))
    except OSError as error:
        raise OutputError(f"Annoy could not write {path}: {error}") from error


def _prepare_file(path: Path, size: int) -> None:
    """Makes an empty file that Annoy can map. Raises OutputError where it could not grow to `size` bytes."""
    # A mapped file that the disk has no room for ends the process.
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OutputError(f"{path.parent} has {free} bytes free, of {size} that a shard is built in")
    # Annoy would make it for its owner alone.
    path.touch()


class AnnoyShard:
    """An opened Annoy file: approximate and exact nearest items of a vector."""

    def __init__(self, path: Path, *, metric: Metric, dims: int, items: int) -> None:
        """Maps `path`. Raises OutputError where it does not hold `items` vectors of `dims` values."""
        from annoy import AnnoyIndex

        self.metric = metric
        self._index = AnnoyIndex(dims, metric)
        node = np.dtype([*_NODE_FIELDS[metric], ("vector", "f4", (dims,))])
        try:
            self._index.load(str(path))
        except OSError as error:
            raise OutputError(f"{path} is no Annoy file of {dims} dimensions: {error}") from error
        if self._index.get_n_items() != items:
            raise OutputError(
                f"{path} holds {self._index.get_n_items()} items; its manifest promises {items}"
            )
        nodes = np.memmap(path, dtype=node, mode="r")
        # Other dimensions can come as far as this: the last node counts the items whatever its length.
        if len(nodes) < items or nodes["descendants"][items - 1] != 1:
            raise OutputError(
                f"{path} is no Annoy file of {dims} dimensions: item {items - 1} is out of place"
            )
        self._nodes = nodes
        self.vectors: Float32 = nodes["vector"][:items]
        if not np.array_equal(self.vectors[-1], np.array(self._index.get_item_vector(items - 1), np.float32)):
            raise OutputError(f"{path}: the installed Annoy lays out its nodes in another way")

    def check_nodes(self) -> None:
        """Reads every node. Raises OutputError where Annoy, which checks none, would follow one astray.

        So it does for vectors that are not finite, which are at no distance from anything.

        An item's node has one descendant. Those behind hold either as many items as they have descendants,
        where these fit in, or two nodes that were written before them: there is no way in a circle.
        """
        items = len(self.vectors)
        first = len(_NODE_FIELDS[self.metric]) - 1  # of the children; a field is a word
        words = self._nodes.view(np.int32).reshape(len(self._nodes), -1)
        most = words.shape[1] - first
        for start in range(0, len(words), _CHECKED_NODES):
            numbers = np.arange(start, min(start + _CHECKED_NODES, len(words)))
            descendants = words[numbers, 0]
            lists = (numbers >= items) & (descendants <= most)
            splits = numbers[(numbers >= items) & (descendants > most)]
            held = words[numbers[lists], first:]
            unused = np.arange(most) >= descendants[lists, np.newaxis]
            children = words[splits, first : first + 2]
            if not np.isfinite(self.vectors[start : start + _CHECKED_NODES]).all():
                raise OutputError(f"one of its vectors {start} to {numbers[-1]} is not finite")
            if not (
                (descendants[numbers < items] == 1).all()
                and (descendants[lists] >= 1).all()
                and (unused | ((held >= 0) & (held < items))).all()
                and ((children >= 0) & (children < splits[:, np.newaxis])).all()
            ):
                raise OutputError(f"one of its nodes {numbers[0]} to {numbers[-1]} leads nowhere")

    def nearest(
        self, queries: Float32, k: int, search_k: int | None = None, contents: Contents | None = None
    ) -> list[tuple[Items, Float32]]:
        """For each of `queries` [n, dims], at most `k` near items and their distances, nearest first.

        Args:
          queries: finite.
          k: how many items.
          search_k: how many nodes Annoy inspects; None searches exactly, by brute force.
          contents: a number for each item, the same for copies of an image. Each content is then found once,
            and what is given is `k` contents where the inspected nodes hold so many.
        """
        if search_k is None:
            items = None if contents is None else first_items(contents)
            return exact_nearest(self.vectors, queries, k, self.metric, items)
        return [self._inspect(query, k, search_k, contents) for query in queries]

    def _inspect(
        self, query: Float32, k: int, search_k: int, contents: Contents | None
    ) -> tuple[Items, Float32]:
        asked = k = min(k, len(self.vectors))
        search_k = min(search_k, _MAX_SEARCH_K)
        while True:
            found = np.array(self._index.get_nns_by_vector(query, asked, search_k=search_k), np.int64)
            items = found if contents is None else found[first_items(contents[found])]
            if contents is None or len(items) >= k or len(found) < asked or asked == len(self.vectors):
                break
            asked = min(asked * _DEEPER, len(self.vectors))
        items = items[:k]
        # Annoy's own distances are float32, in which small ones are noise.
        order, squares, _ = rank(self.vectors[items], query, self.metric, k)
        return items[order], np.sqrt(squares).astype(np.float32)


def first_items(contents: Contents) -> Items:
    """The first item of each content, in ascending order."""
    return np.sort(np.unique(contents, return_index=True)[1])


def measure_recall(shard: AnnoyShard, contents: Contents | None = None, target: float = 0.0) -> list[float]:
    """Recall@10 of distinct images against exact search at each of `EFFORTS`, cheapest first.

    Beyond the usual ones it is measured until it reaches `target`; for those that follow it is no less.

    `contents` has a number for each item, the same for copies of an image; None: there are no copies. The
    queries are the contents of `recall_sample`. What they are to find are the ten nearest other contents:
    were copies counted, an image that is there a thousand times would be found for certain and stand for all
    others. Whatever is as near as the last of the ten counts, but for Annoy's rounding, by which it chooses
    where distances are all but equal. A shard of a single content has nothing to find and a recall of 1.
    """
    if contents is None:
        contents = np.arange(len(shard.vectors))
    sample = recall_sample(contents)
    queries = np.ascontiguousarray(shard.vectors[sample])
    wanted = min(RECALL_K, len(np.unique(contents)) - 1)
    if not wanted:
        return [1.0] * len(EFFORTS)

    def others(item: np.int64, found: Items) -> tuple[Floats, Floats]:
        """Squared distances of what was found for an item beside itself, and their errors."""
        found = found[contents[found] != contents[item]][:wanted]
        return exact_squares(shard.vectors[found], shard.vectors[item], shard.metric)

    # One more than is compared, for an item is its own nearest neighbour.
    answers = shard.nearest(queries, wanted + 1, None, contents)
    limits = [
        _as_near_to_annoy(np.add(*others(item, exact)).max(), shard)
        for item, (exact, _) in zip(sample, answers, strict=True)
    ]
    recalls: list[float] = []
    for effort in EFFORTS:
        if len(recalls) >= len(USUAL_EFFORTS) and recalls[-1] >= target:
            recalls.append(recalls[-1])  # more nodes hold no less
            continue
        hits = 0
        answers = shard.nearest(queries, wanted + 1, effort, contents)
        for item, limit, (found, _) in zip(sample, limits, answers, strict=True):
            squares, errors = others(item, found)
            hits += int(np.count_nonzero(squares - errors <= limit))
        recalls.append(hits / (len(sample) * wanted))
    return recalls


def _as_near_to_annoy(square: float, shard: AnnoyShard) -> float:
    """Up to which squared distance Annoy may take an item for as near as one at `square`.

    It sums in float32, whose errors grow with the root of their number (Higham and Mary, A New Approach to
    Probabilistic Rounding Error Analysis, 2019): for the angular distance those of products of unit vectors,
    for the euclidean one those of the squared distance itself.
    """
    rounding = 2.0**-22 * float(np.sqrt(shard.vectors.shape[1]))
    return square + rounding * (1.0 if shard.metric == "angular" else square)


def recall_sample(contents: Contents) -> Items:
    """The items that recall is measured with: at most `RECALL_SAMPLE` contents, evenly spread over all."""
    firsts = first_items(contents)
    places = np.linspace(0, len(firsts) - 1, min(len(firsts), RECALL_SAMPLE))
    return firsts[np.unique(places.astype(np.int64))]


def cheapest_effort(recalls: Sequence[float], target: float) -> int:
    """Which of `EFFORTS` is the least to reach `target`; the one of best recall where none does."""
    for step, recall in enumerate(recalls):
        if recall >= target:
            return step
    return int(np.argmax(recalls))


def estimate_bytes(items: int, dims: int, trees: int) -> int:
    """About the size of an Annoy file, in bytes.

    A leaf holds at most dims + 2 items; random splits leave leaves about two thirds full, and a tree has
    about as many inner nodes as leaves, with the copy of its root.
    """
    node = 12 + 4 * dims
    leaves = 1.5 * items / (dims + 2) if items > dims + 2 else 1.0
    return round(node * (items + 2 * trees * leaves))


def build_bytes(items: int, dims: int, trees: int) -> int:
    """At most what Annoy takes to build a file, in bytes: it makes room for 1.3 times what it has."""
    return round(1.3 * estimate_bytes(items, dims, trees))
