"""Annoy shards: same bytes twice, distances and neighbors against brute force in float64, damaged files."""

import tracemalloc
from fractions import Fraction
from itertools import pairwise
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annoy import AnnoyIndex
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.errors import OutputError
from imgindex.models import similarity
from imgindex.models.ann.annoy import Annoy, AnnoyShard
from imgindex.models.ann.protocol import METRICS
from imgindex.models.ann.recall import first_to_reach, measure_recall, recall_sample
from imgindex.models.similarity import cosine_similarity, exact_nearest, exact_squares, rank_each

EVERYTHING = {"search_k": 10**6}  # makes Annoy inspect every node of these small indexes

SEARCHES = AnnoyShard.searches


def build(vectors: np.ndarray, path: Path, metric: Any, **settings: int) -> None:
    Annoy().build(vectors, path, metric=metric, settings=settings)


def random_vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def brute_force(vectors: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Distances [n] in float64, by definition: of the points, or of the points' directions."""
    points, point = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "angular":
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        point = point / np.linalg.norm(point)
    return np.linalg.norm(points - point, axis=1)


def shard_of(path, vectors: np.ndarray, metric="angular", trees: int = 10, seed: int = 0) -> AnnoyShard:
    build(vectors, path, metric=metric, trees=trees, seed=seed)
    return AnnoyShard(path, metric=metric, dims=vectors.shape[1], items=len(vectors))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.ann"


class TestInstalledAnnoy:
    @pytest.mark.parametrize("metric", METRICS)
    def test_returns_k_distinct_neighbors(self, metric):
        # Some compilers' builds return one neighbor, whatever k is: spotify/annoy issue 679.
        index = AnnoyIndex(16, metric)
        for item, vector in enumerate(random_vectors(1000, 16)):
            index.add_item(item, vector)
        index.build(10, n_jobs=1)
        for k in (1, 2, 10, 100):
            assert len(set(index.get_nns_by_item(0, k))) == k


class TestBuildShard:
    @pytest.mark.parametrize("metric", METRICS)
    def test_bytes_depend_on_the_arguments_alone(self, tmp_path, metric):
        vectors = random_vectors(500, 8)
        one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
        build(vectors, one, metric=metric, trees=5, seed=1)
        build(np.asfortranarray(vectors), two, metric=metric, trees=5, seed=1)
        build(vectors, other, metric=metric, trees=5, seed=2)
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes() != other.read_bytes()

    @pytest.mark.parametrize("metric", METRICS)
    def test_with_several_threads_answers_depend_on_the_arguments_alone(self, tmp_path, metric):
        vectors, queries = random_vectors(3000, 8), random_vectors(50, 8, seed=1)
        answers = []
        for number in range(4):
            path = tmp_path / f"{number}"
            Annoy().build_blocks(
                [(np.arange(3000), vectors)], path, items=3000, dims=8, metric=metric,
                settings={"trees": 8, "seed": 1}, threads=4, on_disk=number > 1,
            )  # fmt: skip
            shard = AnnoyShard(path, metric=metric, dims=8, items=3000)
            shard.check()
            answers.append([shard.search(query, 10, {"search_k": 100})[0].tolist() for query in queries])
        assert all(each == answers[0] for each in answers)

    def test_a_path_that_cannot_be_written(self, tmp_path):
        with pytest.raises(OutputError, match="could not write"):
            build(random_vectors(3, 2), tmp_path / "no/such/x", metric="angular", trees=1, seed=0)

    @pytest.mark.parametrize(("n", "d", "trees"), [(1, 4, 5), (100, 8, 10), (2000, 50, 20), (5000, 8, 5)])
    def test_estimated_size(self, path, n, d, trees):
        build(random_vectors(n, d), path, metric="angular", trees=trees, seed=0)
        assert Annoy().file_bytes(n, d, {"trees": trees}) == pytest.approx(path.stat().st_size, rel=0.25)


def exact_key(vector: np.ndarray, query: np.ndarray, metric: str) -> Fraction:
    """What orders vectors as their distances from a query do, without any rounding."""
    v, q = ([Fraction(float(x)) for x in row] for row in (vector, query))
    if metric == "euclidean":
        return sum(((a - b) ** 2 for a, b in zip(v, q, strict=True)), Fraction(0))
    dot, size = sum(map(mul, v, q)), sum(map(mul, v, v)) * sum(map(mul, q, q))
    return Fraction(1) if size == 0 else 1 - Fraction(dot * abs(dot), size)  # 1 - cos |cos|


def exact_order(vectors: np.ndarray, query: np.ndarray, metric: str) -> list[int]:
    """The rows by distance; of equal distances the lower row comes first."""
    return sorted(range(len(vectors)), key=lambda row: (exact_key(vectors[row], query, metric), row))


class TestBackend:
    @pytest.mark.parametrize("metric", METRICS)
    def test_a_search_gives_the_rows_and_distances_of_the_nearest(self, path, metric):
        vectors, queries = random_vectors(300, 12), random_vectors(7, 12, seed=1)
        backend = Annoy()
        backend.build(vectors, path, metric=metric, settings={"trees": 10, "seed": 0})
        index = backend.open(path, metric=metric, dims=12, items=300)
        for query in queries:
            expected = brute_force(vectors, query, metric)
            items, distances = index.search(query, 10, EVERYTHING)
            assert items.tolist() == np.argsort(expected)[:10].tolist()
            np.testing.assert_allclose(distances, np.sort(expected)[:10], rtol=1e-5)


class TestDistances:
    @pytest.mark.parametrize("metric", METRICS)
    def test_equal_brute_force_and_annoy(self, path, metric):
        vectors, queries = random_vectors(200, 24), random_vectors(9, 24, seed=1)
        shard = shard_of(path, vectors, metric)
        annoy = AnnoyIndex(24, metric)
        annoy.load(str(path))
        answers = shard.nearest(queries, 200, EVERYTHING)
        for query, (items, found) in zip(queries, answers, strict=True):
            squares, errors = exact_squares(vectors, query, metric)
            row = np.sqrt(squares)
            np.testing.assert_allclose(row, brute_force(vectors, query, metric), rtol=1e-12)
            assert (errors <= 1e-12 * np.maximum(squares, 1)).all()
            np.testing.assert_allclose(found, row[items], rtol=1e-6)
            numbers, distances = annoy.get_nns_by_vector(query, 200, 10**6, include_distances=True)
            np.testing.assert_allclose(distances, row[numbers], rtol=1e-5)

    def test_by_hand(self):
        vectors = np.array([[2, 0], [0, 3], [-5, 0], [1, 1]], np.float32)
        query = np.array([4, 0], np.float32)
        angular, euclidean = (exact_squares(vectors, query, metric)[0].tolist() for metric in METRICS)
        assert angular == pytest.approx([0, 2, 4, 2 - 2**0.5], abs=1e-15)
        assert euclidean == [4, 25, 81, 10]
        assert cosine_similarity(vectors, query[np.newaxis])[0].tolist() == pytest.approx(
            [1, 0, -1, 0.5**0.5]
        )

    def test_cosines_never_leave_their_range(self):
        vectors = random_vectors(500, 7) * 1e3
        cosines = cosine_similarity(vectors, vectors)
        assert np.abs(cosines).max() <= 1
        np.testing.assert_allclose(np.diagonal(cosines), 1, atol=1e-6)

    def test_a_zero_vector_is_at_right_angles_to_everything(self, path):
        vectors = random_vectors(5, 3)
        vectors[2] = 0
        shard = shard_of(path, vectors)
        queries = np.array([[1, 2, 3], [0, 0, 0]], np.float32)
        assert exact_squares(vectors, queries[0], "angular")[0][2] == 2
        assert exact_squares(vectors, queries[1], "angular")[0].tolist() == [2] * 5
        for query, (items, found) in zip(queries, shard.nearest(queries, 5, EVERYTHING), strict=True):
            assert sorted(items.tolist()) == [0, 1, 2, 3, 4]
            expected = np.sqrt(exact_squares(vectors, query, "angular")[0])
            assert found.tolist() == pytest.approx(expected[items].tolist())


# Whole numbers tie often. A base vector and steps of its last bits lie closer than float32's products tell.
ROWS = st.integers(1, 4).flatmap(
    lambda dims: st.one_of(
        st.lists(st.lists(st.integers(-2, 2), min_size=dims, max_size=dims), min_size=2, max_size=40),
        st.tuples(
            st.lists(st.floats(-1, 1, width=32), min_size=dims, max_size=dims),
            st.lists(st.lists(st.integers(-3, 3), min_size=dims, max_size=dims), min_size=2, max_size=30),
            st.sampled_from([1e-7, 1e-6, 1e-5, 1e-3]),
        ).map(lambda drawn: (np.array(drawn[0]) + np.array(drawn[1]) * drawn[2]).tolist()),
        st.lists(
            st.lists(
                st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=dims, max_size=dims
            ),
            min_size=2,
            max_size=20,
        ),
    )
)


@pytest.mark.parametrize("metric", METRICS)
@given(rows=ROWS, k=st.integers(1, 20), parts=st.lists(st.integers(0, 8), min_size=1, max_size=6))
def test_each_query_ranks_its_own_vectors_as_fractions_do(metric, rows, k, parts):
    vectors = np.array(rows, np.float32)
    queries = vectors[np.arange(len(parts)) % len(vectors)]
    items = np.arange(sum(parts)) * 7 % len(vectors)  # the same ones, again and again
    places, squares, counts = rank_each(vectors[items], np.array(parts), queries, metric, k)
    assert counts.tolist() == [min(part, k) for part in parts]
    edges = np.cumsum(counts)[:-1]
    ranked = zip(np.split(places, edges), np.split(squares, edges), strict=True)
    stops = np.cumsum(parts)
    for query, start, stop, (found, near) in zip(queries, stops - parts, stops, ranked, strict=True):
        own = vectors[items[start:stop]]
        assert (found - start).tolist() == exact_order(own, query, metric)[:k]
        np.testing.assert_allclose(
            near, exact_squares(own, query, metric)[0][found - start], rtol=1e-12, atol=1e-12
        )


class TestExactNearest:
    def test_no_queries_read_nothing(self, path):
        class Unread:
            def __len__(self):
                return 5

            def __getitem__(self, rows):
                raise AssertionError("read")

        none = np.empty((0, 3), np.float32)
        assert exact_nearest(Unread(), none, 2, "angular") == []
        shard = shard_of(path, random_vectors(5, 3))
        shard.vectors = Unread()
        assert shard.nearest(none, 2, None, Unread()) == []

    @pytest.mark.parametrize("metric", METRICS)
    @given(rows=ROWS, k=st.integers(1, 50), block=st.integers(1, 50))
    @settings(max_examples=100)
    def test_the_order_and_the_ties_are_those_of_fractions(self, metric, rows, k, block):
        query, *vectors = np.array(rows, np.float32)
        vectors = np.array([*vectors, query])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(similarity, "_EXACT_ROWS", block)
            patch.setattr(similarity, "_RANKED_ROWS", 3)
            [(items, distances)] = exact_nearest(vectors, query[np.newaxis], k, metric)
        assert items.tolist() == exact_order(vectors, query, metric)[:k]
        assert (np.diff(distances) >= 0).all()

    @pytest.mark.parametrize("metric", METRICS)
    def test_distances_far_below_what_float32_products_tell(self, metric):
        # Steps at right angles to a unit vector: distances of 1e-4 down to 1e-7, in an order of chance.
        base = np.zeros(150, np.float32)
        base[0] = 1
        steps = np.random.default_rng(0).permutation(np.geomspace(1e-7, 1e-4, 500)).astype(np.float32)
        vectors = np.tile(base, (500, 1))
        vectors[np.arange(500), 1 + np.arange(500) % 149] = steps
        [(items, distances)] = exact_nearest(vectors, base[np.newaxis], 500, metric)
        assert items.tolist() == np.argsort(steps).tolist()
        np.testing.assert_allclose(distances, np.sort(steps), rtol=1e-6)

    @pytest.mark.parametrize("metric", METRICS)
    @given(data=st.data())
    @settings(deadline=None, max_examples=150)
    def test_equals_a_stable_sort_across_blocks_and_ties(self, metric, data):
        # Entries of 1 and -1 make every distance exact in float32, and many of them equal.
        generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        n, k, block = (data.draw(st.integers(1, 60)) for _ in range(3))
        vectors, queries = (generator.choice(np.float32([-1, 1]), (rows, 4)) for rows in (n, 3))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(similarity, "_EXACT_ROWS", block)
            answers = exact_nearest(vectors, queries, k, metric)
        assert len(answers) == 3
        for query, (items, distances) in zip(queries, answers, strict=True):
            expected = brute_force(vectors, query, metric).round(9)
            order = np.argsort(expected, kind="stable")[:k]
            assert items.tolist() == order.tolist()
            np.testing.assert_allclose(distances, expected[order], atol=1e-6)

    @pytest.mark.parametrize("metric", METRICS)
    @given(seed=st.integers(0, 99), n=st.integers(1, 60), k=st.integers(1, 20), kept=st.integers(1, 60))
    def test_of_some_items(self, metric, seed, n, k, kept):
        generator = np.random.default_rng(seed)
        vectors, query = generator.choice(np.float32([-1, 0, 1]), (n, 3)), np.float32([[1, 2, 3]])
        items = np.sort(generator.choice(n, min(n, kept), replace=False))
        [(found, _)] = exact_nearest(vectors, query, k, metric, items)
        expected = [item for item in exact_order(vectors, query[0], metric) if item in set(items.tolist())]
        assert found.tolist() == expected[:k]

    @pytest.mark.parametrize("metric", METRICS)
    def test_many_queries_and_rows_in_many_blocks(self, metric):
        vectors, queries = random_vectors(3000, 20), random_vectors(150, 20, seed=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(similarity, "_EXACT_ROWS", 700)
            answers = exact_nearest(vectors, queries, 10, metric)
        for query, (items, distances) in zip(queries, answers, strict=True):
            expected = brute_force(vectors, query, metric)
            assert items.tolist() == np.argsort(expected)[:10].tolist()
            np.testing.assert_allclose(distances, np.sort(expected)[:10], rtol=1e-6)

    def test_products_that_overflow(self):
        vectors = np.float32([[1.8e19], [1.21e19], [1e18]])
        [(items, _)] = exact_nearest(vectors, np.float32([[1.4e19]]), 1, "euclidean")
        assert items.tolist() == [1]

    @pytest.mark.parametrize("copies", [False, True])
    def test_memory_does_not_grow_with_the_rows(self, copies):
        """Also where all rows are as near."""
        vectors = random_vectors(40_000, 8)
        vectors[:] = vectors[0] if copies else vectors
        queries, peaks = random_vectors(3, 8, seed=1), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(similarity, "_EXACT_ROWS", 500)
            patch.setattr(similarity, "_RANKED_ROWS", 500)
            for rows in (2000, 40_000):
                tracemalloc.start()
                exact_nearest(vectors[:rows], queries, 5, "angular")
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        assert peaks[1] <= 1.2 * peaks[0]

    def test_no_queries(self):
        assert exact_nearest(random_vectors(5, 2), np.zeros((0, 2), np.float32), 3, "angular") == []


class TestAnnoyShard:
    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (300, 17), (1000, 150)])
    def test_vectors_are_annoys_own(self, path, metric, n, d):
        vectors = random_vectors(n, d)
        shard = shard_of(path, vectors, metric, trees=3)
        annoy = AnnoyIndex(d, metric)
        annoy.load(str(path))
        own = np.array([annoy.get_item_vector(item) for item in range(n)], np.float32)
        np.testing.assert_array_equal(shard.vectors, own, strict=True)
        np.testing.assert_array_equal(shard.vectors, vectors, strict=True)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("k", [1, 10, 399, 400, 1000])
    def test_deepest_and_exact_search_equal_brute_force(self, path, metric, k):
        vectors, queries = random_vectors(400, 12), random_vectors(5, 12, seed=1)
        shard = shard_of(path, vectors, metric)
        exact, annoy = shard.nearest(queries, k), shard.nearest(queries, k, EVERYTHING)
        for query, (items, distances), (found, found_distances) in zip(queries, exact, annoy, strict=True):
            expected = brute_force(vectors, query, metric)
            assert items.tolist() == found.tolist() == np.argsort(expected)[:k].tolist()
            np.testing.assert_allclose(distances, np.sort(expected)[:k], rtol=1e-5)
            np.testing.assert_allclose(found_distances, np.sort(expected)[:k], rtol=1e-5)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("search", [None, EVERYTHING])
    def test_one_item(self, path, metric, search):
        shard = shard_of(path, np.array([[3, 4]], np.float32), metric)
        [(items, distances)] = shard.nearest(np.array([[6, 8]], np.float32), 10, search)
        assert items.tolist() == [0]
        assert distances.tolist() == pytest.approx([0 if metric == "angular" else 5], abs=1e-3)

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("search", [None, EVERYTHING])
    def test_copies_of_a_vector_are_all_found(self, path, metric, search):
        vectors = random_vectors(100, 6)
        vectors[20:50] = vectors[7]
        shard = shard_of(path, vectors, metric)
        [(items, distances)] = shard.nearest(vectors[7:8], 31, search)
        assert sorted(items.tolist()) == [7, *range(20, 50)]
        assert distances.tolist() == [0] * 31


