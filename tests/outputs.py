"""Outputs with features that tests choose, published without a backbone or images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from manifests import manifest_of

from imgindex.config import IndexConfig
from imgindex.features import feature_store
from imgindex.generations.layout import Output, current_name, publish
from imgindex.indexing.shards import write_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.io import written_files
from imgindex.models.ann.protocol import Metric
from imgindex.models.moments import Moments
from imgindex.models.pca import fit_basis, normalize
from imgindex.records import ImageRow

_BLOCK_ROWS = 8192


def publish_features(
    output: Path,
    features: npt.NDArray[np.float32],
    uris: Sequence[str],
    digests: Sequence[str] | None = None,
    *,
    dims: int = 4,
    metric: Metric = "angular",
    shards: int = 1,
    trees: int = 4,
    search_k: int = 100,
    number: int = 1,
    whiten: float = 0.0,
    root: str = "/photos",
) -> str:
    """Publishes a generation of images with `features` [n, d]; image i lies in the shard i modulo `shards`.

    `digests` are the SHA-256 of their bytes; None: all differ. The images lie below `root`, if anywhere.
    """
    layout, name = Output(str(output)), f"20200101T00000{number}Z-01234567"
    directory, store = layout.generation(name), layout.store("spec")
    digests = digests or [f"{n:064x}" for n in range(len(uris))]
    unit = normalize(features)[0]
    for start in range(0, len(uris), feature_store.CHUNK_ROWS):
        part = slice(start, start + feature_store.CHUNK_ROWS)
        rows = [
            ImageRow(*row, 5, 6)
            for row in zip(uris[part], [1] * len(uris[part]), uris[part], digests[part], strict=True)
        ]
        feature_store.write_rows(store, rows, unit[part])
    moments = Moments.empty(features.shape[1])
    moments.add(unit[:: -(-len(unit) // 100_000)])
    basis = fit_basis(moments, dims, whiten)
    written = []
    for shard in range(shards):
        mine = np.arange(shard, len(uris), shards)
        batches = []
        for start in range(0, len(mine), _BLOCK_ROWS):
            part = mine[start : start + _BLOCK_ROWS]
            images = {"uri": [uris[n] for n in part], "sha256": [digests[n] for n in part]}
            images |= {column: pa.array([1] * len(part)) for column in ("size", "width", "height")}
            batches.append(VectorRows(pa.table(images), basis.project(unit[part])))
        config = IndexConfig(trees=trees, metric=metric)
        written.append(write_shard(directory, shard, shards, batches, config))
    file = written_files.write_described(directory, "pca/basis.npz", basis.to_npz())
    manifest = manifest_of(
        name, written, file, root=root, metric=metric, dims=basis.dims, feature_dim=features.shape[1],
        previous=current_name(layout),
    )  # fmt: skip
    recorded = tuple(replace(shard, trees=trees) for shard in manifest.shards)
    publish(layout, replace(manifest, shards=recorded, search_k=search_k))
    return name
