"""Rows of several arrays that are read as those of one, of which only what is asked for is in memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Items = npt.NDArray[np.int64]


class StackedRows:
    """Arrays [n, dims], such as mapped ones, one below the other."""

    def __init__(self, parts: Sequence[Float32]) -> None:
        """Of at least one array."""
        self.parts = [np.asarray(part) for part in parts]
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])])

    def __len__(self) -> int:
        """How many rows there are."""
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """As of an array."""
        return len(self), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        """As of an array that holds all."""
        return len(self) * self.shape[1] * np.float32().itemsize

    def __getitem__(self, rows: slice | Items) -> Float32:
        """A copy of the `rows` of these numbers, [m, dims]; a slice has no step."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            firsts = self._starts[:-1].tolist()
            return np.concatenate(
                [
                    part[max(start - first, 0) : max(stop - first, 0)]
                    for part, first in zip(self.parts, firsts, strict=True)
                ]
            )
        found = np.empty((len(rows), self.shape[1]), np.float32)
        places = np.searchsorted(self._starts, rows, side="right") - 1
        for number, part in enumerate(self.parts):
            here = places == number
            if here.any():
                found[here] = part[rows[here] - self._starts[number]]
        return found