class TestRefusedFiles:
    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("trees", [1, 2, 8])
    def test_other_dims(self, path, metric, trees):
        build(random_vectors(50, 5), path, metric=metric, trees=trees, seed=0)
        # 13 dimensions make nodes of just twice the bytes, or nearly so.
        for dims in set(range(1, 80)) - {5}:
            with pytest.raises(OutputError, match=r"index\.ann"):
                AnnoyShard(path, metric=metric, dims=dims, items=50)

    @pytest.mark.parametrize("metric", METRICS)
    def test_other_metric(self, path, metric):
        [other] = set(METRICS) - {metric}
        for trees in range(1, 10):
            build(random_vectors(50, 5), path, metric=other, trees=trees, seed=0)
            with pytest.raises(OutputError, match=r"index\.ann"):
                AnnoyShard(path, metric=metric, dims=5, items=50)

    @pytest.mark.parametrize("items", [1, 49, 51, 10**9])
    def test_other_number_of_items(self, path, items):
        build(random_vectors(50, 5), path, metric="angular", trees=3, seed=0)
        with pytest.raises(OutputError, match=f"holds 50 items; its manifest promises {items}"):
            AnnoyShard(path, metric="angular", dims=5, items=items)

    @pytest.mark.parametrize("metric", METRICS)
    def test_truncated_file_is_refused_or_holds_every_vector(self, path, metric):
        vectors = random_vectors(30, 3)
        build(vectors, path, metric=metric, trees=3, seed=0)
        whole = path.read_bytes()
        node = 4 * (3 + (3 if metric == "angular" else 4))
        refused = 0
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            try:
                shard = AnnoyShard(path, metric=metric, dims=3, items=30)
            except OutputError:
                refused += 1
                continue
            # Cut exactly behind a tree, Annoy's format is whole: only the trees after it are lost.
            assert length % node == 0
            np.testing.assert_array_equal(shard.vectors, vectors, strict=True)
        assert refused > len(whole) * 0.95

    def test_empty_file(self, path):
        path.write_bytes(b"")
        with pytest.raises(OutputError):
            AnnoyShard(path, metric="angular", dims=3, items=1)

    def test_missing_file(self, path):
        with pytest.raises(OutputError):
            AnnoyShard(path, metric="angular", dims=3, items=1)

    def test_other_content(self, path):
        path.write_bytes(b"no Annoy file at all" * 60)
        with pytest.raises(OutputError):
            AnnoyShard(path, metric="angular", dims=3, items=50)


