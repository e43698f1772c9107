"""When a basis is refitted: not for more of the same, but for images that it explains clearly worse."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.models.drift import MIN_IMAGES, Residuals, judge, total_variance
from imgindex.models.moments import Moments
from imgindex.models.pca import Basis, fit_basis, normalize

DIMS = 20


def features_of(seed: int, rows: int, turn: int = 0, spread: float = 0.9) -> np.ndarray:
    """Unit rows of 64 values with a falling spectrum, in axes that `turn` decides."""
    axes, _ = np.linalg.qr(np.random.default_rng(turn).standard_normal((64, 64)))
    scores = np.random.default_rng(seed).standard_normal((rows, 64)) * spread ** np.arange(64)
    features, _ = normalize((scores @ axes + 1).astype(np.float32))
    return features


def fit(features: np.ndarray, dims: int = DIMS) -> Basis:
    moments = Moments.empty(features.shape[1])
    moments.add(features)
    return fit_basis(moments, dims)


@pytest.mark.parametrize("images", [60, 200, 2000])
@pytest.mark.parametrize("seed", range(5))
def test_more_of_the_same_is_no_reason(images: int, seed: int) -> None:
    basis = fit(features_of(seed, images))
    verdict = judge(basis, Residuals.of(basis, features_of(seed + 100, 300)), images, DIMS)
    assert not verdict.refit, verdict


@pytest.mark.parametrize("seed", range(5))
def test_images_of_another_kind_are(seed: int) -> None:
    basis = fit(features_of(seed, 1000))
    verdict = judge(basis, Residuals.of(basis, features_of(seed + 100, 100, turn=1)), 1000, DIMS)
    assert verdict.refit
    assert verdict.why == "new images are explained worse"
    assert verdict.unexplained > verdict.tolerated


def test_residuals_are_what_the_basis_leaves_of_the_variance() -> None:
    features = features_of(0, 500)
    basis = fit(features)
    residuals = Residuals.of(basis, features)
    assert residuals.count == 500
    # The divisor of the variance is n - 1.
    expected = (1 - basis.explained_variance_ratio.sum()) * 499 / 500
    assert residuals.total / 500 == pytest.approx(expected, rel=1e-4)
    rows = features.astype(np.float64)
    centred = rows - rows.mean(axis=0)
    assert total_variance(basis) == pytest.approx(centred.var(axis=0, ddof=1).sum(), rel=1e-5)
    left = centred - centred @ basis.components.T.astype(np.float64) @ basis.components
    shares = np.square(left).sum(axis=1) / centred.var(axis=0, ddof=1).sum()
    assert residuals.squares == pytest.approx(np.square(shares).sum(), rel=1e-4)


@given(st.lists(st.integers(0, 99), max_size=5))
def test_parts_add_up(cuts: list[int]) -> None:
    basis, features = fit(features_of(0, 200)), features_of(1, 100)
    parts = [Residuals.of(basis, part) for part in np.split(features, sorted(cuts))]
    total = sum(parts, Residuals())
    whole = Residuals.of(basis, features)
    assert total.count == whole.count
    assert total.total == pytest.approx(whole.total)
    assert total.squares == pytest.approx(whole.squares)


def test_too_few_new_images_are_no_reason() -> None:
    basis = fit(features_of(0, 1000))
    other = features_of(1, MIN_IMAGES, turn=1)
    assert not judge(basis, Residuals.of(basis, other[:-1]), 1000, DIMS).refit
    assert judge(basis, Residuals.of(basis, other), 1000, DIMS).refit


def test_no_new_images_are_no_reason() -> None:
    for images in (5, 1000):
        assert not judge(fit(features_of(0, images)), Residuals(), images, DIMS).refit


def test_a_basis_of_too_few_images_is_refitted_for_any_new_one() -> None:
    small = fit(features_of(0, 10))
    assert small.dims == 9
    verdict = judge(small, Residuals.of(small, features_of(1, 1)), 10, DIMS)
    assert (verdict.refit, verdict.why) == (True, f"the basis has only 9 of {DIMS} dimensions")
    share = judge(small, Residuals.of(small, features_of(1, 1)), 9, 0.9)
    assert (share.refit, share.why) == (True, "the basis was fitted to only 9 images")


def test_what_whitening_left_out_as_noise_is_not_missing() -> None:
    basis = replace(fit(features_of(0, 1000), DIMS - 5), cut=5)
    residuals = Residuals.of(basis, features_of(1, 1))
    assert not judge(basis, residuals, 1000, DIMS).refit
    assert judge(replace(basis, cut=4), residuals, 1000, DIMS).refit


def test_a_basis_of_copies_of_one_image_is_refitted() -> None:
    constant = fit(np.repeat(features_of(0, 1), 50, axis=0), 1)
    assert total_variance(constant) == 0
    assert judge(constant, Residuals.of(constant, features_of(1, 1)), 50, 1).refit
