"""PCA: the same as scikit-learn's, and the same to the last bit however the rows are cut and merged."""

import functools
import io
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from packed import npz
from sklearn.decomposition import PCA

from imgindex.errors import OutputError
from imgindex.models.moments import Moments
from imgindex.models.pca import Basis, fit_basis, normalize

ARRAYS = ("mean", "components", "explained_variance", "explained_variance_ratio")
UNIT = 2.0**-24  # float16 values are whole multiples of this


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Float64 rows [n, d] of norm 1 around a mean, each direction with 0.8 of the one before's deviation."""
    generator = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(generator.standard_normal((d, d)))
    rows = (generator.standard_normal((n, d)) * 0.8 ** np.arange(d)) @ turn + generator.random(d)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def moments_of(*batches: np.ndarray) -> Moments:
    moments = Moments.empty(batches[0].shape[1])
    for batch in batches:
        moments.add(batch)
    return moments


def added(one: Moments, other: Moments) -> Moments:
    blocks = [a + b for a, b in zip(one.blocks(), other.blocks(), strict=True)]
    return Moments.of_blocks(reversed(blocks))


def fit(rows: np.ndarray, dims: int | float, whiten: bool = False) -> Basis:
    return fit_basis(moments_of(rows), dims, whiten)


def same_bits(one: Basis, other: Basis) -> bool:
    return one.whiten == other.whiten and all(
        getattr(one, name).dtype == getattr(other, name).dtype
        and np.array_equal(getattr(one, name), getattr(other, name))
        for name in ARRAYS
    )


def one_hot_rows() -> np.ndarray:
    """200 rows with 1 or -1 in one column and nothing else: the largest energy that a column can have."""
    rows = np.zeros((200, 3), np.float16)
    rows[:, 1] = np.where(np.arange(200) % 3, 1, -1)
    return rows


def smallest_on_largest() -> np.ndarray:
    """A column of 32 ones, then 32 times the smallest float16: 2**-48 is lost beside a sum of 32."""
    rows = np.zeros((64, 2), np.float16)
    rows[:32, 0] = 1
    rows[32:, 0] = UNIT
    rows[32:, 1] = 1
    return rows


ROWS = {
    "float16": normalize(unit_rows(300, 12).astype(np.float32))[0],
    "float64": unit_rows(300, 12),
    "float32, few rows": unit_rows(7, 12).astype(np.float32),
    "one hot": one_hot_rows(),
    "one hot in all columns": np.tile(np.eye(4, dtype=np.float32), (100, 1)) * -1,
    "smallest on largest": smallest_on_largest(),
    "more than one block": normalize(unit_rows(9000, 4).astype(np.float32))[0],
    "copies": np.tile(normalize(unit_rows(1, 12).astype(np.float32))[0], (150, 1)),
}


class TestAgainstScikitLearn:
    @pytest.mark.parametrize(
        ("n", "d", "dims"),
        [(500, 6, 4), (1000, 32, 8), (200, 64, 10), (20, 50, 8), (2, 3, 1), (5000, 16, 15)],
    )
    def test_fit_and_projection(self, n, d, dims):
        rows = unit_rows(n, d, seed=n)
        expected = PCA(dims, svd_solver="full").fit(rows)
        basis = fit(rows, dims)
        np.testing.assert_allclose(basis.mean, expected.mean_, rtol=1e-5, atol=1e-7)
        # Signs included: both make a component's entry of largest magnitude positive.
        np.testing.assert_allclose(basis.components, expected.components_, atol=1e-5)
        np.testing.assert_allclose(basis.explained_variance, expected.explained_variance_, rtol=1e-5)
        np.testing.assert_allclose(
            basis.explained_variance_ratio, expected.explained_variance_ratio_, rtol=1e-5
        )
        np.testing.assert_allclose(basis.project(rows), expected.transform(rows), atol=1e-5)
        assert (basis.dims, basis.feature_dim) == (dims, d)
        assert basis.project(rows).dtype == np.float32

    def test_whitened_projection(self):
        rows = unit_rows(400, 24)
        expected = PCA(10, svd_solver="full", whiten=True).fit(rows)
        vectors = fit(rows, 10, whiten=True).project(rows)
        np.testing.assert_allclose(vectors, expected.transform(rows), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(vectors.std(axis=0, ddof=1), 1, rtol=1e-4)

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.8, 0.9, 0.95, 0.99, 0.9999])
    def test_dims_as_a_share_of_variance(self, share):
        rows = unit_rows(300, 20)
        basis = fit(rows, share)
        assert basis.dims == PCA(share, svd_solver="full").fit(rows).n_components_
        assert basis.explained_variance_ratio.sum() >= share

    @given(st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=30)
    def test_largest_entry_of_a_component_is_positive(self, seed):
        for component in fit(unit_rows(30, 8, seed), 8).components:
            assert component.max() == np.abs(component).max()


