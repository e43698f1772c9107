"""The similarity measures, against worked numbers, SciPy, scikit-learn and exact arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from sklearn.metrics import mean_squared_error
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances, manhattan_distances

from imgindex.models import measures
from imgindex.models.measures import MEASURES, measure_scores

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def score(measure: str, one: object, other: object, dtype: object = np.float64) -> float:
    queries, rows = np.array([one], dtype), np.array([other], dtype)
    return float(measure_scores(measure, queries, rows)[0, 0])


class TestWorkedNumbers:
    def test_mean_squared_error(self) -> None:
        assert score("mse", (1, 2, 4, 5), (1.2, 2.4, 3.4, 5.6)) == pytest.approx(0.23, abs=1e-15)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.float64])
    def test_l1(self, dtype: object) -> None:
        """Of bytes, too, whose differences wrap around."""
        assert score("l1", (100, 105, 98, 110), (102, 107, 97, 108), dtype) == 7

    def test_cosine(self) -> None:
        assert round(score("cosine", (1, 2, 3, 4), (5, 6, 7, 8)), 2) == 0.97

    def test_ncc(self) -> None:
        found = score("ncc", (1, 2, 4, 9), (4, 3, 1, 2))
        assert found == pytest.approx(-8 / (math.sqrt(38) * math.sqrt(5)), abs=1e-15)
        assert round(found, 2) == -0.58

    @pytest.mark.parametrize("dtype", [np.uint8, np.float64])
    def test_a_query_against_rows(self, dtype: object) -> None:
        query = np.array([(1, 1, 1)], dtype)
        rows = np.array([(3, 2, 1), (2, 4, 1), (3, 1, 4), (0, 2, 0)], dtype)
        assert measure_scores("l1", query, rows).tolist() == [[3, 4, 5, 3]]
        assert measure_scores("cosine", query, rows).round(2).tolist() == [[0.93, 0.88, 0.91, 0.58]]

    def test_l2(self) -> None:
        assert score("l2", (0, 0), (3, 4)) == 5


class TestDegenerate:
    @pytest.mark.parametrize("constant", [0, 7, 0.1, 1 / 3])
    def test_ncc_of_a_constant_is_undefined(self, constant: float) -> None:
        rows = np.array([(constant,) * 3, (1, 2, 4)])
        assert np.isnan(measure_scores("ncc", rows, rows)).tolist() == [[True, True], [True, False]]

    def test_cosine_of_zero_is_zero(self) -> None:
        rows = np.array([(0, 0, 0), (1, 2, 4)])
        np.testing.assert_allclose(measure_scores("cosine", rows, rows), [[0, 0], [0, 1]], atol=1e-15)

    @pytest.mark.parametrize("measure", MEASURES)
    def test_vectors_of_other_lengths_are_refused(self, measure: str) -> None:
        with pytest.raises(ValueError, match=r"same d > 0, got \(1, 3\) and \(1, 4\)"):
            measure_scores(measure, np.ones((1, 3)), np.ones((1, 4)))
        with pytest.raises(ValueError, match="same d > 0"):
            measure_scores(measure, np.ones((1, 0)), np.ones((1, 0)))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
    @pytest.mark.parametrize("measure", MEASURES)
    def test_what_no_score_can_be_made_of_is_refused(self, measure: str, value: float) -> None:
        with pytest.raises(ValueError, match="finite"):
            score(measure, (1, value), (1, 2))

    @pytest.mark.parametrize("measure", MEASURES)
    def test_no_rows_and_no_queries(self, measure: str) -> None:
        assert measure_scores(measure, np.ones((2, 3)), np.ones((0, 3))).shape == (2, 0)
        assert measure_scores(measure, np.ones((0, 3)), np.ones((2, 3))).shape == (0, 2)


def independent(measure: str, queries: Array, rows: Array) -> Array:
    """The same by scikit-learn and NumPy."""
    match measure:
        case "l1":
            return manhattan_distances(queries, rows)
        case "l2":
            return euclidean_distances(queries, rows)
        case "mse":
            return np.array([[mean_squared_error(query, row) for row in rows] for query in queries])
        case "cosine":
            return cosine_similarity(queries, rows)
    return np.corrcoef(queries, rows)[: len(queries), len(queries) :]


SCIPY = {"l1": "cityblock", "l2": "euclidean", "cosine": "cosine", "ncc": "correlation"}


class TestAgainstOthers:
    @pytest.mark.parametrize("kind", ["pixels", "features", "floats"])
    @pytest.mark.parametrize("measure", MEASURES)
    def test_scores_are_those_of_scikit_learn_and_scipy(self, measure: str, kind: str) -> None:
        generator = np.random.default_rng(5)
        if kind == "pixels":
            queries, rows = (generator.integers(0, 256, (n, 48), np.uint8) for n in (7, 30))
        else:
            queries, rows = (generator.standard_normal((n, 48)).astype(np.float32) for n in (7, 30))
        if kind == "features":
            queries, rows = (
                (each / np.linalg.norm(each, axis=1)[:, np.newaxis]).astype(np.float16)
                for each in (queries, rows)
            )
        wide = queries.astype(np.float64), rows.astype(np.float64)
        found = measure_scores(measure, queries, rows)
        np.testing.assert_allclose(found, independent(measure, *wide), rtol=1e-11, atol=1e-13)
        if measure in SCIPY:
            distances = cdist(*wide, SCIPY[measure])
            expected = distances if MEASURES[measure].is_distance else 1 - distances
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("measure", MEASURES)
    def test_blocks_change_nothing(self, measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = np.random.default_rng(6)
        queries, rows = (generator.integers(0, 256, (n, 20), np.uint8) for n in (23, 57))
        queries[3], rows[11] = rows[5], 9
        whole = measure_scores(measure, queries, rows)
        for values, step in ((1, 1), (60, 1000), (400, 6)):
            monkeypatch.setattr(measures, "_BLOCK_VALUES", values)
            monkeypatch.setattr(measures, "_BLOCK_ROWS", step)
            np.testing.assert_allclose(measure_scores(measure, queries, rows), whole, rtol=1e-13, atol=1e-15)

    def test_near_vectors_are_told_apart(self) -> None:
        """|x|**2 + |y|**2 - 2 x·y alone would give zeros and negative numbers for these."""
        generator = np.random.default_rng(7)
        rows = np.repeat(generator.standard_normal((1, 200)), 5, axis=0)
        rows[np.arange(1, 5), 0] += [1e-14, 1e-12, 1e-9, 1e-3]
        expected = np.abs(rows[:, 0] - rows[0, 0])
        np.testing.assert_allclose(measure_scores("l2", rows[:1], rows)[0], expected, rtol=1e-9)


ROWS = st.integers(1, 12).flatmap(
    lambda dims: hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.just(dims)),
        elements=st.integers(-1000, 1000).map(lambda value: value / 8),
    )
)


class TestProperties:
    @given(st.sampled_from(sorted(MEASURES)), ROWS)
    def test_a_vector_is_nearest_to_itself_and_all_are_symmetric(self, measure: str, rows: Array) -> None:
        scores = measure_scores(measure, rows, rows)
        np.testing.assert_allclose(scores, scores.T, rtol=1e-12, atol=1e-14)
        own = np.diag(scores)
        if MEASURES[measure].is_distance:
            assert (own == 0).all()
            assert (scores >= 0).all()
        else:
            assert (np.abs(scores[~np.isnan(scores)]) <= 1).all()
            defined = rows.any(axis=1) if measure == "cosine" else np.ptp(rows, axis=1) > 0
            np.testing.assert_allclose(own[defined], 1, atol=1e-13)
            assert (np.isnan(own) == ((measure == "ncc") & ~defined)).all()

    @given(ROWS)
    def test_they_are_what_exact_arithmetic_gives(self, rows: Array) -> None:
        one, other = ([Fraction(value) for value in row.tolist()] for row in (rows[0], rows[-1]))
        gaps = [a - b for a, b in zip(one, other, strict=True)]
        squares = sum(gap * gap for gap in gaps)
        pair = rows[0], rows[-1]
        assert score("l1", *pair) == float(sum(map(abs, gaps)))
        assert score("l2", *pair) == pytest.approx(math.sqrt(squares), rel=1e-12)
        assert score("mse", *pair) == pytest.approx(float(squares / len(gaps)), rel=1e-12)

        def cosine(a: list[Fraction], b: list[Fraction]) -> float:
            product = sum(x * y for x, y in zip(a, b, strict=True))
            lengths = sum(x * x for x in a) * sum(y * y for y in b)
            return float(product) / math.sqrt(lengths) if lengths else 0.0

        assert score("cosine", *pair) == pytest.approx(cosine(one, other), abs=1e-13)
        centered = [[value - sum(each) / len(each) for value in each] for each in (one, other)]
        if all(map(any, centered)):
            assert score("ncc", *pair) == pytest.approx(cosine(*centered), abs=1e-13)
        else:
            assert math.isnan(score("ncc", *pair))

    @given(ROWS, st.floats(2.0**-400, 2.0**400), st.integers(-1000, 1000))
    def test_cosine_ignores_scale_and_ncc_brightness_too(self, rows: Array, scale: float, shift: int) -> None:
        for measure, changed in (("cosine", rows * scale), ("ncc", rows * 4 + shift), ("ncc", rows * scale)):
            np.testing.assert_allclose(
                measure_scores(measure, changed, rows), measure_scores(measure, rows, rows), atol=1e-11
            )

    @given(ROWS)
    def test_on_unit_vectors_all_but_l1_agree_on_the_order(self, rows: Array) -> None:
        """|x - y|**2 = 2 - 2 cos."""
        rows = rows[rows.any(axis=1)]
        assume(len(rows))
        units = rows / np.linalg.norm(rows, axis=1)[:, np.newaxis]
        cosines = measure_scores("cosine", units, units)
        np.testing.assert_allclose(measure_scores("l2", units, units) ** 2, 2 - 2 * cosines, atol=1e-12)
        mse = measure_scores("mse", units, units)
        np.testing.assert_allclose(mse * units.shape[1], 2 - 2 * cosines, atol=1e-12)
