"""Groups of duplicates: every pair of one is similar enough, and none could be larger."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.evaluation.duplicates.grouping import Group, group_nodes

Matrix = np.ndarray


def compared_in(matrix: Matrix) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda ones, others: matrix[np.ix_(ones, others)]


def all_pairs(matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(list(combinations(range(len(matrix)), 2)), np.int64).reshape(-1, 2)
    return pairs, matrix[pairs[:, 0], pairs[:, 1]]


def parts_of(groups: list[Group], count: int) -> list[list[int]]:
    """All nodes in their groups, those that are in none alone."""
    grouped = [group.nodes.tolist() for group in groups]
    alone = set(range(count)).difference(*map(set, grouped))
    return [*grouped, *([node] for node in alone)]


@st.composite
def similarities(draw: st.DrawFn) -> Matrix:
    """A symmetric matrix; few values, so that many are equal and some lie right at the threshold."""
    count = draw(st.integers(2, 12))
    values = draw(st.lists(st.sampled_from([0.1, 0.8, 0.9, 0.95, 1.0]), min_size=count**2, max_size=count**2))
    matrix = np.array(values).reshape(count, count)
    matrix = np.triu(matrix, 1)
    return matrix + matrix.T + np.eye(count)


@given(matrix=similarities(), threshold=st.sampled_from([0.8, 0.9, 1.0]))
def test_every_pair_reaches_the_threshold_and_no_two_groups_could_be_one(
    matrix: Matrix, threshold: float
) -> None:
    groups = group_nodes(*all_pairs(matrix), compared_in(matrix), threshold, 100)
    for group in groups:
        pairs = [matrix[one, other] for one, other in combinations(group.nodes.tolist(), 2)]
        assert min(pairs) == group.least >= threshold
    parts = parts_of(groups, len(matrix))
    assert sorted(node for part in parts for node in part) == list(range(len(matrix)))
    for one, other in combinations(parts, 2):
        assert matrix[np.ix_(one, other)].min() < threshold


@given(matrix=similarities(), seed=st.integers(0, 99))
def test_groups_do_not_depend_on_the_order_of_pairs(matrix: Matrix, seed: int) -> None:
    pairs, found = all_pairs(matrix)
    order = np.random.default_rng(seed).permutation(len(pairs))
    groups = [
        group_nodes(pairs[rows], found[rows], compared_in(matrix), 0.9, 100)
        for rows in (np.arange(len(pairs)), order)
    ]
    told = [[(group.nodes.tolist(), group.least) for group in each] for each in groups]
    assert told[0] == told[1]


@given(seed=st.integers(0, 999), most=st.integers(1, 4), threshold=st.sampled_from([0.9, 0.97]))
def test_no_two_groups_could_be_one_also_where_only_the_nearest_pairs_are_known(
    seed: int, most: int, threshold: float
) -> None:
    """As an index gives them: for each node those that are nearest, at most so many."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((3, 6))
    points = centers[generator.integers(0, 3, 24)] + 0.25 * generator.standard_normal((24, 6))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    matrix = np.round(points @ points.T, 6)
    nearest = np.argsort(-matrix, axis=1, kind="stable")
    pairs = {
        (min(node, int(other)), max(node, int(other)))
        for node in range(24)
        for other in [each for each in nearest[node] if each != node][:most]
        if matrix[node, other] >= threshold
    }
    known = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    groups = group_nodes(known, matrix[known[:, 0], known[:, 1]], compared_in(matrix), threshold, most)
    for group in groups:
        assert matrix[np.ix_(group.nodes, group.nodes)].min() >= threshold
    for one, other in combinations(parts_of(groups, 24), 2):
        assert matrix[np.ix_(one, other)].min() < threshold


def test_a_chain_is_no_group() -> None:
    """Each is like the next one, and the first is not like the last: the most similar pair is a group."""
    matrix = np.array([[1, 0.96, 0.5], [0.96, 1, 0.97], [0.5, 0.97, 1]])
    (group,) = group_nodes(*all_pairs(matrix), compared_in(matrix), 0.95, 100)
    assert (group.nodes.tolist(), group.least) == ([1, 2], 0.97)


def test_thousands_of_nodes_in_one_group() -> None:
    """Of each only a few pairs are known."""
    count = 3000
    pairs = np.array([(node, node + step) for node in range(count - 3) for step in (1, 2, 3)], np.int64)

    def compare(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.full((len(ones), len(others)), 0.99)

    (group,) = group_nodes(pairs, np.full(len(pairs), 0.99), compare, 0.95, 3)
    assert (len(group.nodes), group.least) == (count, 0.99)


def test_nothing_to_group() -> None:
    nothing = np.empty((0, 2), np.int64)
    assert group_nodes(nothing, np.empty(0), compared_in(np.eye(1)), 0.9, 3) == []


@pytest.mark.parametrize("threshold", [0.96, 1.0])
def test_pairs_below_the_threshold_do_not_count(threshold: float) -> None:
    matrix = np.array([[1, 0.95], [0.95, 1]])
    assert group_nodes(*all_pairs(matrix), compared_in(matrix), threshold, 100) == []
