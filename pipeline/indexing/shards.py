"""From projected rows to a shard: an index, and the metadata file whose row i is its item i."""

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
from imgindex.indexing.shard_backend import SHARD_BACKEND, settings_to_try
from imgindex.indexing.shard_files import contents_of, open_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.io import filesystem, written_files
from imgindex.models.ann.protocol import BuildSettings, Metric
from imgindex.models.ann.recall import RECALL_K, first_to_reach, measure_recall, recall_sample
from imgindex.records import WrittenFile
from imgindex.runtime.temporary_folder import TemporaryFolder

# Items of a shard that it is asked for before it is published.
_ASKED_ITEMS = 20

# The name of the folder that an image lies in, its label; nothing matches at the top of the input.
_PARENT_FOLDER = r"(?:^|/)(?P<label>[^/]+)/[^/]*$"


@dataclass(frozen=True)
class ShardSummary:
    """A written shard."""

    index: WrittenFile
    metadata: WrittenFile
    items: int
    settings: Mapping[str, int]  # that the index was built with
    recalls: tuple[float, ...]  # recall@10 of distinct images, as `models.ann.recall` measures it
    finished: float  # seconds since the epoch
    problems: tuple[str, ...] = ()  # what is wrong with the files as they were read back
    distinct: int = 0  # images of the shard that are no copies of each other
    queries: int = 0  # those of them that recall was measured with


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

    Beside the index's own copy of them the vectors of only one batch are in memory.

    Args:
      generation: the directory of the generation.
      shard: from 0 to `shard_count` - 1.
      batches: every row of the shard, in any order, at least one; iterated twice.
      config: how to index.
      on_disk: build the index in its file, where it would take too much memory.
    """
    images, rows = _numbered_by_uri(batches)
    suffix = f"{shard:05}-of-{shard_count:05}"
    index_path, metadata_path = f"index/index-{suffix}.ann", f"metadata/metadata-{suffix}.parquet"
    with filesystem.staged(filesystem.join(generation, index_path)) as partial:
        settings, *others = settings_to_try(config)
        if others:
            tried = [(each, rows.build(partial, each, config, on_disk)) for each in (settings, *others)]
            settings = _quickest(tried, config.target_recall)
        recalls = rows.build(partial, settings, config, on_disk)
        index = written_files.describe(partial, index_path)
    with filesystem.staged(filesystem.join(generation, metadata_path)) as partial:
        # An open file: Arrow would read a path that begins with ~ in its own way.
        with partial.open("wb") as file:
            pq.write_table(_metadata(images), file)
        metadata = written_files.describe(partial, metadata_path)
    written = ShardSummary(
        index, metadata, len(images), settings, tuple(recalls), time.time(),
        distinct=len(np.unique(rows.contents)), queries=len(recall_sample(rows.contents)),
    )  # fmt: skip
    problems = check_shard(
        generation, index, metadata, items=len(images), dims=rows.dims, metric=config.metric
    )
    return replace(written, problems=tuple(problems))


@dataclass(frozen=True)
class _Rows:
    """The rows of a shard, and which item of it each is."""

    batches: Iterable[VectorRows]
    items: npt.NDArray[np.int64]  # of each row in turn
    contents: npt.NDArray[np.int32]  # of each item: a number that images of the same bytes share
    dims: int

    def build(self, path: Path, settings: BuildSettings, config: IndexConfig, on_disk: bool) -> list[float]:
        """Writes the index and measures its recall, as `measure_recall` does."""
        SHARD_BACKEND.build_blocks(
            _numbered(self.batches, self.items), path,
            items=len(self.items), dims=self.dims, metric=config.metric, settings=settings, on_disk=on_disk,
        )  # fmt: skip
        opened = SHARD_BACKEND.open(path, metric=config.metric, dims=self.dims, items=len(self.items))
        return measure_recall(opened, self.contents, config.target_recall)


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


def _quickest(tried: Sequence[tuple[dict[str, int], Sequence[float]]], target: float) -> dict[str, int]:
    """The settings with which the quickest search reaches `target`; the first of several that do.

    `tried` are settings, and the recalls of the searches.
    """

    def cost(place: int) -> tuple[bool, int]:
        _, recalls = tried[place]
        step = first_to_reach(recalls, target)
        return recalls[step] < target, step

    return tried[min(range(len(tried)), key=cost)][0]


def check_shard(
    generation: str, index: WrittenFile, metadata: WrittenFile, *, items: int, dims: int, metric: Metric
) -> list[str]:
    """What is wrong with a shard as it lies in the generation: its bytes, its items, its answers."""
    with TemporaryFolder() as folder:
        index, metadata = (written_files.placed(generation, file) for file in (index, metadata))
        try:
            opened = open_shard(index, metadata, Path(folder), items=items, dims=dims, metric=metric).index
        except DamagedError as error:
            return [str(error)]
        problems = []
        wanted = min(RECALL_K, items)
        sample = np.linspace(0, items - 1, min(items, _ASKED_ITEMS)).astype(np.int64)
        deepest = opened.searches[opened.usual_searches - 1]
        answers = opened.nearest(np.ascontiguousarray(opened.vectors[sample]), wanted, deepest)
        short = sum(len(set(found.tolist())) < wanted for found, _ in answers)
        if short:
            problems.append(f"{index.path} gives fewer than {wanted} neighbors to {short} queries")
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
