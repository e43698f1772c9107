"""Eight bytes that stand for an image or a version of one, where millions of names would not fit into memory.

Two of 10**8 images share their key once in 3,700 times. So keys serve where that costs no more than an image
that is embedded again, or an estimate that is off by one.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


def key_of(*parts: object) -> int:
    """The key of what `parts` together say; the last alone may hold blanks."""
    text = " ".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def sorted_keys(keys: Iterable[int]) -> Keys:
    """`keys`, each once, in order."""
    return np.unique(np.fromiter(keys, np.uint64))


def places(keys: Keys, among: Keys) -> npt.NDArray[np.int64]:
    """Where each of `keys` is in the sorted `among`; -1 where it is not."""
    if not len(among):
        return np.full(len(keys), -1, np.int64)
    found = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return np.where(among[found] == keys, found, -1)
