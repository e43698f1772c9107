"""Exact search in blocks: what sorting all scores gives, however the rows are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.models import blocked_search
from imgindex.models.ann.protocol import METRICS, Metric
from imgindex.models.blocked_search import Nearest, scores


@pytest.mark.parametrize("metric", METRICS)
def test_scores_rank_as_float64_distances_do(metric: Metric) -> None:
    generator = np.random.default_rng(0)
    rows, queries = generator.random((50, 7), np.float32), generator.random((5, 7), np.float32)
    a, b = queries.astype(float)[:, np.newaxis], rows.astype(float)
    if metric == "angular":
        expected = (a * b).sum(axis=2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=1)
    else:
        expected = -np.square(a - b).sum(axis=2)
    assert scores(queries, rows, metric) == pytest.approx(expected, abs=1e-5)


def test_a_zero_vector_has_the_cosine_0_with_everything() -> None:
    zero, rows = np.zeros((1, 3), np.float32), np.ones((2, 3), np.float32)
    assert scores(zero, rows, "angular").tolist() == [[0, 0]]
    assert scores(rows, zero, "angular").tolist() == [[0], [0]]


@pytest.mark.parametrize("more", [0, 1, 64])  # rows that are held beside the best
@given(
    count=st.integers(1, 30),
    k=st.integers(1, 8),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_best_of_all_blocks_the_own_content_left_out(
    more: int, count: int, k: int, cuts: list[int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    contents = generator.integers(0, 5, count)  # many copies
    queries = generator.integers(0, 6, 4)  # some are of no row
    values = generator.integers(0, 4, (4, count)).astype(np.float32)  # many ties
    order = generator.permutation(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked_search, "_MORE", more)
        nearest = Nearest(queries, k)
    for rows in np.split(order, sorted(cuts)):
        nearest.offer(values[:, rows].copy(), rows, contents[rows])
    best, scored = nearest.best()
    for number, content in enumerate(queries):
        allowed = [row for row in range(count) if contents[row] != content]
        expected = sorted(allowed, key=lambda row: (-values[number, row], row))[:k]
        assert best[number].tolist() == expected + [-1] * (k - len(expected))
        assert scored[number, : len(expected)].tolist() == values[number, expected].tolist()
        assert np.isneginf(scored[number, len(expected) :]).all()
