"""What tests of decoding say of a file: why it fails, and how far its pixels are from expected ones."""

from typing import Any

import numpy as np
import pytest

from imgindex.models.preprocess import DecodeError, decode


def failure(data: bytes, **options: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, (8, 8), **options)
    return caught.value


def difference(seen: np.ndarray, expected: np.ndarray) -> float:
    assert seen.shape == expected.shape
    return float(np.abs(seen - expected.astype(np.float64)).mean())
