"""A bounded sample of a generation's images: what a report can look at, however large the index is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.evaluation.collection import columns_of
from imgindex.generations.layout import Output, files_of
from imgindex.generations.manifest import Manifest, Shard
from imgindex.indexing.shard_files import open_shard
from imgindex.io import filesystem
from imgindex.runtime.temporary_folder import TemporaryFolder

# Images of the sample, at most.
_ROWS = 20_000
# Bytes that are copied from an object store for it, at most.
_COPIED_BYTES = 256 << 20


@dataclass(frozen=True)
class Sample:
    """Some images of a generation, as of `collection.Images`."""

    manifest: Manifest
    vectors: npt.NDArray[np.float32]
    uris: pa.ChunkedArray
    contents: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    label_names: tuple[str, ...]
    sha256: pa.Array

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.contents)


def read_sample(output: Output, manifest: Manifest) -> Sample | None:
    """All images of a small generation. Of a large one, those of its first shards, 20,000 at most.

    Which shard an image lies in depends on a digest of its uri. Of a shard that is larger than the sample
    every image at some distance is taken. Gives None where the first shard alone is too large to be copied
    from an object store. Raises OutputError where a file cannot be read.
    """
    files = files_of(output, manifest)
    shards = _first_shards(output, manifest)
    if not shards:
        return None
    vectors: list[npt.NDArray[np.float32]] = []
    tables = []
    with TemporaryFolder() as folder:
        for shard in shards:
            opened = open_shard(
                files[shard.index], files[shard.metadata], Path(folder),
                items=shard.items, dims=manifest.dims, metric=manifest.metric, quick=True,
            )  # fmt: skip
            wanted = _ROWS - sum(len(each) for each in vectors)
            rows = np.unique(np.linspace(0, shard.items - 1, min(wanted, shard.items)).astype(np.int64))
            vectors.append(np.array(opened.index.vectors[rows]))
            tables.append(opened.metadata.take(rows))
        return Sample(manifest, np.concatenate(vectors), **columns_of(pa.concat_tables(tables)))


def _first_shards(output: Output, manifest: Manifest) -> Sequence[Shard]:
    sizes = {file.path: file.size for file in manifest.files}
    local = filesystem.is_local(output.root)
    shards: list[Shard] = []
    items = size = 0
    for shard in manifest.shards:
        size += sizes[shard.index] + sizes[shard.metadata]
        if items >= _ROWS or (not local and size > _COPIED_BYTES):
            break
        shards.append(shard)
        items += shard.items
    return shards
