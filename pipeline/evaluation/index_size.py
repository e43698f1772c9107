"""How large an index would be with another number of dimensions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgindex.evaluation.collection import Collection
from imgindex.indexing.shard_backend import SHARD_BACKEND
from imgindex.runtime.temporary_folder import TemporaryFolder

Float32 = npt.NDArray[np.float32]

# Images that are indexed for it, at most. The size for each image hardly depends on how many there are.
_IMAGES = 10_000


@dataclass(frozen=True)
class Sizes:
    """Sizes of what a search holds: Annoy's files and the metadata.

    The trees of an index do not shrink with its vectors. With few images they even grow, as a leaf of shorter
    vectors holds fewer of them. So Annoy's files are built to be measured.
    """

    collection: Collection
    vectors: Float32  # [n, dims], of which the first make vectors of fewer dimensions

    def of(self, dims: int) -> int:
        """The bytes with so many dimensions."""
        manifest = self.collection.manifest
        sizes = {file.path: file.size for file in manifest.files}
        annoy = sum(sizes[shard.index] for shard in manifest.shards)
        metadata = sum(sizes[shard.metadata] for shard in manifest.shards)
        if dims == manifest.dims:
            return annoy + metadata
        return round(annoy * self._built(dims) / self._built(manifest.dims)) + metadata

    def _built(self, dims: int) -> int:
        shard = self.collection.manifest.shards[0]
        with TemporaryFolder() as folder:
            path = Path(folder, "index.ann")
            SHARD_BACKEND.build(
                np.ascontiguousarray(self.vectors[:_IMAGES, :dims]),
                path,
                metric=self.collection.manifest.metric,
                settings={"trees": shard.trees, "seed": 0},
            )
            return path.stat().st_size
