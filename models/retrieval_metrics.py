"""Measures of a ranking, by which of its images are relevant to the query.

Every function takes `relevant`, [queries, ranks] of booleans: whether the image at each rank, the nearest
first, is relevant. `totals`, [queries], says how many images are relevant to each query, at any rank; each
is at least 1. The definitions of P@k, R@k and AP are those of trec_eval (Buckley and Voorhees, Retrieval
System Evaluation, 2005).
"""

import numpy as np
import numpy.typing as npt

Relevant = npt.NDArray[np.bool_]
Totals = npt.NDArray[np.integer]
Values = npt.NDArray[np.float64]

_RESAMPLES = 1000
# Weights of resamples that are held at once: 32 MiB.
_WEIGHTS = 1 << 22


def precision_at(relevant: Relevant, k: int) -> Values:
    """P@k [queries]: the share of the first `k` ranks that hold a relevant image.

    A ranking of fewer than `k` images is divided by `k` all the same, as trec_eval does.
    """
    found: Values = relevant[:, :k].sum(axis=1) / k
    return found


def recall_at(relevant: Relevant, totals: Totals, k: int) -> Values:
    """R@k [queries]: the share of the relevant images that the first `k` ranks hold."""
    found: Values = relevant[:, :k].sum(axis=1) / totals
    return found


def average_precision_at_r(relevant: Relevant, totals: Totals) -> Values:
    """AP at the rank R [queries], where R is the number of relevant images: the mean of it is mAP@R.

    It is the sum of P@i over the ranks i up to R that hold a relevant image, divided by R (Musgrave,
    Belongie and Lim, A Metric Learning Reality Check, 2020). `relevant` has at least as many ranks as the
    largest of `totals`.
    """
    ranks = np.arange(1, relevant.shape[1] + 1)
    counted = relevant & (ranks <= totals[:, np.newaxis])
    precisions = np.cumsum(relevant, axis=1) / ranks
    found: Values = np.where(counted, precisions, 0.0).sum(axis=1) / totals
    return found


def bootstrap_interval(values: Values, seed: int, share: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the mean of `values` [n], by the bootstrap.

    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993.) It holds `share` of the means of 1,000
    samples of n values that are drawn from `values` with replacement.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    means: list[Values] = []
    step = max(1, _WEIGHTS // count)
    for start in range(0, _RESAMPLES, step):
        drawn = generator.integers(0, count, (min(step, _RESAMPLES - start), count))
        means.append(values[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


_QUANTILE = 1.959964  # of the normal distribution, at 97.5 %


def mean_interval(shares: Values, seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean of `shares` [n], each from 0 to 1.

    It is that of `bootstrap_interval`. Where all shares are the same, a bootstrap has no width, as if nothing
    were uncertain. There it is the interval of n trials of that share (Wilson, Probable Inference, the Law of
    Succession, and Statistical Inference, 1927).
    """
    if (shares != shares[0]).any():
        return bootstrap_interval(shares, seed)
    share, count, square = float(shares[0]), len(shares), _QUANTILE**2
    middle = share + square / (2 * count)
    width = _QUANTILE * ((share * (1 - share) + square / (4 * count)) / count) ** 0.5
    low, high = ((middle + sign * width) / (1 + square / count) for sign in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))
