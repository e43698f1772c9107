"""An index of FAISS that takes the backbone's features as queries, and the rows that describe its items."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import faiss
import numpy as np
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from imgindex.errors import UsageError
from imgindex.models.ann.protocol import Metric
from imgindex.models.pca import Basis, whitening
from imgindex.sinks.folder import NewFiles
from imgindex.sinks.options import ExportOptions
from imgindex.sinks.source import IMAGES, Source

# Exact: it compares a query with every vector.
_DEFAULT = "Flat"

# FAISS's messages begin with the function, the file and the condition that failed.
_PLACE = re.compile(r"Error in .* at \S+:\d+: (?:Error: '.*' failed: (?=.))?")


def write(files: NewFiles, source: Source, options: ExportOptions) -> None:
    """Writes ``index.faiss``, whose item i row i of ``metadata.parquet`` describes.

    A query is a feature as the backbone gives it, float32 [n, feature_dim], of any length. The index scales
    it to length 1 and projects it as the build did. The index within takes vectors. With the metric
    ``angular`` FAISS's distances are cosines, and with ``euclidean`` squares of distances.

    All vectors are in memory, as FAISS has them. Raises UsageError where FAISS cannot make such an index.
    """
    factory = _DEFAULT if options.faiss_index is None else options.faiss_index
    files.facts["faiss_index"] = factory
    steps = _steps(source.basis, source.manifest.metric)
    metric = faiss.METRIC_INNER_PRODUCT if source.manifest.metric == "angular" else faiss.METRIC_L2
    # Threads would add items in an order of their own.
    with threadpool_limits(1), _as_usage_error(factory):
        index = faiss.index_factory(source.manifest.dims, factory, metric)
        if not index.is_trained:
            index.train(_as_indexed(steps, np.concatenate([shard.vectors for shard in source.shards])))
        with files.open("metadata.parquet") as images, pq.ParquetWriter(images, IMAGES) as rows:
            for batch in source.batches():
                index.add(_as_indexed(steps, batch.vectors))
                rows.write_table(batch.images)
        whole = faiss.IndexPreTransform(index)
        for step in reversed(steps):
            whole.prepend_transform(step)
        with files.open("index.faiss") as file:
            _write_index(whole, file)


def _steps(basis: Basis, metric: Metric) -> list[Any]:
    """What becomes of a feature before it is compared."""
    projection = faiss.LinearTransform(basis.feature_dim, basis.dims, True)
    scale = whitening(basis.explained_variance, basis.whiten)[:, np.newaxis] if basis.whiten else 1.0
    faiss.copy_array_to_vector((basis.components / scale).astype(np.float32).ravel(), projection.A)
    faiss.copy_array_to_vector(basis.project(np.zeros((1, basis.feature_dim), np.float32))[0], projection.b)
    projection.is_trained = True
    steps = [faiss.NormalizationTransform(basis.feature_dim, 2.0), projection]
    if metric == "angular":
        steps.append(faiss.NormalizationTransform(basis.dims, 2.0))
    return steps


def _as_indexed(steps: list[Any], vectors: Any) -> Any:
    """`vectors` [n, dims] after the steps that follow the projection."""
    for step in steps[2:]:
        vectors = step.apply(vectors)
    return vectors


def _write_index(index: Any, file: BinaryIO) -> None:
    """Writes an index to an opened file. Raises the OSError of the file, which FAISS would hide."""
    failed: list[OSError] = []

    def put(data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            failed.append(error)
            raise

    try:
        faiss.write_index(index, faiss.PyCallbackIOWriter(put))  # type: ignore[attr-defined] # not in its stub
    except RuntimeError:
        if failed:
            raise failed[0] from None
        raise


@contextlib.contextmanager
def _as_usage_error(factory: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = _PLACE.sub("", str(error))
        raise UsageError(f"FAISS cannot make an index {factory!r} of these vectors: {reason}") from error