@st.composite
def cuts_and_merges(draw, rows):
    """`rows` shuffled and cut into batches, each batch's moments, merged pair by pair in any order."""
    order = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permutation(len(rows))
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=8)))
    parts = [moments_of(batch) for batch in np.split(rows[order], cuts)]
    while len(parts) > 1:
        one, other = (parts.pop(draw(st.integers(0, len(parts) - 1))) for _ in range(2))
        parts.append(added(one, other))
    return parts[0]


class TestExactMoments:
    @pytest.mark.parametrize("kind", ROWS)
    @given(data=st.data())
    @settings(deadline=None, max_examples=30)
    def test_any_split_and_any_merge_order_give_the_same_bits(self, kind, data):
        rows = ROWS[kind]
        whole = moments_of(rows)
        moments = data.draw(cuts_and_merges(rows))
        assert moments.count == whole.count == len(rows)
        np.testing.assert_array_equal(moments.total, whole.total, strict=True)
        np.testing.assert_array_equal(moments.mean(), whole.mean(), strict=True)
        np.testing.assert_array_equal(moments.covariance(), whole.covariance(), strict=True)
        assert same_bits(fit_basis(moments, 12), fit_basis(whole, 12))

    @pytest.mark.parametrize("kind", [kind for kind, rows in ROWS.items() if rows.dtype == np.float16])
    def test_equal_to_whole_numbers(self, kind):
        rows = ROWS[kind][:200]
        assert_exact(moments_of(rows), rows)

    @given(arrays(np.float16, (8, 3), elements=st.floats(-1, 1, width=16)))
    @settings(deadline=None, max_examples=150)
    def test_no_float16_value_is_rounded(self, rows):
        assert_exact(moments_of(rows), rows)

    def test_covariance_equals_the_exact_one(self):
        rows = ROWS["float16"][:50, :4]
        exact = [[Fraction(float(value)) for value in row] for row in rows]
        n = len(rows)
        columns = [[value - sum(column) / n for value in column] for column in zip(*exact, strict=True)]
        covariance = [
            [float(sum(x * y for x, y in zip(a, b, strict=True)) / (n - 1)) for b in columns] for a in columns
        ]
        np.testing.assert_allclose(moments_of(rows).covariance(), covariance, rtol=1e-10, atol=1e-15)

    def test_other_values_are_rounded_to_3e_8_at_most(self):
        rows = unit_rows(1, 5)
        assert np.abs(moments_of(rows).mean() - rows[0]).max() <= 3e-8

    def test_no_rows_are_neutral(self):
        moments = moments_of(np.zeros((0, 12)), ROWS["float16"], np.zeros((0, 12), np.float16))
        moments = added(moments, Moments.empty(12))
        assert same_bits(fit_basis(moments, 5), fit(ROWS["float16"], 5))

    def test_half_a_billion_rows(self):
        row = np.array([[1, 0, 0]], np.float16)
        moments = moments_of(row)
        for _ in range(29):
            moments = added(moments, moments)
        assert moments.count == 2**29
        assert moments.mean().tolist() == [1, 0, 0]
        with pytest.raises(OverflowError):
            added(moments, moments)


def assert_exact(moments: Moments, rows: np.ndarray) -> None:
    """Compares sums and Gram matrix of float16 `rows` with Python's whole numbers."""
    whole = [[int(Fraction(float(value)) / Fraction(UNIT)) for value in row] for row in rows]
    columns = list(zip(*whole, strict=True))
    assert [Fraction(value) for value in moments.total.tolist()] == [
        sum(column) * Fraction(UNIT) for column in columns
    ]
    for i, j in zip(*np.triu_indices(len(columns)), strict=True):
        product = sum(x * y for x, y in zip(columns[i], columns[j], strict=True)) * Fraction(UNIT) ** 2
        assert Fraction(moments.gram_high[i, j]) + Fraction(moments.gram_low[i, j]) == product


