"""Principal component analysis that is exact, so that no order of work changes a bit.

A basis is fitted to `moments`, whose sums are exact. Projection is exact by the same argument: components on
the grid of 2**-27 make every dot product with a feature exact in float64, so a vector does not depend on the
batch that it was computed in.
"""

import io
import math
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from imgindex.errors import OutputError
from imgindex.models.moments import GRID, Features, Float64, Moments, on_grid

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]

_COMPONENT_GRID = 2.0**-27
# A basis is saved as six arrays.
_MAX_MEMBERS = 8

# The mean square of float16's rounding error is a twelfth of that of the step between its values (Widrow and
# Kollár, Quantization Noise, 2008). A step is at most 2**-10 of the value, on average of magnitudes 0.73 of
# that; below 2**-14 it is 2**-24.
_FLOAT16_NOISE = 2.0**-20 / 12
_FLOAT16_LEAST_NOISE = 2.0**-48 / 12


# Images that a whitened dimension must have been fitted to. On 600 photos whitening cost half a point of P@4
# at 30 images a dimension, 5 at 12, 10 at 6 and 14 at 4.
WHITENED_IMAGES = 30


@dataclass(frozen=True)
class Basis:
    """A fitted PCA. `components` are unit rows on the grid of 2**-27, largest variance first."""

    mean: Float32  # [feature_dim]
    components: Float32  # [dims, feature_dim]
    explained_variance: Float32  # [dims]
    explained_variance_ratio: Float32  # [dims]
    whiten: float = 0.0  # the power of the standard deviation that each dimension is divided by, from 0 to 1
    cut: int = 0  # components that were asked for and left out, for whitening would have made noise of them

    @property
    def dims(self) -> int:
        """Length of a projected vector."""
        return len(self.components)

    @property
    def feature_dim(self) -> int:
        """Length of a feature."""
        return len(self.mean)

    @property
    def scale_ratio(self) -> float:
        """How many times as much as the first dimension whitening scales the last one."""
        if not self.whiten:
            return 1.0
        return float(np.sqrt(self.explained_variance[0] / self.explained_variance[-1]) ** self.whiten)

    def project(self, features: Features) -> Float32:
        """Projects L2-normalized `features` [n, feature_dim] to vectors [n, dims], row by row.

        A row's vector has the same bits in any batch. Raises ValueError for a wrong shape or range.
        """
        rows = on_grid(features)
        if rows.shape[1] != self.feature_dim:
            raise ValueError(f"expected rows of {self.feature_dim} values, got {rows.shape[1]}")
        components = self.components.astype(np.float64)
        vectors = rows @ components.T
        vectors -= _centre(self.mean, components)
        if self.whiten:
            vectors /= whitening(self.explained_variance, self.whiten)
        return vectors.astype(np.float32)

    def to_npz(self) -> bytes:
        """Serializes the basis as the bytes of an ``.npz`` file."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            mean=self.mean,
            components=self.components,
            explained_variance=self.explained_variance,
            explained_variance_ratio=self.explained_variance_ratio,
            whiten=np.array(bool(self.whiten) if self.whiten in (0, 1) else self.whiten),
            cut=np.array(self.cut),
        )
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> "Basis":
        """Reads `to_npz`'s bytes. Raises OutputError for anything else; never unpickles."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _check_members(archive)
                # All of each member: NumPy stops at the last value that the member's header promises, which
                # may lie before the checksum.
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                basis = cls(
                    mean=arrays["mean"],
                    components=arrays["components"],
                    explained_variance=arrays["explained_variance"],
                    explained_variance_ratio=arrays["explained_variance_ratio"],
                    whiten=_exponent(arrays["whiten"]),
                    cut=_count(arrays["cut"]) if "cut" in arrays else 0,  # which older builds do not write
                )
        except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged bytes
            raise OutputError(f"the PCA basis cannot be read: {error}") from error
        shape = basis.components.shape
        variances = (basis.explained_variance, basis.explained_variance_ratio)
        fits = len(shape) == 2 and 0 not in shape and basis.mean.shape == shape[1:]
        fits = fits and all(variance.shape == shape[:1] for variance in variances)
        if not fits or any(array.dtype != np.float32 for array in (basis.mean, basis.components, *variances)):
            raise OutputError("the PCA basis cannot be read: its arrays do not fit each other")
        if not all(np.isfinite(array).all() for array in (basis.mean, basis.components, *variances)):
            raise OutputError("the PCA basis cannot be read: it has values that are not finite")
        if basis.whiten and not (basis.explained_variance > 0).all():
            raise OutputError("the PCA basis cannot be read: it is to whiten what has no variance")
        return basis


