"""Moments of features: sums that are exact, so that no order of work changes a bit.

L2-normalized float16 features lie on the grid of multiples of 2**-24 within [-1, 1]. Products of two
such numbers are multiples of 2**-48, and a float64 holds any multiple of 2**-48 below 2**5 exactly.
As long as the column energies (sums of squares) of the rows added so far stay below 2**5, every partial
sum of their Gram matrix does too (Cauchy–Schwarz), so the matrix product is exact whatever BLAS does.
Before they grow beyond, all but the sum's last bits move to a second matrix, which stays exact for at
least 2**29 rows. Moments merged in any order, of any split of the rows, are therefore equal, and so are
the bases fitted to them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]

GRID = 2.0**-24
# Less than 2**5 by more than what is left when sums move, twice 2**-25.
_MAX_LOW_ENERGY = 31.0
_MAX_ENERGY = 2.0**29
_BLOCK_ROWS = 4096
# Columns whose sums move at once: they fit into a core's cache.
_MOVED_COLUMNS = 32

# Rows of a Gram matrix that travel as one record: 256 KiB where features have 2048 columns.
_SHUFFLED_ROWS = 8


def on_grid(features: Features) -> Float64:
    """Returns `features` [n, d] as float64 on the grid of 2**-24; float16 rows are on it already."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"features must be [rows, feature_dim], got shape {rows.shape}")
    if rows.size and not (rows.max() <= 1.0 and rows.min() >= -1.0):
        raise ValueError("features must be finite and within [-1, 1]; L2-normalize them first")
    if features.dtype == np.float16:
        return rows
    return np.rint(rows / GRID) * GRID


@dataclass
class Moments:
    """The exact count, sum and Gram matrix of rows: a mergeable summary of float16 features.

    Of the symmetric Gram matrix, which is the sum of its two parts, only the upper triangle is held. Rows
    that are not float16 are rounded to multiples of 2**-24, an error of at most 3e-8.
    """

    count: int
    total: Float64  # [d]
    gram_high: Float64  # [d, d], multiples of 2**-24
    gram_low: Float64  # [d, d], what was added since it last moved, and the bits below 2**-24

    @classmethod
    def empty(cls, feature_dim: int) -> "Moments":
        """Moments of no rows."""
        # Column by column, as BLAS adds to them in place.
        high, low = (np.zeros((feature_dim, feature_dim), order="F") for _ in range(2))
        return cls(0, np.zeros(feature_dim), high, low)

    @property
    def feature_dim(self) -> int:
        """Length of a row."""
        return len(self.total)

    def add(self, features: Features) -> None:
        """Adds `features` [n, d], L2-normalized.

        Raises:
          ValueError: values beyond [-1, 1].
          OverflowError: more rows than exact sums can hold.
        """
        from scipy.linalg.blas import dsyrk  # only now, for a search needs none of it

        rows = on_grid(features)
        if rows.shape[1] != self.feature_dim:
            raise ValueError(f"expected rows of {self.feature_dim} values, got {rows.shape[1]}")
        start, size = 0, _BLOCK_ROWS
        while start < len(rows):
            block = self._block_with_room(rows[start : start + size])
            size = len(block)  # the next one's energies will be about the same
            self.total += block.sum(axis=0)
            self.gram_low = dsyrk(1.0, block.T, beta=1.0, c=self.gram_low, overwrite_c=True)
            start += len(block)
        self.count += len(rows)

    def _block_with_room(self, rows: Float64) -> Float64:
        """As many of the first `rows` as can be added exactly; makes room where there is none for all."""
        energies = np.einsum("ij,ij->j", rows, rows)
        if (self.gram_low.diagonal() + energies).max() >= _MAX_LOW_ENERGY:
            self._move_up()
            # A row has an energy of 1 at most, so that there is room for several.
            while energies.max() >= _MAX_LOW_ENERGY:
                rows = rows[: len(rows) // 2]
                energies = np.einsum("ij,ij->j", rows, rows)
        return rows

    def _move_up(self) -> None:
        for start in range(0, self.feature_dim, _MOVED_COLUMNS):
            columns = slice(start, start + _MOVED_COLUMNS)
            low = self.gram_low[:, columns]
            high = np.rint(low / GRID)
            high *= GRID
            low -= high
            self.gram_high[:, columns] += high
        if self.gram_high.diagonal().max() > _MAX_ENERGY:
            raise OverflowError(f"more than {self.count} rows are more than exact sums can hold")

    def blocks(self) -> "Iterator[MomentsBlock]":
        """These moments in parts, each of which can be added to those of others that start alike."""
        for start in range(0, self.feature_dim, _SHUFFLED_ROWS):
            part = slice(start, start + _SHUFFLED_ROWS), slice(start, None)
            high, low = self.gram_high[part].copy(), self.gram_low[part].copy()
            yield MomentsBlock(start, self.count, self.total, high, low)

    @classmethod
    def of_blocks(cls, blocks: "Iterable[MomentsBlock]") -> "Moments":
        """The moments of at least one block of each start, which come in any order.

        Raises OverflowError where they are of more rows than exact sums can hold.
        """
        moments: Moments | None = None
        for block in blocks:
            moments = moments or cls.empty(len(block.total))
            moments.count, moments.total = block.count, block.total
            rows = slice(block.start, block.start + len(block.gram_high))
            moments.gram_high[rows, block.start :] = block.gram_high
            moments.gram_low[rows, block.start :] = block.gram_low
        if moments is None:
            raise ValueError("no blocks")
        moments._move_up()
        return moments

    def mean(self) -> Float64:
        """The rows' mean, [d]."""
        return self.total / self.count

    def covariance(self) -> Float64:
        """The rows' covariance with the divisor count - 1 (1 for a single row), [d, d]."""
        # The correctly rounded sum of both parts is the same however the rows were split.
        gram = self.gram_high + self.gram_low
        diagonal = gram.diagonal().copy()
        gram += gram.T
        np.fill_diagonal(gram, diagonal)
        # In place: to touch new memory takes longer than to compute.
        gram -= np.outer(self.mean(), self.total).T
        gram /= max(self.count - 1, 1)
        gram += gram.T
        gram /= 2
        return gram


@dataclass(frozen=True)
class MomentsBlock:
    """Some rows of `Moments` from the diagonal on: a shuffle may not take all of them as one record."""

    start: int  # the first of the rows
    count: int  # as of `Moments`
    total: Float64  # [d]
    gram_high: Float64  # [rows, d - start]
    gram_low: Float64  # [rows, d - start]

    def __add__(self, other: "MomentsBlock") -> "MomentsBlock":
        """The same rows of the moments of both; exact in any order."""
        own, its = (np.rint(part / GRID) * GRID for part in (self.gram_low, other.gram_low))
        return MomentsBlock(
            self.start,
            self.count + other.count,
            self.total + other.total,
            self.gram_high + other.gram_high + (own + its),
            (self.gram_low - own) + (other.gram_low - its),
        )