class TestProjection:
    ROWS, _ = normalize(unit_rows(60, 96).astype(np.float32))

    @pytest.mark.parametrize("whiten", [False, True])
    @given(st.lists(st.integers(0, 59), min_size=1, max_size=60))
    @settings(deadline=None, max_examples=100)
    def test_a_row_has_the_same_bits_in_any_batch(self, whiten, chosen):
        basis = fit(self.ROWS, 17, whiten)
        np.testing.assert_array_equal(basis.project(self.ROWS[chosen]), basis.project(self.ROWS)[chosen])

    @pytest.mark.parametrize("whiten", [False, True])
    def test_the_mean_itself_projects_to_zero(self, whiten):
        # Rows in pairs around a mean without rounding: all that could be left of its projection is rounding.
        generator = np.random.default_rng(0)
        mean = generator.integers(-(2**18), 2**18, 512) * UNIT
        offsets = generator.integers(-(2**18), 2**18, (40, 512)) * UNIT
        rows = np.concatenate([mean + offsets, mean - offsets])
        basis = fit(rows, 30, whiten)
        np.testing.assert_array_equal(basis.mean, mean)
        for others in (0, 1, 17):
            assert not basis.project(np.concatenate([rows[:others], [mean]]))[-1].any()

    def test_memory_order_does_not_matter(self):
        basis = fit(self.ROWS, 17)
        np.testing.assert_array_equal(
            basis.project(np.asfortranarray(self.ROWS)), basis.project(self.ROWS), strict=True
        )

    def test_by_hand(self):
        # The rows vary along the first axis only, by -0.5 and 0.5 around 0.
        rows = np.array([[-0.5, 0.25], [0.5, 0.25]])
        basis = fit(rows, 1)
        assert basis.mean.tolist() == [0, 0.25]
        assert basis.components.tolist() == [[1, 0]]
        assert basis.explained_variance.tolist() == [0.5]
        assert basis.project(np.array([[1.0, 0.0], [0.0, 1.0]])).tolist() == [[1], [0]]

    def test_no_rows(self):
        assert fit(self.ROWS, 17).project(self.ROWS[:0]).shape == (0, 17)


class TestLowRank:
    def test_rank_limits_dims(self):
        # Four points of a square in the plane of the first two of six axes.
        square = np.zeros((4, 6), np.float16)
        square[[0, 1], 0] = 1, -1
        square[[2, 3], 1] = 0.5, -0.5
        basis = fit(np.tile(square, (25, 1)), 5)
        assert np.abs(basis.components).tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
        assert basis.explained_variance_ratio.tolist() == pytest.approx([0.8, 0.2])

    @pytest.mark.parametrize("n", [2, 3, 5])
    def test_few_rows_give_one_component_less(self, n):
        assert fit(unit_rows(n, 30), 10).dims == n - 1

    @pytest.mark.parametrize(("n", "d"), [(1, 3), (1, 300), (2, 30), (50, 30), (777, 200)])
    @pytest.mark.parametrize("dims", [5, 0.9])
    def test_copies_of_one_row_are_at_cosine_1(self, n, d, dims):
        row, _ = normalize(unit_rows(1, d).astype(np.float32))
        basis = fit(np.tile(row, (n, 1)), dims, whiten=True)
        assert not basis.mean.any()
        vectors = basis.project(np.tile(row, (n, 1)))
        assert vectors.shape == (n, 1)
        np.testing.assert_allclose(vectors, 1, atol=1e-3)  # float16 rows have about norm 1


def in_few_axes(rows: int, feature_dim: int, axes: int, seed: int = 0) -> np.ndarray:
    """Rows that vary along `axes` axes only, but for the rounding of float16."""
    generator = np.random.default_rng(seed)
    scores, mean = generator.standard_normal((rows, axes)), generator.standard_normal(feature_dim)
    values = scores @ generator.standard_normal((axes, feature_dim)) + mean
    return (values / np.abs(values).max()).astype(np.float16)


