"""Manifests of generations that tests write by hand."""

from collections.abc import Sequence
from typing import Any

from imgindex.generations.manifest import (
    Ledger,
    Manifest,
    MeasuredRecall,
    RecordedEngine,
    RecordedPca,
    RecordedSpec,
    Shard,
)
from imgindex.indexing.shards import ShardSummary
from imgindex.models.ann.protocol import Metric
from imgindex.records import WrittenFile


def manifest_of(
    generation: str,
    shards: Sequence[ShardSummary],
    basis: WrittenFile,
    failures: Sequence[WrittenFile] = (),
    *,
    root: str = "/photos",
    spec: str = "spec",
    previous: str | None = None,
    metric: Metric = "angular",
    dims: int = 4,
    feature_dim: int = 16,
) -> Manifest:
    """What the manifest of a generation of these files says."""
    files = [file for shard in shards for file in (shard.index, shard.metadata)]
    backbone = {"name": "MobileNetV2", "weights": "none", "pooling": "avg", "image_size": 32}
    config: dict[str, Any] = {
        "input": root,
        "backbone": backbone,
        "images": {"max_bytes": 1000, "max_pixels": 1000},
        "pca": {"dims": dims, "whiten": False},
        "index": {},
    }
    return Manifest(
        generation=generation,
        previous=previous,
        spec=RecordedSpec(spec, "MobileNetV2", "", (32, 32), "avg"),
        engine=RecordedEngine("openvino", "float32", 16),
        input_root=root,
        config=config,
        ledger=Ledger(0, 0, 0, {}, 0, 0, 0, 0, 0, 0, 0, 0),
        feature_dim=feature_dim,
        dims=dims,
        explained_variance_ratio=0.5,
        pca=RecordedPca(refit=True, why="", fitted_in=generation, fitted_images=100),
        metric=metric,
        search_k=100,
        recall=MeasuredRecall(10, 1.0),
        shards=tuple(Shard(shard.index.path, shard.metadata.path, shard.items, 2) for shard in shards),
        basis=basis.path,
        failures=tuple(file.path for file in failures),
        files=(*files, basis, *failures),
        timings={"total": 1.0},
    )
