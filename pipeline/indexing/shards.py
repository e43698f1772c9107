"""From projected rows to a shard: an Annoy file, and the metadata file whose row i is its item i."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgindex.config import IndexConfig
from imgindex.errors import DamagedError
from imgindex.indexing.shard_files import contents_of, open_shard
from imgindex.io import filesystem, written_files
from imgindex.models.annoy_index import (
    AUTO_TREES,
    EFFORTS,
    RECALL_K,
    USUAL_EFFORTS,
    AnnoyShard,
    Metric,
    build_shard,
    cheapest_effort,
    measure_recall,
    recall_sample,
)
from imgindex.records import ShardSummary, VectorRows

# Items of a shard that it is asked for before it is published.
_ASKED_ITEMS = 20

# The name of the folder that an image lies in, its label; nothing matches at the top of the input.
_PARENT_FOLDER = r"(?:^|/)(?P<label>[^/]+)/[^/]*$"


def shard_count_of(items: int, items_per_shard: int) -> int:
    """How many shards `items` images make."""
    return max(1, -(-items // items_per_shard))


def write_shard(
    generation: str,
    shard: int,
    shard_count: int,
    batches: Iterable[VectorRows],
    config: IndexConfig,
    *,
    on_disk: bool = False,
) -> ShardSummary:
    """Writes the shard of `batches`, its items in the order of their uris, and checks it as it lies there.

    Beside Annoy's own copy of them the vectors of only one batch are in memory.

    Args:
      generation: the directory of the generation.
      shard: from 0 to `shard_count` - 1.
      batches: every row of the shard, in any order, at least one; iterated twice.
      config: how to index.
      on_disk: have Annoy build in the file, where it would take too much memory.
    """
    images, rows = _numbered_by_uri(batches)
    suffix = f"{shard:05}-of-{shard_count:05}"
    index_path, metadata_path = f"index/index-{suffix}.ann", f"metadata/metadata-{suffix}.parquet"
    with filesystem.staged(filesystem.join(generation, index_path)) as partial:
        if isinstance(config.trees, int):
            trees = config.trees
        else:
            tried = {trees: rows.build(partial, trees, config, on_disk) for trees in AUTO_TREES}
            trees = _fewest_nodes(tried, config.target_recall)
        recalls = rows.build(partial, trees, config, on_disk)
        index = written_files.describe(partial, index_path)
    with filesystem.staged(filesystem.join(generation, metadata_path)) as partial:
        # An open file: Arrow would read a path that begins with ~ in its own way.
        with partial.open("wb") as file:
            pq.write_table(_metadata(images), file)
        metadata = written_files.describe(partial, metadata_path)
    written = ShardSummary(
        index, metadata, len(images), trees, tuple(recalls), time.time(),
        distinct=len(np.unique(rows.contents)), queries=len(recall_sample(rows.contents)),
    )  # fmt: skip
    return replace(written, problems=tuple(check_shard(generation, written, rows.dims, config.metric)))


@dataclass(frozen=True)
class _Rows:
    """The rows of a shard, and which item of it each is."""

    batches: Iterable[VectorRows]
    items: npt.NDArray[np.int64]  # of each row in turn
    contents: npt.NDArray[np.int32]  # of each item: a number that images of the same bytes share
    dims: int

    def build(self, path: Path, trees: int, config: IndexConfig, on_disk: bool) -> list[float]:
        """Writes the Annoy file and measures its recall at each effort."""
        build_shard(
            _numbered(self.batches, self.items), path,
            items=len(self.items), dims=self.dims, metric=config.metric, trees=trees, seed=config.seed,
            on_disk=on_disk,
        )  # fmt: skip
        annoy = AnnoyShard(path, metric=config.metric, dims=self.dims, items=len(self.items))
        return measure_recall(annoy, self.contents, config.target_recall)


def _numbered_by_uri(batches: Iterable[VectorRows]) -> tuple[pa.Table, _Rows]:
    """The images of all rows in the order of their uris, which numbers the items, and the rows."""
    tables = []
    dims = 0
    for batch in batches:
        tables.append(batch.images)
        dims = batch.vectors.shape[1]
    images = pa.concat_tables(tables)
    order = pc.sort_indices(images["uri"]).to_numpy().astype(np.int64)
    images = images.take(order)
    items = np.empty_like(order)
    items[order] = np.arange(len(order))
    return images, _Rows(batches, items, contents_of(images["sha256"]), dims)


def _fewest_nodes(recalls: Mapping[int, Sequence[float]], target: float) -> int:
    """The count of trees that reaches `target` at the least effort, and is the smallest of those that do."""

    def cost(trees: int) -> tuple[bool, int, int]:
        step = cheapest_effort(recalls[trees], target)
        return recalls[trees][step] < target, EFFORTS[step], trees

    return min(recalls, key=cost)


def check_shard(generation: str, shard: ShardSummary, dims: int, metric: Metric) -> list[str]:
    """What is wrong with a shard as it lies in the generation: its bytes, its items, its answers."""
    with tempfile.TemporaryDirectory(prefix="imgindex-") as folder:
        index, metadata = (written_files.placed(generation, file) for file in (shard.index, shard.metadata))
        try:
            opened = open_shard(
                index, metadata, Path(folder), items=shard.items, dims=dims, metric=metric
            ).annoy
        except DamagedError as error:
            return [str(error)]
        problems = []
        wanted = min(RECALL_K, shard.items)
        sample = np.linspace(0, shard.items - 1, min(shard.items, _ASKED_ITEMS)).astype(np.int64)
        answers = opened.nearest(np.ascontiguousarray(opened.vectors[sample]), wanted, USUAL_EFFORTS[-1])
        short = sum(len(set(found.tolist())) < wanted for found, _ in answers)
        if short:
            problems.append(f"{index.path} gives fewer than {wanted} neighbours to {short} queries")
        return problems


def _numbered(
    batches: Iterable[VectorRows], items: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """The batches' vectors with their item numbers, of which `items` holds those of all rows in turn."""
    start = 0
    for batch in batches:
        yield items[start : start + len(batch.vectors)], batch.vectors
        start += len(batch.vectors)


def _metadata(images: pa.Table) -> pa.Table:
    return pa.table(
        {
            "item": pa.array(np.arange(len(images), dtype=np.int32)),
            "uri": images["uri"],
            "sha256": images["sha256"],
            "size": images["size"].cast(pa.int64()),
            "width": images["width"].cast(pa.int32()),
            "height": images["height"].cast(pa.int32()),
            "label": labels_of(images["uri"]),
        }
    )


def labels_of(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """For each image the name of the folder that it lies in; null at the top of the input."""
    return pc.struct_field(pc.extract_regex(uris, _PARENT_FOLDER), "label")