class ShardThatFinds(AnnoyShard):
    """A shard whose approximate answers are the exact ones, changed by `change(items)`."""

    def __init__(self, path, vectors, change):
        build(vectors, path, metric="angular", trees=1, seed=0)
        super().__init__(path, metric="angular", dims=vectors.shape[1], items=len(vectors))
        self.change = change

    def nearest(self, queries, k, settings=None, contents=None):
        answers = super().nearest(queries, k, None, contents)
        if settings is None:
            return answers
        kept = [self.change(items) for items, _ in answers]
        return [
            (items[keep], distances[keep]) for (items, distances), keep in zip(answers, kept, strict=True)
        ]


class TestMeasureRecall:
    @pytest.mark.parametrize("metric", METRICS)
    def test_perfect_by_the_deepest_search_of_few_items(self, path, metric):
        recalls = measure_recall(shard_of(path, random_vectors(300, 8), metric))
        assert recalls[-1] == 1
        assert len(recalls) == len(SEARCHES)

    @pytest.mark.parametrize("metric", METRICS)
    def test_rises_with_the_depth_of_the_search(self, path, metric):
        recalls = measure_recall(shard_of(path, random_vectors(2000, 32), metric, trees=1))
        assert 0 < recalls[0] < recalls[-1] / 2 <= 0.5
        assert all(later >= earlier - 0.02 for earlier, later in pairwise(recalls))

    def test_equals_a_count_by_brute_force(self, path):
        vectors = random_vectors(150, 16)
        shard = shard_of(path, vectors, trees=2)
        expected = []
        for search in SEARCHES:
            hits = 0
            for item, query in enumerate(vectors):
                [(found, _)] = shard.nearest(query[np.newaxis], 11, search)
                order = np.argsort(brute_force(vectors, query, "angular"))
                hits += len(set(order[1:11].tolist()) & set(found.tolist()) - {item})
            expected.append(hits / 1500)
        assert measure_recall(shard) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("change", "recall"),
        [
            (lambda items: slice(None), 1.0),
            (lambda items: slice(0, 1), 0.0),  # itself alone, which is no neighbor
            (lambda items: slice(1, None), 1.0),  # all but itself
            (lambda items: slice(0, 8), 0.7),
            (lambda items: slice(0, 0), 0.0),
        ],
    )
    def test_the_item_itself_does_not_count(self, path, change, recall):
        shard = ShardThatFinds(path, random_vectors(400, 16), change)
        assert measure_recall(shard) == pytest.approx([recall] * len(SEARCHES))

    @pytest.mark.parametrize(("items", "recall"), [(1, 1.0), (2, 1.0), (5, 1.0), (11, 1.0)])
    def test_fewer_items_than_are_compared(self, path, items, recall):
        assert measure_recall(shard_of(path, random_vectors(items, 4)))[-1] == recall

    def test_copies_do_not_stand_for_what_is_there_once(self, path):
        # Annoy finds the copies of one image for certain and the rest hardly.
        once = random_vectors(300, 32)
        vectors = np.concatenate([once, np.repeat(random_vectors(1, 32, seed=1), 5000, axis=0)])
        contents = np.minimum(np.arange(5300), 300)
        shard = shard_of(path, vectors, trees=1)
        alone = measure_recall(shard, contents, target=0.9)
        assert alone[0] < 0.5
        assert alone[-1] >= 0.9  # where enough nodes are inspected
        assert measure_recall(shard)[0] > 0.9  # what is measured where nothing tells copies

    @given(seed=st.integers(0, 99), most=st.integers(1, 40))
    @settings(max_examples=10)
    def test_equals_a_count_of_distinct_contents_by_brute_force(self, tmp_path_factory, seed, most):
        generator = np.random.default_rng(seed)
        contents = generator.integers(0, most, 200)
        vectors = generator.standard_normal((most, 6)).astype(np.float32)[contents]
        shard = shard_of(tmp_path_factory.mktemp("shard") / "x", vectors, trees=1)
        distinct = np.unique(contents, return_index=True)[1]
        wanted, hits = min(10, len(distinct) - 1), 0
        for item in distinct:
            order = distinct[np.argsort(brute_force(vectors[distinct], vectors[item], "angular"))]
            [(found, _)] = shard.nearest(vectors[[item]], 200, SEARCHES[0])
            near = [content for content in contents[found] if content != contents[item]]
            hits += len(set(contents[order[1 : wanted + 1]]) & set(near))
        assert measure_recall(shard, contents)[0] == pytest.approx(
            hits / (len(distinct) * wanted) if wanted else 1
        )

    def test_the_sample_is_spread_over_distinct_contents(self):
        contents = np.concatenate([np.zeros(5000, int), np.arange(1, 401), np.zeros(5000, int)])
        sample = recall_sample(contents)
        assert len(sample) == 200
        assert len(set(contents[sample])) == 200
        assert np.diff(contents[sample]).max() <= 3

    @pytest.mark.parametrize("metric", METRICS)
    def test_copies_are_as_good_as_each_other(self, path, metric):
        # Hundreds of copies of each of three images: any ten of them are the nearest ten.
        vectors = np.repeat(random_vectors(3, 20), 400, axis=0)
        assert measure_recall(shard_of(path, vectors, metric))[-1] == 1

    @pytest.mark.parametrize("metric", METRICS)
    def test_what_annoy_cannot_tell_apart_is_as_good_as_each_other(self, path, metric):
        # Fewer images than dimensions, whitened: corners of a simplex, but for rounding equally far apart.
        rows = np.random.default_rng(0).standard_normal((100, 300))
        corners = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[0][:, :99]
        assert measure_recall(shard_of(path, (10 * corners).astype(np.float32), metric))[0] == 1

    def test_what_is_farther_by_more_than_rounding_does_not_count(self, path):
        # Of 20 images in a row, as near to each other as 5e-3, the tenth to the nineteenth are found.
        angles = 5e-3 * np.arange(20)
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        shard = ShardThatFinds(path, vectors, lambda items: items >= 10)
        assert measure_recall(shard)[0] < 0.6

    def test_a_single_direction(self, path):
        # What an index of copies of one image holds: one dimension, every vector 1.
        assert measure_recall(shard_of(path, np.ones((500, 1), np.float32)))[0] == 1


@pytest.mark.parametrize(
    ("recalls", "target", "step"),
    [
        ([0.96, 0.97, 0.99], 0.95, 0),
        ([0.5, 0.95, 0.96], 0.95, 1),
        ([0.5, 0.8, 0.7], 0.95, 1),  # none reaches it
        ([0.5, 0.5], 0.95, 0),
    ],
)
def test_the_quickest_search_that_reaches_the_target(recalls, target, step):
    assert first_to_reach(recalls, target) == step
