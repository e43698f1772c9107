"""Annoy, the library that shards are written with; `trees` and `search_k` are its words."""

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imgindex.errors import OutputError
from imgindex.models.ann.protocol import AnnBackend, BuildSettings, Float32, Items, Metric, SearchSettings
from imgindex.models.ann.shard_index import ShardIndex

# Tree counts that `index.trees: auto` chooses among.
AUTO_TREES = (10, 20, 40, 80)

# Annoy takes it as an int of C.
_MAX_SEARCH_K = 2**31 - 1

# Nodes that are looked at at once: of 150 dimensions 10 MiB.
_CHECKED_NODES = 1 << 14

# How Annoy 1.17 lays out a node (annoylib.h). Items are the file's first nodes, in the order of their ids,
# so that their vectors can be mapped instead of being copied out one Python list at a time.
_NODE_FIELDS: dict[Metric, list[tuple[Any, ...]]] = {
    "angular": [("descendants", "i4"), ("children", "i4", 2)],
    "euclidean": [("descendants", "i4"), ("plane", "f4"), ("children", "i4", 2)],
}


class Annoy(AnnBackend):
    """Annoy as an `AnnBackend`. It is built with `trees` and a `seed`, and searched with `search_k`."""

    name = "annoy"

    def build(self, vectors: Float32, path: Path, *, metric: Metric, settings: BuildSettings) -> None:
        """As `AnnBackend.build`."""
        items, dims = vectors.shape
        blocks = [(np.arange(items), vectors)]
        self.build_blocks(blocks, path, items=items, dims=dims, metric=metric, settings=settings)

    def build_blocks(
        self,
        blocks: Iterable[tuple[Items, Float32]],
        path: Path,
        *,
        items: int,
        dims: int,
        metric: Metric,
        settings: BuildSettings,
        on_disk: bool = False,
        threads: int = 1,
    ) -> None:
        """Writes an Annoy file of `items` vectors, at least one, which need not be in memory together.

        Each of `blocks` is item numbers [n] and their vectors [n, dims]; each item from 0 to `items` - 1
        comes once, in any order. On one thread, the file's bytes depend on vectors and arguments alone. On
        several `threads` its trees do, but for how they split copies of a vector, and they come in any order.
        For `on_disk` the index is built in the mapped file, whose pages the system can take back. Raises
        OutputError where Annoy cannot write `path`.
        """
        from annoy import AnnoyIndex

        index = AnnoyIndex(dims, metric)
        index.set_seed(int(settings["seed"]))  # before the first item, as Annoy wants it
        if on_disk:
            _prepare_file(path, self.build_bytes(items, dims, settings))
            index.on_disk_build(str(path))
        index.add_item(items - 1, [0.0] * dims)  # room for all at once, where it would grow again and again
        for numbers, vectors in blocks:
            # Lists: Annoy takes an array's values one NumPy scalar at a time.
            for item, vector in zip(numbers.tolist(), vectors.tolist(), strict=True):
                index.add_item(item, vector)
        index.build(int(settings["trees"]), n_jobs=threads)
        if on_disk:
            index.unload()
            return
        try:
            index.save(str(path))
        except OSError as error:
            raise OutputError(f"Annoy could not write {path}: {error}") from error

    def open(self, path: Path, *, metric: Metric, dims: int, items: int) -> "AnnoyShard":
        """As `AnnBackend.open`."""
        return AnnoyShard(path, metric=metric, dims=dims, items=items)

    def file_bytes(self, items: int, dims: int, settings: BuildSettings) -> int:
        """About the size of an Annoy file, in bytes.

        A leaf holds at most dims + 2 items; random splits leave leaves about two thirds full, and a tree has
        about as many inner nodes as leaves, with the copy of its root.
        """
        node = 12 + 4 * dims
        leaves = 1.5 * items / (dims + 2) if items > dims + 2 else 1.0
        return round(node * (items + 2 * int(settings["trees"]) * leaves))

    def build_bytes(self, items: int, dims: int, settings: BuildSettings) -> int:
        """At most what Annoy takes to build a file, in bytes: it makes room for 1.3 times what it has."""
        return round(1.3 * self.file_bytes(items, dims, settings))


def _prepare_file(path: Path, size: int) -> None:
    """Makes an empty file that Annoy can map. Raises OutputError where it could not grow to `size` bytes."""
    # A mapped file that the disk has no room for ends the process.
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OutputError(f"{path.parent} has {free} bytes free, of {size} that a shard is built in")
    # Annoy would make it for its owner alone.
    path.touch()


class AnnoyShard(ShardIndex):
    """An opened Annoy file."""

    searches = tuple({"search_k": 100 << step} for step in range(14))
    usual_searches = 8

    def __init__(self, path: Path, *, metric: Metric, dims: int, items: int) -> None:
        """Maps `path`. Raises OutputError where it does not hold `items` vectors of `dims` values."""
        from annoy import AnnoyIndex

        self.metric = metric
        self._opened_as = partial(AnnoyShard, path.absolute(), metric=metric, dims=dims, items=items)
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

    def __reduce__(self) -> tuple[Callable[[], "AnnoyShard"], tuple[()]]:
        return self._opened_as, ()

    def search(self, query: Float32, k: int, settings: SearchSettings) -> tuple[Items, Float32]:
        """As `AnnIndex.search`, with `search_k`, the number of nodes that are inspected."""
        search_k = min(settings["search_k"], _MAX_SEARCH_K)
        # A list: Annoy takes an array's values one NumPy scalar at a time.
        items, distances = self._index.get_nns_by_vector(
            query.tolist(), k, search_k=search_k, include_distances=True
        )
        return np.array(items, np.int64), np.array(distances, np.float32)

    def check(self) -> None:
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
