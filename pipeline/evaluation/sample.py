"""A bounded sample of a generation's images: what a report can look at, however large the index is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgindex.evaluation.collection import columns_of
from imgindex.generations.layout import Output, files_of
from imgindex.generations.manifest import Manifest, Shard
from imgindex.indexing.shard_files import OpenedShard, open_shard
from imgindex.io import filesystem
from imgindex.records import bucket_of
from imgindex.runtime.temporary_folder import TemporaryFolder

# Images of the sample, at most.
_ROWS = 20_000
# Bytes that are copied from an object store for it, at most.
_COPIED_BYTES = 256 << 20

# Of each of two generations that are compared, images that are looked at, unless its first shard has more;
# and bytes that are copied from an object store: a shard of a million images and 150 dimensions fits.
_READ_ROWS = 1_000_000
_COMPARED_BYTES = 2 << 30
# Hexadecimal digits of a digest that decide.
_DIGITS = 12


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
    shards = _first_shards(output, manifest, _ROWS, _COPIED_BYTES)
    if not shards:
        return None
    vectors: list[npt.NDArray[np.float32]] = []
    tables = []
    with TemporaryFolder() as folder:
        for opened in _opened(output, manifest, shards, folder):
            items = len(opened.metadata)
            wanted = _ROWS - sum(len(each) for each in vectors)
            rows = np.unique(np.linspace(0, items - 1, min(wanted, items)).astype(np.int64))
            vectors.append(np.array(opened.index.vectors[rows]))
            tables.append(opened.metadata.take(rows))
        return Sample(manifest, np.concatenate(vectors), **columns_of(pa.concat_tables(tables)))


def read_alike(output: Output, before: Manifest, after: Manifest) -> tuple[Sample, Sample] | None:
    """Samples of two generations, about 20,000 images each, to which every image belongs with equal chance.

    Digests of its uri and of its bytes decide. So an image that both generations have is in both samples or
    in neither, and their neighbors have been thinned alike. Generations of up to 20,000 images are whole.
    Gives None where a first shard is too large to be copied from an object store. Raises OutputError where a
    file cannot be read.
    """
    parts = [
        _Part(manifest, len(_first_shards(output, manifest, _READ_ROWS, _COMPARED_BYTES)))
        for manifest in (before, after)
    ]
    if not all(part.shards for part in parts):
        return None
    if len(before.shards) == len(after.shards):  # those of the same number have the same images
        fewest = min(part.shards for part in parts)
        parts = [_Part(part.manifest, fewest) for part in parts]
        common: float = max(part.items for part in parts)
    else:
        common = max(one.items * other.share for one, other in (parts, reversed(parts)))
    share = min(1.0, _ROWS / common)
    return _thinned(output, parts[0], parts[1], share), _thinned(output, parts[1], parts[0], share)


@dataclass(frozen=True)
class _Part:
    """So many of the first shards of a generation."""

    manifest: Manifest
    shards: int

    @property
    def items(self) -> int:
        """How many images these have."""
        return sum(shard.items for shard in self.manifest.shards[: self.shards])

    @property
    def share(self) -> float:
        """The share of all shards."""
        return self.shards / len(self.manifest.shards)

    def would_hold(self, uri: str) -> bool:
        """Whether an image lies in these shards, if it is in the generation."""
        return bucket_of(uri, len(self.manifest.shards)) < self.shards


def _thinned(output: Output, part: _Part, other: _Part, share: float) -> Sample:
    """A `share` of the images of `part`, as their digests decide, but those that `other` would not hold."""
    vectors: list[npt.NDArray[np.float32]] = []
    tables = []
    least = f"{int(share * 16**_DIGITS):0{_DIGITS}x}"
    with TemporaryFolder() as folder:
        for opened in _opened(output, part.manifest, part.manifest.shards[: part.shards], folder):
            table = opened.metadata
            rows = np.arange(len(table))
            if share < 1:
                rows = pc.indices_nonzero(pc.less(table["sha256"], least)).to_numpy().astype(np.int64)
            if other.share < 1:
                rows = rows[[other.would_hold(uri) for uri in table["uri"].take(rows).to_pylist()]]
            vectors.append(np.array(opened.index.vectors[rows]))
            tables.append(table.take(rows))
    return Sample(part.manifest, np.concatenate(vectors), **columns_of(pa.concat_tables(tables)))


def _opened(
    output: Output, manifest: Manifest, shards: Sequence[Shard], folder: str
) -> Iterator[OpenedShard]:
    files = files_of(output, manifest)
    for shard in shards:
        yield open_shard(
            files[shard.index], files[shard.metadata], Path(folder),
            items=shard.items, dims=manifest.dims, metric=manifest.metric, quick=True,
        )  # fmt: skip


def _first_shards(output: Output, manifest: Manifest, rows: int, most_copied: int) -> Sequence[Shard]:
    """The first shards that together have `rows` images, as far as they may be copied."""
    sizes = {file.path: file.size for file in manifest.files}
    local = filesystem.is_local(output.root)
    shards: list[Shard] = []
    items = size = 0
    for shard in manifest.shards:
        size += sizes[shard.index] + sizes[shard.metadata]
        if items >= rows or (not local and size > most_copied):
            break
        shards.append(shard)
        items += shard.items
    return shards