class TestWhitenedNoise:
    @pytest.mark.parametrize(("rows", "feature_dim"), [(400, 64), (100, 300), (3000, 40), (60, 1280)])
    @pytest.mark.parametrize("seed", range(3))
    def test_components_of_nothing_but_rounding_are_cut(self, rows, feature_dim, seed):
        features = in_few_axes(rows, feature_dim, 3, seed)
        basis = fit(features, 20, whiten=True)
        assert (basis.dims, basis.cut) == (3, 17)
        # What is not amplified stays.
        plain = fit(features, 20)
        assert (plain.dims, plain.cut) == (20, 0)

    @pytest.mark.parametrize("dims", [3, 20])
    def test_the_kept_ones_are_those_of_scikit_learn(self, dims):
        features = in_few_axes(400, 64, 3)
        basis = fit(features, dims, whiten=True)
        rows = features.astype(np.float64)
        expected = PCA(basis.dims, svd_solver="full", whiten=True).fit(rows)
        np.testing.assert_allclose(basis.project(features), expected.transform(rows), atol=2e-3)
        np.testing.assert_allclose(np.std(basis.project(features), axis=0, ddof=1), 1, rtol=1e-4)

    def test_what_varies_ten_times_as_much_as_the_rounding_stays(self):
        generator = np.random.default_rng(0)
        axes = np.linalg.qr(generator.standard_normal((64, 6)))[0].T
        rows = generator.standard_normal((2000, 1)) * 0.3 @ axes[:1]
        step = np.sqrt(10 * 2.0**-20 / 12 * np.square(rows).mean())
        rows += generator.standard_normal((2000, 4)) * step @ axes[1:5]
        basis = fit(rows.astype(np.float16), 5, whiten=True)
        assert (basis.dims, basis.cut) == (5, 0)

    @pytest.mark.parametrize(("least", "most"), [(2.0**-9, 1), (0.5, 0.6), (0.9, 1), (2.0**-24, 2.0**-13)])
    def test_the_bound_is_one_for_values_of_any_magnitude(self, least, most):
        values = np.exp(np.random.default_rng(0).uniform(np.log(least), np.log(most), 100_000))
        error = np.square(values.astype(np.float16).astype(np.float64) - values).mean()
        bound = 2.0**-20 / 12 * np.square(values).mean() + 2.0**-48 / 12
        assert bound / 4.5 < error < bound * 1.01

    def test_images_that_differ_by_rounding_alone(self):
        features = np.repeat(in_few_axes(1, 64, 3), 50, axis=0)
        features[::2, 0] = np.nextafter(features[::2, 0], np.float16(1))
        basis = fit(features, 5, whiten=True)
        assert basis.dims == 1
        vectors = basis.project(features)
        assert np.ptp(vectors) < 1e-4 * np.abs(vectors).max()

    @pytest.mark.parametrize("whiten", [False, True])
    def test_by_how_much_the_last_dimension_is_amplified(self, whiten):
        basis = fit(unit_rows(500, 30), 7, whiten)
        plain = fit(unit_rows(500, 30), 7)
        spreads = np.std(plain.project(unit_rows(500, 30)), axis=0)
        assert basis.scale_ratio == (pytest.approx(spreads[0] / spreads[-1], rel=1e-3) if whiten else 1)


class TestRefused:
    @pytest.mark.parametrize(
        "rows",
        [
            [[1.5, 0]],
            [[0, -1.01]],
            [[np.nan, 0]],
            [[0, np.inf]],
            [[-np.inf, 0]],
            [[0.5]],
            [[0.5, 0.5, 0]],
            [0.5, 0.5],
            [[[0.5, 0.5]]],
        ],
    )
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_rows(self, rows, dtype):
        moments = moments_of(np.array([[1.0, 0], [0, 1.0], [-1.0, 0]]))
        basis = fit_basis(moments, 1)
        with pytest.raises(ValueError, match=r"features must be|expected rows of 2"):
            moments.add(np.array(rows, dtype))
        with pytest.raises(ValueError, match=r"features must be|expected rows of 2"):
            basis.project(np.array(rows, dtype))
        assert same_bits(fit_basis(moments, 1), basis), "a refused batch left something behind"

    def test_no_rows(self):
        with pytest.raises(ValueError, match="at least one row"):
            fit_basis(Moments.empty(3), 2)


