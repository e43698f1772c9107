"""From projected rows to a shard: an Annoy file, and the metadata file whose row i is its item i."""

import time
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgindex import storage
from imgindex.config import IndexConfig
from imgindex.models.annoy_index import AnnoyShard, build_shard, measure_recall
from imgindex.records import ShardSummary, VectorRows


def shard_count_of(items: int, items_per_shard: int) -> int:
    """How many shards `items` images make."""
    return max(1, -(-items // items_per_shard))


def write_shard(
    generation: str,
    shard: int,
    shard_count: int,
    batches: Iterable[VectorRows],
    config: IndexConfig,
) -> ShardSummary:
    """Writes the shard of `batches`, its items in the order of their uris.

    Beside Annoy's own copy of them the vectors of only one batch are in memory.

    Args:
      generation: the directory of the generation.
      shard: from 0 to `shard_count` - 1.
      batches: every row of the shard, in any order, at least one; iterated twice.
      config: how to index.
    """
    images = pa.concat_tables([batch.images for batch in batches])
    order = pc.sort_indices(images["uri"]).to_numpy().astype(np.int64)
    images = images.take(order)
    items = np.empty_like(order)
    items[order] = np.arange(len(order))
    suffix = f"{shard:05}-of-{shard_count:05}"
    index_path, metadata_path = f"index/index-{suffix}.ann", f"metadata/metadata-{suffix}.parquet"
    dims = next(iter(batches)).vectors.shape[1]
    with storage.staged(storage.join(generation, index_path)) as partial:
        build_shard(
            _numbered(batches, items), partial,
            items=len(items), dims=dims, metric=config.metric, trees=config.trees, seed=config.seed,
        )  # fmt: skip
        index = storage.describe(partial, index_path)
        opened = AnnoyShard(partial, metric=config.metric, dims=dims, items=len(items))
        recalls = measure_recall(opened, config.trees)
    with storage.staged(storage.join(generation, metadata_path)) as partial:
        # An open file: Arrow would read a path that begins with ~ in its own way.
        with partial.open("wb") as file:
            pq.write_table(_metadata(images), file)
        metadata = storage.describe(partial, metadata_path)
    return ShardSummary(index, metadata, len(items), tuple(recalls), time.time())


def _numbered(
    batches: Iterable[VectorRows], items: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """The batches' vectors with their item numbers, of which `items` holds those of all rows in turn."""
    start = 0
    for batch in batches:
        yield items[start : start + len(batch.vectors)], batch.vectors
        start += len(batch.vectors)


def _metadata(images: pa.Table) -> pa.Table:
    uris = images["uri"].to_pylist()
    return pa.table(
        {
            "item": pa.array(range(len(uris)), pa.int32()),
            "uri": images["uri"],
            "sha256": images["sha256"],
            "size": images["size"],
            "width": images["width"],
            "height": images["height"],
            "label": pa.array([label_of(uri) for uri in uris], pa.string()),
        }
    )


def label_of(uri: str) -> str | None:
    """The name of the folder that an image lies in; None at the top of the input."""
    folder = uri.rpartition("/")[0]
    return folder.rpartition("/")[2] or None
