"""Whether a basis that was fitted to older images still explains newer ones."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgindex.models.pca import Basis

# The share of variance that a basis may miss of new images, relative to what a fit to images like those that
# it was fitted to would miss of others like them.
TOLERANCE = 1.25

# Fewer new images than this say nothing of a collection.
MIN_IMAGES = 30


@dataclass(frozen=True)
class Residuals:
    """Sums over images of the share of the fit's variance that a basis leaves unexplained; parts add up."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Residuals") -> "Residuals":
        """Both parts together."""
        return Residuals(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @classmethod
    def of(cls, basis: Basis, features: npt.NDArray[np.floating]) -> "Residuals":
        """Residuals of `features` [n, feature_dim], L2-normalized."""
        variance = total_variance(basis)
        if not variance:
            return cls(len(features))
        centred = features.astype(np.float64) - basis.mean
        scores = centred @ basis.components.T.astype(np.float64)
        shares = (np.square(centred).sum(axis=1) - np.square(scores).sum(axis=1)) / variance
        return cls(len(features), float(shares.sum()), float(np.square(shares).sum()))


def total_variance(basis: Basis) -> float:
    """The variance, over all dimensions, of the features that `basis` was fitted to."""
    ratio = float(basis.explained_variance_ratio.sum())
    return float(basis.explained_variance.sum()) / ratio if ratio else 0.0


@dataclass(frozen=True)
class Verdict:
    """Whether to fit a new basis, and why."""

    refit: bool
    why: str
    new_images: int = 0
    unexplained: float | None = None  # the new images' mean share
    tolerated: float | None = None  # what it may be


def judge(basis: Basis, residuals: Residuals, fitted_images: int, wanted: int | float) -> Verdict:
    """Says whether `basis`, fitted to `fitted_images` images, must be refitted.

    A basis is refitted when

    - it has fewer dimensions than `wanted`, for it was fitted to too few images, and there are new ones (what
      was cut as noise is not missing); or
    - of at least `MIN_IMAGES` new images it leaves a mean share of variance unexplained that is, by more than
      two standard errors, above `TOLERANCE` times what is to be expected.

    What is to be expected is the share left at the fit, 1 - sum(explained_variance_ratio), times
    (1 + d/n) / (1 - d/n)**2 for d dimensions fitted to n images: a fit explains its own images better than
    others like them. The first part is Akaike's final prediction error (1970) over the fit's own; the whole
    is what was measured, within a fifth, for spectra from steep to flat and n from 3 d to 50 d.
    """
    new, dims = residuals.count, basis.dims
    if new and isinstance(wanted, int) and dims + basis.cut < min(wanted, basis.feature_dim):
        return Verdict(True, f"the basis has only {dims} of {wanted} dimensions", new)
    if new and (dims >= fitted_images or not total_variance(basis)):
        return Verdict(True, f"the basis was fitted to only {fitted_images} images", new)
    if new < MIN_IMAGES:
        return Verdict(False, f"{new} new images are fewer than {MIN_IMAGES}", new)
    mean = residuals.total / new
    deviation = max(residuals.squares / new - mean**2, 0.0) ** 0.5
    share = max(1 - float(basis.explained_variance_ratio.sum()), 0.0)
    ratio = dims / fitted_images
    tolerated = TOLERANCE * share * (1 + ratio) / (1 - ratio) ** 2
    refit = mean - 2 * deviation / new**0.5 > tolerated
    why = "new images are explained worse" if refit else "new images are explained as well as expected"
    return Verdict(refit, why, new, mean, tolerated)