class TestWhitening:
    @given(whiten=st.floats(0, 1))
    @settings(max_examples=25)
    def test_divides_by_a_power_of_the_standard_deviation(self, whiten):
        rows = unit_rows(80, 10).astype(np.float16)
        expected = PCA(6, svd_solver="full").fit(rows.astype(np.float64))
        wanted = expected.transform(rows.astype(np.float64)) / expected.explained_variance_ ** (whiten / 2)
        basis = fit(rows, 6, whiten)
        found = basis.project(rows)
        signs = np.sign((found * wanted).sum(axis=0))
        assert found == pytest.approx(wanted * signs, abs=1e-5 * np.abs(wanted).max())
        deviations = np.sqrt(expected.explained_variance_)
        assert basis.scale_ratio == pytest.approx((deviations[0] / deviations[-1]) ** whiten, rel=1e-5)

    @pytest.mark.parametrize("whiten", [False, True])
    def test_false_and_true_are_0_and_1(self, whiten):
        rows = unit_rows(50, 8)
        assert fit(rows, 4, whiten).to_npz() == fit(rows, 4, float(whiten)).to_npz()
        with np.load(io.BytesIO(fit(rows, 4, float(whiten)).to_npz())) as stored:
            assert stored["whiten"].dtype == np.bool_  # as older versions read it


class TestNpz:
    SMALL = fit(unit_rows(20, 6), 3)

    @pytest.mark.parametrize("whiten", [0, 0.25, 1])
    def test_round_trip(self, whiten):
        basis = fit(unit_rows(100, 30), 7, whiten)
        assert same_bits(Basis.from_npz(basis.to_npz()), basis)

    def test_what_was_cut_is_kept_and_is_none_where_it_is_not_said(self):
        basis = fit(in_few_axes(400, 64, 3), 20, whiten=True)
        again = Basis.from_npz(basis.to_npz())
        assert again.cut == basis.cut > 0
        arrays = dict(np.load(io.BytesIO(basis.to_npz())))
        del arrays["cut"]  # as older builds wrote it
        file = io.BytesIO()
        np.savez(file, **arrays)
        assert Basis.from_npz(file.getvalue()).cut == 0

    def test_readable_by_numpy(self):
        with np.load(io.BytesIO(self.SMALL.to_npz())) as stored:
            for name in ARRAYS:
                np.testing.assert_array_equal(stored[name], getattr(self.SMALL, name), strict=True)

    def test_same_bytes_twice(self):
        assert self.SMALL.to_npz() == fit(unit_rows(20, 6), 3).to_npz()
        with zipfile.ZipFile(io.BytesIO(self.SMALL.to_npz())) as archive:
            times = {member.date_time for member in archive.infolist()}
        assert times == {(1980, 1, 1, 0, 0, 0)}, "the time of writing is in the bytes"

    def test_every_truncation_is_refused(self):
        data = self.SMALL.to_npz()
        for length in range(len(data)):
            with pytest.raises(OutputError):
                Basis.from_npz(data[:length])

    @given(st.data())
    @settings(deadline=None, max_examples=500)
    def test_damage_is_refused_or_harmless(self, data):
        stored = bytearray(self.SMALL.to_npz())
        position = data.draw(st.integers(0, len(stored) - 1))
        stored[position] ^= data.draw(st.integers(1, 255))
        try:
            basis = Basis.from_npz(bytes(stored))
        except OutputError:
            return
        # Zip holds some bytes that mean nothing here, such as a time.
        assert same_bits(basis, self.SMALL)

    @pytest.mark.parametrize("promised", [b"'<f2'", b"'<i2'", b"'|i1'"])
    def test_damaged_header_that_promises_fewer_bytes(self, promised):
        stored = fit(unit_rows(200, 128), 100).to_npz()
        at = stored.find(b"'<f4'")
        damaged = 0
        while at >= 0:
            with pytest.raises(OutputError):
                Basis.from_npz(stored[:at] + promised + stored[at + len(promised) :])
            damaged += 1
            at = stored.find(b"'<f4'", at + 1)
        assert damaged == len(ARRAYS)

    @given(st.binary(max_size=200))
    @settings(deadline=None)
    def test_any_other_bytes_are_refused(self, data):
        for stored in (data, b"PK\x03\x04" + data, b"\x93NUMPY\x01\x00" + data):
            with pytest.raises(OutputError):
                Basis.from_npz(stored)

    @pytest.mark.parametrize(
        "change",
        [
            {"mean": np.zeros(5, np.float32)},
            {"mean": np.zeros((6, 1), np.float32)},
            {"mean": np.float32(0)},
            {"components": np.zeros((2, 6), np.float32)},
            {"components": np.zeros(6, np.float32)},
            {"explained_variance": np.ones(4, np.float32)},
            {"explained_variance_ratio": np.ones(4, np.float32)},
            {"whiten": np.array([True, False])},
            {"whiten": np.array(1.5)},
            {"whiten": np.array(-0.5)},
            {"whiten": np.array(np.nan)},
            {"whiten": np.float32(0.5)},
            {"mean": None},
            {"whiten": None},
        ],
    )
    def test_arrays_that_do_not_fit_are_refused(self, change):
        contents = {name: getattr(self.SMALL, name) for name in ARRAYS} | {"whiten": np.array(False)} | change
        with pytest.raises(OutputError):
            Basis.from_npz(npz({name: value for name, value in contents.items() if value is not None}))

    def test_pickles_are_not_executed(self, tmp_path):
        class Touch:
            def __reduce__(self):
                return Path.touch, (tmp_path / "executed",)

        trap = np.array([Touch()], dtype=object)
        contents = {name: getattr(self.SMALL, name) for name in ARRAYS} | {"whiten": np.array(False)}
        alone = io.BytesIO()
        np.save(alone, trap, allow_pickle=True)
        stored = [npz(contents | {name: trap}) for name in contents] + [alone.getvalue(), trap.dumps()]
        for data in stored:
            with pytest.raises(OutputError):
                Basis.from_npz(data)
        assert not (tmp_path / "executed").exists()
        # The trap is set: NumPy, where it may, executes it.
        alone.seek(0)
        np.load(alone, allow_pickle=True)
        assert (tmp_path / "executed").exists()


