"""The engine of a service: for one query alone and for many at once, whichever takes less time."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imgindex.generations.manifest import Manifest
from imgindex.models.engines.loading import create_engine
from imgindex.models.engines.protocol import Engine, EngineChoice
from imgindex.models.pca import Basis
from imgindex.search.queries import Loaded
from imgindex.search.query_engine import query_engine
from imgindex.search.query_vectors import Vectors, vectors_of
from imgindex.search.results import QueryError

# Queries that are embedded at once at most. A CPU embeds hardly more images a second in larger batches.
_BATCH = 8

# The weight of the last batch in the mean of their seconds.
_RECENT = 0.2


class _Timed:
    """An engine, and how long its batches take."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        blank = np.zeros((engine.batch_size, *engine.image_size, 3), np.uint8)
        engine.embed(blank)  # the first one may compile the model
        started = time.monotonic()
        engine.embed(blank)
        self.seconds = time.monotonic() - started


class QueryEngines:
    """The engine of a generation for batches of one image and for full ones.

    An engine runs batches of one size, which are filled up. So a query alone would take as long as a full
    batch does.
    """

    def __init__(self, output: str, manifest: Manifest, model: str | None) -> None:
        """Loads both. Raises what `query_engine` does."""

        def load(batch_size: int) -> _Timed:
            def create(choice: EngineChoice, threads: int) -> Engine:
                return create_engine(replace(choice, batch_size=batch_size), threads)

            return _Timed(query_engine(output, manifest, model, create))

        self._single, self._full = load(1), load(_BATCH)
        self._made_for = _what_decides(manifest)

    def fit(self, manifest: Manifest) -> bool:
        """Whether a generation has the same engine."""
        return _what_decides(manifest) == self._made_for

    @property
    def batch_size(self) -> int:
        """Images that are embedded at once at most."""
        return self._full.engine.batch_size

    @property
    def batch_seconds(self) -> float:
        """About how long a full batch takes."""
        return self._full.seconds

    @property
    def streams(self) -> int:
        """Batches that are embedded at once."""
        return self._full.engine.streams

    def vectors(
        self, queries: Sequence[Loaded], dims: int, basis: Basis
    ) -> tuple[Vectors, dict[int, QueryError]]:
        """As `vectors_of`, of at most `batch_size` queries, by the quicker way."""
        alone = len(queries) * self._single.seconds <= self._full.seconds
        timed = self._single if alone else self._full
        started = time.monotonic()
        found = vectors_of(queries, dims, basis, lambda: timed.engine)
        seconds = (time.monotonic() - started) / (len(queries) if alone else 1)
        timed.seconds += _RECENT * (seconds - timed.seconds)
        return found


def _what_decides(manifest: Manifest) -> tuple[object, ...]:
    return manifest.spec.digest, manifest.engine.name, manifest.engine.precision
