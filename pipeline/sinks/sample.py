"""Some of the images of a generation, for tools that do not take millions."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.sinks.source import Source


def sampled(source: Source, most: int, seed: int) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
    """The rows of `most` images that `seed` draws, or of all if there are no more, in the order of the index.

    Each is a table of `IMAGES` and the vectors [n, dims] of its rows.
    """
    items = source.manifest.items
    drawn = np.random.default_rng(seed).choice(items, min(most, items), replace=False, shuffle=False)
    drawn.sort()
    start = 0
    for batch in source.batches():
        end = start + len(batch.images)
        first, last = np.searchsorted(drawn, (start, end))
        rows = drawn[first:last] - start
        if len(rows):
            yield batch.images.take(rows), batch.vectors[rows]
        start = end
