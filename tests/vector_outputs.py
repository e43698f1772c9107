"""Outputs of known vectors, published as a build does it but without images."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from manifests import manifest_of

from imgindex.config import IndexConfig
from imgindex.generations.layout import Output, current_name, publish
from imgindex.indexing.shards import write_shard
from imgindex.indexing.vector_files import VectorRows
from imgindex.io import written_files
from imgindex.models.ann.protocol import Metric
from imgindex.models.moments import Moments
from imgindex.models.pca import fit_basis, normalize


def publish_vectors(
    output: str,
    name: str,
    uris: Sequence[str],
    vectors: npt.NDArray[np.float32],
    *,
    shards: int = 1,
    metric: Metric = "angular",
) -> None:
    """Publishes generation `name` of `vectors` [n, dims], row i of which is that of ``uris[i]``.

    Image i lies in shard i modulo `shards`. It is of i + 1 bytes, 5 pixels wide, 6 high, and of content i.
    """
    layout = Output(output)
    numbers = np.arange(len(uris))
    images = pa.table(
        {
            "uri": list(uris),
            "sha256": [f"{number:064x}" for number in numbers],
            "size": numbers + 1,
            "width": np.full(len(uris), 5),
            "height": np.full(len(uris), 6),
        }
    )
    written = [
        write_shard(
            layout.generation(name), shard, shards,
            [VectorRows(images.take(rows), vectors[rows])], IndexConfig(trees=1, metric=metric),
        )
        for shard in range(shards)
        for rows in [numbers[shard::shards]]
    ]  # fmt: skip
    moments = Moments.empty(vectors.shape[1])
    moments.add(normalize(np.random.default_rng(0).random((100, vectors.shape[1]), np.float32))[0])
    basis = written_files.write_described(
        layout.generation(name), "pca/basis.npz", fit_basis(moments, vectors.shape[1]).to_npz()
    )
    dims = vectors.shape[1]
    publish(
        layout,
        manifest_of(
            name, written, basis, previous=current_name(layout), metric=metric, dims=dims, feature_dim=dims
        ),
    )