class TestNormalize:
    @pytest.mark.parametrize("scale", [1e-30, 1e-3, 1, 1e4, 1e37])
    def test_unit_rows_of_the_same_direction(self, scale):
        features = np.random.default_rng(0).random((40, 512), dtype=np.float32) * np.float32(scale)
        unit, valid = normalize(features)
        assert unit.dtype == np.float16
        assert valid.all()
        expected = features.astype(np.float64)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        # float16 rounds by half of 2**-10 at most, relative to each value.
        np.testing.assert_allclose(unit.astype(np.float64), expected, rtol=2**-11, atol=UNIT)
        np.testing.assert_allclose(np.linalg.norm(unit.astype(np.float64), axis=1), 1, atol=2**-11)

    def test_rows_without_direction_are_flagged(self):
        features = np.array(
            [[3, 4], [0, 0], [np.nan, 1], [1, np.inf], [-np.inf, 0], [0, -2], [np.inf, -np.inf]], np.float32
        )
        unit, valid = normalize(features)
        assert valid.tolist() == [True, False, False, False, False, True, False]
        assert unit.tolist() == [
            [np.float16(0.6), np.float16(0.8)],
            [0, 0],
            [0, 0],
            [0, 0],
            [0, 0],
            [0, -1],
            [0, 0],
        ]

    def test_what_it_returns_can_be_summed_and_projected(self):
        unit, _ = normalize(np.array([[5, 0, 0], [0, -7, 0], [1, 1, 1e-9]], np.float32))
        assert fit(unit, 2).project(unit).shape == (3, 2)

    def test_no_rows(self):
        unit, valid = normalize(np.zeros((0, 4), np.float32))
        assert (unit.shape, valid.shape) == ((0, 4), (0,))


@pytest.mark.parametrize("feature_dim", [3, 8, 19])
def test_moments_added_in_blocks_are_those_of_all_rows(feature_dim):
    rows, _ = normalize(np.random.default_rng(feature_dim).normal(size=(60, feature_dim)).astype(np.float32))
    joined = functools.reduce(added, [moments_of(part) for part in np.array_split(rows, 4)])
    expected = moments_of(rows)
    assert joined.count == 60
    assert (joined.total == expected.total).all()
    assert (joined.covariance() == expected.covariance()).all()
