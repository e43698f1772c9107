"""Measures of rankings: by hand, by trec_eval's own code, and on any ranking."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, P, Qrel, R, ScoredDoc
from scipy.stats import binomtest

from imgindex.models.retrieval_metrics import (
    average_precision_at_r,
    bootstrap_interval,
    mean_interval,
    precision_at,
    recall_at,
)

# Four rankings of five images, and how many images are relevant to each query.
RELEVANT = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool)
TOTALS = np.array([3, 2, 4, 5])


def test_by_hand() -> None:
    assert precision_at(RELEVANT, 4).tolist() == [0.5, 0, 0.5, 1]
    assert recall_at(RELEVANT, TOTALS, 4) == pytest.approx([2 / 3, 0, 0.5, 0.8])
    assert average_precision_at_r(RELEVANT, TOTALS) == pytest.approx([(1 + 1) / 3, 0, (1 / 2 + 2 / 4) / 4, 1])


def test_a_ranking_that_is_too_short_is_divided_by_k_all_the_same() -> None:
    assert precision_at(np.ones((1, 2), bool), 4).tolist() == [0.5]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rankings of all images there are, so that the relevant ones are all in them."""
    queries, ranks = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    relevant = np.array(draw(st.lists(st.lists(st.booleans(), min_size=ranks, max_size=ranks),
                                      min_size=queries, max_size=queries)))  # fmt: skip
    relevant = relevant[relevant.any(axis=1)]
    return relevant, relevant.sum(axis=1)


@given(ranking=rankings(), k=st.integers(1, 15))
def test_as_trec_eval_measures(ranking: tuple[np.ndarray, np.ndarray], k: int) -> None:
    relevant, totals = ranking
    for row, total in zip(relevant, totals, strict=True):
        judged = [Qrel("q", str(n), 1) for n in np.flatnonzero(row)]
        ranked = [ScoredDoc("q", str(n), -n) for n in range(len(row))]
        wanted = ir_measures.calc_aggregate([P @ k, R @ k, AP @ int(total)], judged, ranked)
        one, of = row[np.newaxis], np.array([total])
        assert precision_at(one, k)[0] == pytest.approx(wanted[P @ k])
        assert recall_at(one, of, k)[0] == pytest.approx(wanted[R @ k])
        assert average_precision_at_r(one, of)[0] == pytest.approx(wanted[AP @ int(total)])


def test_the_interval_is_about_as_wide_as_theory_says() -> None:
    values = (np.random.default_rng(1).random(400) < 0.8).astype(float)
    low, high = bootstrap_interval(values, seed=0)
    deviation = values.std() / np.sqrt(len(values))
    assert low < values.mean() < high
    assert (high - low) / (2 * 1.96 * deviation) == pytest.approx(1, abs=0.1)
    assert (low, high) == bootstrap_interval(values, seed=0)


def test_values_that_are_all_the_same_have_an_interval_of_no_width() -> None:
    assert bootstrap_interval(np.full(10, 0.25), seed=3) == (0.25, 0.25)


@pytest.mark.parametrize("count", [1, 2, 12, 500])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_interval_of_equal_shares_is_that_of_wilson(count: int, share: float) -> None:
    wilson = binomtest(round(share * count), count).proportion_ci(method="wilson")
    found = mean_interval(np.full(count, share), seed=0)
    assert found == pytest.approx((wilson.low, wilson.high), abs=1e-7)
    assert found[0] <= share <= found[1]


def test_the_interval_of_other_shares_is_that_of_the_bootstrap() -> None:
    shares = np.array([0.0, 0.25, 1.0, 1.0])
    assert mean_interval(shares, seed=3) == bootstrap_interval(shares, seed=3)
