"""A published generation, opened to be read from its first row to its last."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.generations.layout import Output, files_of, open_generation
from imgindex.generations.manifest import Manifest
from imgindex.indexing.shard_files import FILES_OF_A_SHARD, MappedShard, map_shard, read_basis
from imgindex.models.pca import Basis
from imgindex.runtime.progress import Progress
from imgindex.runtime.resources import allow_open_files
from imgindex.runtime.temporary_folder import TemporaryFolder

# What a generation says of its images. `label` is null at the top of the input.
IMAGES = pa.schema(
    {
        "uri": pa.string(),
        "label": pa.string(),
        "sha256": pa.string(),
        "size": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
    }
)

# Rows that are in memory at once: of 2048 dimensions 32 MiB.
BATCH_ROWS = 4096


@dataclass(frozen=True)
class Batch:
    """Some rows of one shard; row i of `images` and of `vectors` is one image."""

    shard: int  # from 0
    images: pa.Table  # of `IMAGES`
    vectors: npt.NDArray[np.float32]  # [n, dims]


@dataclass(frozen=True)
class Source:
    """An opened generation. Whatever is published or pruned meanwhile, it can be read to its end."""

    output: str  # the index's directory
    manifest: Manifest
    shards: tuple[MappedShard, ...]
    basis: Basis
    normalize: bool  # whether vectors are scaled to length 1, where they have one
    progress: Progress

    @property
    def generation(self) -> str:
        """The name of the generation."""
        return self.manifest.generation

    def batches(self) -> Iterator[Batch]:
        """All rows, a few thousand at a time: shard by shard, in each in the order of their uris.

        Raises DamagedError.
        """
        self.progress.expect(self.manifest.items)
        for number in range(len(self.shards)):
            yield from self.of_shard(number, BATCH_ROWS)

    def of_shard(self, number: int, most: int) -> Iterator[Batch]:
        """The rows of a shard, at most `most` at a time, in the order of their uris. Raises DamagedError."""
        shard = self.shards[number]
        start = 0
        for images in shard.rows(most):
            vectors = np.ascontiguousarray(shard.vectors[start : start + len(images)])
            yield Batch(number, images.select(IMAGES.names), _scaled(vectors) if self.normalize else vectors)
            start += len(images)
            self.progress.advance(len(images))


@contextlib.contextmanager
def opened(
    output: str,
    generation: str | None,
    *,
    normalize: bool,
    progress: Progress,
    only: int | None = None,
) -> Iterator[Source]:
    """Opens a generation of `output`, the live one by default; every byte is compared with its digest.

    The shards of an object store are copied to the temporary folder. With `only`, the number of a shard, the
    source has that one alone, which then is its first.

    Raises:
      UsageError: there is no such generation.
      OutputError: it cannot be read, or is damaged.
    """
    layout = Output(output)
    with TemporaryFolder() as copies:

        def mapped(manifest: Manifest) -> Source:
            wanted = manifest.shards if only is None else manifest.shards[only : only + 1]
            allow_open_files(FILES_OF_A_SHARD * len(wanted))
            files = files_of(layout, manifest)
            shards = tuple(
                map_shard(
                    files[shard.index],
                    files[shard.metadata],
                    Path(copies),
                    items=shard.items,
                    dims=manifest.dims,
                    metric=manifest.metric,
                )
                for shard in wanted
            )
            return Source(output, manifest, shards, read_basis(files[manifest.basis]), normalize, progress)

        yield open_generation(layout, generation, mapped)


def _scaled(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`vectors` [n, dims] at length 1; one of length 0 stays as it is."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    return scaled
