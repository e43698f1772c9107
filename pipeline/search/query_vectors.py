"""The vectors of queries, made as a build makes those of its images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.errors import UsageError
from imgindex.models.batches import embed_all
from imgindex.models.engines.protocol import Engine
from imgindex.models.pca import Basis, normalize
from imgindex.search.queries import Loaded
from imgindex.search.results import QueryError

Vectors = npt.NDArray[np.float32]


def vectors_of(
    loaded: Sequence[Loaded], dims: int, basis: Basis, engine: Callable[[], Engine]
) -> tuple[Vectors, dict[int, QueryError]]:
    """Vectors [n, dims] of queries, and by their number the errors of those that have none.

    `engine` is asked for only where queries are images. Raises UsageError for a vector that does not fit.
    """
    vectors = np.zeros((len(loaded), dims), np.float32)
    errors: dict[int, QueryError] = {}
    images: dict[int, npt.NDArray[Any]] = {}
    for n, query in enumerate(loaded):
        value = query.value
        if isinstance(value, QueryError):
            errors[n] = value
        elif value.ndim == 3:
            images[n] = value
        elif value.shape == vectors.shape[1:] and np.isfinite(value).all():
            vectors[n] = value
        else:
            raise UsageError(f"a query vector must be {vectors.shape[1]} finite values, got {value.shape}")
    if images:
        numbers = list(images)
        features, valid = normalize(embed_all(engine(), np.stack(list(images.values()))))
        for place in np.flatnonzero(~valid).tolist():
            message = "its feature is zero or not finite, as an all-black image's may be"
            errors[numbers[place]] = QueryError("embed", "no_direction", message)
        vectors[numbers] = basis.project(features)
    return vectors, errors


def as_vectors(vectors: npt.ArrayLike, dims: int) -> Vectors:
    """Vectors [n, dims] of an array or of lists. Raises UsageError where one does not fit."""
    expected = f"expected vectors of {dims} values, as an array or lists of {dims} numbers each"
    try:
        with np.errstate(over="ignore"):
            rows = np.asarray(vectors, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{expected}: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != dims:
        raise UsageError(f"{expected}; got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise UsageError("expected vectors of finite values, got some with NaN or infinity")
    return rows
