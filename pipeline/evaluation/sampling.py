"""Samples of images."""

import numpy as np
import numpy.typing as npt

Items = npt.NDArray[np.int64]


def some_of(images: Items, most: int, seed: int) -> Items:
    """All of `images`, or as many as are allowed, which `seed` draws, in ascending order."""
    if len(images) <= most:
        return images
    return np.sort(np.random.default_rng(seed).choice(images, most, replace=False))
