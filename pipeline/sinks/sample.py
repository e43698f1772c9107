"""Some of the images of a generation, for tools that do not take millions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.errors import UsageError
from imgindex.sinks.options import ExportOptions
from imgindex.sinks.source import Source

_DEFAULT_IMAGES = 10_000
# TensorBoard shows no more.
_MOST_IMAGES = 100_000


@dataclass(frozen=True)
class Sample:
    """How many images are drawn, of how many, and by which seed."""

    images: int
    of: int
    seed: int

    @classmethod
    def asked_for(cls, options: ExportOptions, source: Source) -> "Sample":
        """As many as `options` say, or all if there are no more. Raises UsageError for an odd number."""
        most = _DEFAULT_IMAGES if options.images is None else options.images
        seed = options.seed or 0
        if not 1 <= most <= _MOST_IMAGES:
            raise UsageError(f"--images is {most}; expected 1 to {_MOST_IMAGES:,}")
        if seed < 0:
            raise UsageError(f"--seed is {seed}; expected a number that is not negative")
        items = source.manifest.items
        return cls(min(most, items), items, seed)

    def rows(self, source: Source) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
        """The rows that are drawn, in the order of the index: tables of `IMAGES`, and vectors [n, dims]."""
        drawn = np.random.default_rng(self.seed).choice(self.of, self.images, replace=False, shuffle=False)
        drawn.sort()
        start = 0
        for batch in source.batches():
            end = start + len(batch.images)
            first, last = np.searchsorted(drawn, (start, end))
            rows = drawn[first:last] - start
            if len(rows):
                yield batch.images.take(rows), batch.vectors[rows]
            start = end
