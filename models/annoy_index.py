"""One Annoy shard: building it from vectors, opening and searching it, exact search beside it."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from imgindex.errors import OutputError

Metric = Literal["angular", "euclidean"]
METRICS: tuple[Metric, ...] = ("angular", "euclidean")

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]
Items = npt.NDArray[np.int64]

RECALL_K = 10
RECALL_SAMPLE = 200

# Values of Annoy's `search_k`, the nodes that a search inspects, at which recall is measured.
EFFORTS = tuple(100 << step for step in range(8))

# Tree counts that `auto` chooses among.
AUTO_TREES = (10, 20, 40, 80)

# Distances in float64 that differ by less are equal: the root of a difference's rounding is up to some 1e-7.
_TIE = 1e-6

# Rows that exact search compares at once: 64 Ki distances a query are 256 KiB.
_EXACT_ROWS = 1 << 16

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

    def nearest(self, queries: Float32, k: int, search_k: int | None = None) -> list[tuple[Items, Float32]]:
        """For each of `queries` [n, dims], at most `k` near items and their distances, nearest first.

        `search_k` is how many nodes Annoy inspects; None searches exactly, by brute force.
        """
        if search_k is None:
            return exact_nearest(self.vectors, queries, k, self.metric)
        found = []
        for query in queries:
            items, distances = self._index.get_nns_by_vector(
                query, k, search_k=search_k, include_distances=True
            )
            found.append((np.array(items, np.int64), np.array(distances, np.float32)))
        return found


def exact_nearest(vectors: Float32, queries: Float32, k: int, metric: Metric) -> list[tuple[Items, Float32]]:
    """For each of `queries` [m, dims], the `k` nearest of `vectors` [n, dims] and their distances.

    Of equal distances the lower row comes first.
    """
    best = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    for start in range(0, len(vectors), _EXACT_ROWS):
        block = np.ascontiguousarray(vectors[start : start + _EXACT_ROWS])
        for query, distances in enumerate(exact_distances(block, queries, metric)):
            items = np.concatenate([best[query][0], np.arange(start, start + len(block))])
            distances = np.concatenate([best[query][1], distances])
            if len(distances) > k:
                # Keeps every row that ties with the k-th, which argpartition alone would not.
                near = distances <= np.partition(distances, k - 1)[k - 1]
                items, distances = items[near], distances[near]
            order = np.argsort(distances, kind="stable")[:k]
            best[query] = items[order], distances[order]
    return best


def exact_distances(vectors: Floats, queries: Floats, metric: Metric) -> Floats:
    """Distances [m, n] of `queries` [m, dims] to `vectors` [n, dims], as Annoy defines them.

    Angular distance is sqrt(2 (1 - cos)); a zero vector is at right angles to everything.
    """
    if metric == "angular":
        return np.sqrt(np.maximum(0, 2 - 2 * cosine_similarity(vectors, queries)))
    squares = np.square(vectors).sum(axis=1) + np.square(queries).sum(axis=1)[:, np.newaxis]
    distances: Floats = np.sqrt(np.maximum(0, squares - 2 * (queries @ vectors.T)))
    return distances


def cosine_similarity(vectors: Floats, queries: Floats) -> Floats:
    """Cosines [m, n] of `queries` [m, dims] with `vectors` [n, dims]; 0 for a zero vector."""
    norms = np.linalg.norm(queries, axis=1)[:, np.newaxis] * np.linalg.norm(vectors, axis=1)
    dots = queries @ vectors.T
    cosines: Floats = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return np.clip(cosines, -1, 1, out=cosines)


def measure_recall(shard: AnnoyShard) -> list[float]:
    """Recall@10 against exact search at each of `EFFORTS`, cheapest first.

    The queries are at most `RECALL_SAMPLE` of the shard's own items, evenly spread, each left out of its own
    answer. Whatever is as near as the last of the exact neighbours counts, for copies of an image tie and
    which of them are found is chance. A shard of a single item has nothing to find and a recall of 1.
    """
    items = len(shard.vectors)
    sample = np.unique(np.linspace(0, items - 1, min(items, RECALL_SAMPLE)).astype(np.int64))
    queries = np.ascontiguousarray(shard.vectors[sample])
    # One more than is compared, for an item is its own nearest neighbour.
    k = min(RECALL_K + 1, items)
    limits = [
        _distances(shard, item, exact[exact != item][:RECALL_K]).max(initial=0) + _TIE
        for item, (exact, _) in zip(sample, shard.nearest(queries, k), strict=True)
    ]
    wanted = len(sample) * (k - 1)
    recalls = []
    for effort in EFFORTS:
        hits = 0
        answers = shard.nearest(queries, k, effort)
        for item, limit, (found, _) in zip(sample, limits, answers, strict=True):
            distances = _distances(shard, item, found[found != item][:RECALL_K])
            hits += int(np.count_nonzero(distances <= limit))
        recalls.append(hits / wanted if wanted else 1.0)
    return recalls


def cheapest_effort(recalls: Sequence[float], target: float) -> int:
    """Which of `EFFORTS` is the least to reach `target`; the one of best recall where none does."""
    for step, recall in enumerate(recalls):
        if recall >= target:
            return step
    return int(np.argmax(recalls))


def _distances(shard: AnnoyShard, item: np.int64, others: Items) -> Floats:
    """The distances of items to an item in float64, in which equal vectors are equally far but for `_TIE`."""
    vectors = shard.vectors[others].astype(np.float64)
    query = shard.vectors[item][np.newaxis].astype(np.float64)
    distances: Floats = exact_distances(vectors, query, shard.metric)[0]
    return distances


def estimate_bytes(items: int, dims: int, trees: int) -> int:
    """About the size of an Annoy file, in bytes.

    A leaf holds at most dims + 2 items; random splits leave leaves about two thirds full, and a tree has
    about as many inner nodes as leaves.
    """
    node = 12 + 4 * dims
    leaves = max(1.0, 1.5 * items / (dims + 2))
    return round(node * (items + 2 * trees * leaves))


def build_bytes(items: int, dims: int, trees: int) -> int:
    """At most what Annoy takes to build a file, in bytes: it makes room for 1.3 times what it has."""
    return round(1.3 * estimate_bytes(items, dims, trees))