def whitening(variances: Floats, exponent: float) -> Float64:
    """The standard deviations of dimensions with these `variances` [dims], to the power `exponent`.

    Whitening divides each dimension by its own.
    """
    deviations: Float64 = np.sqrt(variances.astype(np.float64))
    if exponent == 1:
        return deviations
    # Machines may differ in the last bits of a power; rounded, they agree.
    rounded: Float64 = (deviations**exponent).astype(np.float32).astype(np.float64)
    return rounded


def _exponent(value: npt.NDArray[Any]) -> float:
    """The exponent of whitening, which is a truth value where it is 0 or 1."""
    if value.shape or value.dtype not in (np.bool_, np.float64) or not 0 <= value <= 1:
        raise ValueError(f"whiten is {value.dtype} {list(value.shape)}")
    return float(value)


def _count(value: npt.NDArray[Any]) -> int:
    if value.shape or value.dtype != np.int64 or value < 0:
        raise ValueError(f"cut is {value.dtype} {list(value.shape)}")
    return int(value)


def _check_members(archive: zipfile.ZipFile) -> None:
    """Raises ValueError for members that need more memory than their bytes, as NumPy would allocate."""
    members = archive.infolist()
    if len(members) > _MAX_MEMBERS:
        raise ValueError(f"it has {len(members)} members")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{member.filename} is compressed")
        with archive.open(member) as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            promised = math.prod(shape) * dtype.itemsize
            if promised != member.file_size - file.tell():
                raise ValueError(f"{member.filename} promises {promised} bytes and has others")


def _centre(mean: Float32, components: Float64) -> Float64:
    """The mean's own projection, [dims], on the grid and so exact like a row's."""
    centre: Float64 = components @ (np.rint(mean.astype(np.float64) / GRID) * GRID)
    return centre


