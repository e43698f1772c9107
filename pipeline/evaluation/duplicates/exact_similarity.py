"""The similarity of stored features, computed exactly: the cosine in float64, rounded to six digits."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgindex.runtime.temporary_folder import TemporaryFolder

Items = npt.NDArray[np.int64]
Float16 = npt.NDArray[np.float16]
Float64 = npt.NDArray[np.float64]

# A similarity is rounded to so many digits before it is compared with the threshold, and before it is shown.
DIGITS = 6
# Values of features that are float64 at once: 32 MiB.
_VALUES = 1 << 22


class FeatureFile:
    """The features of some images, in a temporary file, of which only what is asked for is in memory."""

    def __init__(self, wanted: Items, blocks: Iterable[tuple[Items, Float16]], feature_dim: int) -> None:
        """Keeps the features of `wanted`.

        Args:
          wanted: numbers of images in ascending order, at least one.
          blocks: numbers [b] and their features [b, feature_dim], in any order. Each of `wanted` must be
            among them, once.
          feature_dim: values of a feature.
        """
        self._wanted = wanted
        self._places = np.empty(len(wanted), np.int64)
        self._folder = TemporaryFolder()
        path = Path(self._folder.name, "features")
        kept = 0
        # Written, not mapped: a mapped file that the disk has no room for ends the process.
        with path.open("wb") as file:
            for numbers, features in blocks:
                places = np.minimum(np.searchsorted(wanted, numbers), len(wanted) - 1)
                is_wanted = wanted[places] == numbers
                chosen = features[is_wanted]
                self._places[places[is_wanted]] = kept + np.arange(len(chosen))
                kept += len(chosen)
                file.write(np.ascontiguousarray(chosen).data)
        self._features = np.memmap(path, np.float16, "r", shape=(kept, feature_dim))
        self._rows = max(1, _VALUES // feature_dim)

    def unit(self, numbers: Items) -> Float64:
        """The features of `numbers` at length 1: [n, feature_dim]."""
        places = self._places[np.searchsorted(self._wanted, numbers)]
        rows = self._features[places].astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    def blocks(self, numbers: Items) -> Iterator[Float64]:
        """As `unit`, so many at a time as may be in memory."""
        for start in range(0, len(numbers), self._rows):
            yield self.unit(numbers[start : start + self._rows])


def pair_similarities(one: FeatureFile, other: FeatureFile, pairs: Items) -> Float64:
    """The similarity of each of `pairs` [p, 2] of an image of `one` and one of `other`."""
    parts = [np.empty(0)]
    for left, right in zip(one.blocks(pairs[:, 0]), other.blocks(pairs[:, 1]), strict=True):
        parts.append(np.round(np.einsum("ij,ij->i", left, right), DIGITS))
    return np.concatenate(parts)


def similarities(features: FeatureFile, ones: Items, others: Items) -> Float64:
    """The similarity of each of `ones` [m] with each of `others` [n]: [m, n]."""
    rows = [
        np.hstack([np.round(left @ right.T, DIGITS) for right in features.blocks(others)])
        for left in features.blocks(ones)
    ]
    return np.vstack(rows)