def fit_basis(moments: Moments, dims: int | float, whiten: float = 0.0) -> Basis:
    """Fits PCA to all rows of `moments`, as scikit-learn's ``PCA(svd_solver="full")`` does.

    Args:
      moments: of at least one row.
      dims: how many components, or the share of variance in (0, 1) that they must explain.
      whiten: divide each dimension by this power of its standard deviation, from 0 to 1: 0 leaves vectors as
        they are, 1 gives every dimension a variance of 1. Unless it is 0, components whose variance is no
        more than what the rounding of float16 makes of it are left out, for they would be scaled to noise;
        `Basis.cut` counts them.

    Rows of a rank below `dims` give as many components as their rank. Rows that do not vary at all
    (one image, or copies of one) have no principal direction: the basis is then the rows' own
    direction with mean zero, one component, so that every copy is at cosine 1.

    Each component's sign makes its entry of largest magnitude positive (scikit-learn's ``svd_flip``).
    """
    # Only now, for a search needs none of it; but before BLAS is limited: what is loaded then would not be.
    from scipy.linalg import eigh

    if moments.count < 1:
        raise ValueError("PCA needs at least one row")
    covariance = moments.covariance()
    total_variance = float(np.trace(covariance))
    energy = float((moments.gram_high.diagonal() + moments.gram_low.diagonal()).sum())
    # Rounding of the centred moments is relative to the rows' own energy, not to their variance.
    noise = energy / moments.count * moments.feature_dim * np.finfo(np.float64).eps
    # A share of variance needs the whole spectrum; a count, which is several times quicker, its top.
    wanted = min(dims, moments.feature_dim) if isinstance(dims, int) else moments.feature_dim
    # One thread, so that LAPACK's blocking, and with it the last bits, are always the same.
    with threadpool_limits(limits=1, user_api="blas"):
        variances, vectors = eigh(
            covariance,
            subset_by_index=[moments.feature_dim - wanted, moments.feature_dim - 1],
            overwrite_a=True,
            check_finite=False,
        )
    variances, components = variances[::-1], vectors.T[::-1]
    rank = min(int(np.count_nonzero(variances > noise)), max(moments.count - 1, 0))
    if rank == 0:
        return _constant_basis(moments)
    wanted = min(_component_count(variances[:rank] / total_variance, dims), rank)
    keep = wanted
    if whiten:
        keep = above_noise(moments, variances[:wanted], components[:wanted])
    if keep == 0:
        return _constant_basis(moments)
    components = _fix_signs(components[:keep])
    return Basis(
        mean=moments.mean().astype(np.float32),
        components=(np.rint(components / _COMPONENT_GRID) * _COMPONENT_GRID).astype(np.float32),
        explained_variance=variances[:keep].astype(np.float32),
        explained_variance_ratio=(variances[:keep] / total_variance).astype(np.float32),
        whiten=float(whiten),
        cut=wanted - keep,
    )


def above_noise(moments: Moments, variances: Floats, components: Floats) -> int:
    """How many of the first `components` [dims, d] vary by more than the rounding of rows to float16 makes.

    `variances` [dims] are those along the components, largest first.
    """
    below = variances <= _float16_noise(moments, components)
    return int(np.argmax(below)) if below.any() else len(variances)


def _float16_noise(moments: Moments, components: Floats) -> Float64:
    """At most the variance [dims] along `components` [dims, d] that the rounding of rows to float16 makes.

    Of n rows of nothing but noise in d columns the first component has (1 + sqrt(d / n))**2 times the
    noise's own variance (Marchenko and Pastur, 1967).
    """
    mean_squares = (moments.gram_high.diagonal() + moments.gram_low.diagonal()) / moments.count
    noise: Float64 = np.square(components) @ (_FLOAT16_NOISE * mean_squares + _FLOAT16_LEAST_NOISE)
    return noise * (1 + math.sqrt(moments.feature_dim / moments.count)) ** 2


def _component_count(ratios: Float64, dims: int | float) -> int:
    if isinstance(dims, int):
        return dims
    return int(np.searchsorted(np.cumsum(ratios), dims, side="right")) + 1


def _fix_signs(components: Float64) -> Float64:
    largest = np.argmax(np.abs(components), axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    fixed: Float64 = components * signs[:, np.newaxis]
    return fixed


def _constant_basis(moments: Moments) -> Basis:
    mean = moments.mean()
    if not mean.any():
        raise ValueError("PCA needs rows that are not all zero")
    direction = mean / np.linalg.norm(mean)
    return Basis(
        mean=np.zeros(moments.feature_dim, np.float32),
        components=(np.rint(direction / _COMPONENT_GRID) * _COMPONENT_GRID).astype(np.float32)[np.newaxis],
        explained_variance=np.ones(1, np.float32),
        explained_variance_ratio=np.zeros(1, np.float32),
    )


def normalize(features: Float32) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
    """L2-normalizes `features` [n, d] and rounds them to float16, as the store holds them.

    Returns the unit rows and, for each, whether it has a direction: a zero or non-finite feature
    has none and comes back as zeros.
    """
    norms = np.linalg.norm(features.astype(np.float64), axis=1)
    valid = np.isfinite(norms) & (norms > 0)
    unit = np.zeros(features.shape, np.float16)
    unit[valid] = (features[valid] / norms[valid, np.newaxis]).astype(np.float16)
    return unit, valid
