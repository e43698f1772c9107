"""Evaluation: every figure is computed again here, from the files, with NumPy and Annoy alone."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from annoy import AnnoyIndex
from outputs import publish_features
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.stats import binomtest
from sklearn.decomposition import PCA

import imgindex
from imgindex.cli import main
from imgindex.errors import OutputError, UsageError
from imgindex.evaluation.tables import as_text
from imgindex.io import content_addressed
from imgindex.models.ann.protocol import METRICS, Metric
from imgindex.models.pca import normalize

K = 4
LABELS = ["cat", "cat", "dog", "dog", "dog", "owl"]
COUNT, DIMS, FEATURE_DIM = 120, 6, 16


def features() -> np.ndarray:
    """Features [COUNT, FEATURE_DIM] of noise around a center for each label."""
    generator = np.random.default_rng(5)
    centers = {label: generator.random(FEATURE_DIM) for label in sorted(set(LABELS))}
    rows = [centers[label_of(n)] + generator.standard_normal(FEATURE_DIM) * 0.4 for n in range(COUNT)]
    return np.float32(rows)


def label_of(image: int) -> str:
    return LABELS[image % len(LABELS)]


URIS = [f"{label_of(n)}/{n:03}.jpg" for n in range(COUNT)]
DIGESTS = [f"{n:064x}" for n in range(COUNT)]
DIGESTS[6], DIGESTS[9] = DIGESTS[0], DIGESTS[3]  # copies


@pytest.fixture(scope="module", params=METRICS)
def metric(request: pytest.FixtureRequest) -> Metric:
    chosen: Metric = request.param
    return chosen


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, metric: Metric) -> Path:
    folder = tmp_path_factory.mktemp("output")
    rows = features()
    rows[6], rows[9] = rows[0], rows[3]
    publish_features(folder, rows, URIS, DIGESTS, dims=DIMS, metric=metric, shards=2, trees=3, search_k=30)
    return folder


@pytest.fixture(scope="module")
def found(output: Path) -> imgindex.Evaluation:
    return imgindex.evaluate(output, k=K, dims=[1, 3, DIMS, 99], seed=1)


class Files:
    """What the files of a generation hold, in the order of the shards."""

    def __init__(self, output: Path) -> None:
        name = (output / "CURRENT").read_text().strip()
        self.folder = output / "generations" / name
        self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        tables = [pq.read_table(self.folder / shard["metadata"]) for shard in self.manifest["shards"]]
        self.uris = [uri for table in tables for uri in table["uri"].to_pylist()]
        self.sha256 = np.array([digest for table in tables for digest in table["sha256"].to_pylist()])
        self.labels = np.array([uri.partition("/")[0] for uri in self.uris])
        self.indexes = [self.annoy(self.folder / shard["index"]) for shard in self.manifest["shards"]]
        self.vectors = np.float64(
            [index.get_item_vector(n) for index in self.indexes for n in range(index.get_n_items())]
        )
        chunks = [pq.read_table(path) for path in (output / "store").rglob("chunk-*.parquet")]
        by_uri = {
            uri: feature
            for table in chunks
            for uri, feature in zip(table["uri"].to_pylist(), table["feature"].to_pylist(), strict=True)
        }
        self.features = np.float64([by_uri[uri] for uri in self.uris])

    def annoy(self, path: Path) -> AnnoyIndex:
        index = AnnoyIndex(self.manifest["dims"], self.manifest["metric"])
        index.load(str(path))
        return index

    def ranking(self, rows: np.ndarray, metric: str) -> np.ndarray:
        """The images nearest to each, the nearest first; the image itself and its copies come last."""
        if metric == "angular":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        distances = np.linalg.norm(rows[:, np.newaxis] - rows, axis=2)
        distances[self.sha256[:, np.newaxis] == self.sha256] = np.inf
        return np.argsort(distances, axis=1, kind="stable")

    def recall(self, found: np.ndarray, exact: np.ndarray) -> float:
        """The share of the ten exact answers that were found, of which a copy is as good."""
        digests = zip(self.sha256[found[:, :10]], self.sha256[exact[:, :10]], strict=True)
        return float(np.mean([np.isin(wanted, answers).mean() for answers, wanted in digests]))

    def p_at_k(self, ranking: np.ndarray) -> float:
        return float((self.labels[ranking[:, :K]] == self.labels[:, np.newaxis]).mean())


@pytest.fixture(scope="module")
def files(output: Path) -> Files:
    return Files(output)


def test_the_quality_by_label(found: imgindex.Evaluation, files: Files) -> None:
    ranking = files.ranking(files.vectors, files.manifest["metric"])
    relevant = files.labels[ranking] == files.labels[:, np.newaxis]
    own = files.sha256[:, np.newaxis] == files.sha256
    totals = ((files.labels[:, np.newaxis] == files.labels) & ~own).sum(axis=1)
    precision = relevant[:, :K].mean(axis=1)
    average = [
        sum(row[: i + 1].mean() for i in range(total) if row[i]) / total
        for row, total in zip(relevant, totals, strict=True)
    ]
    quality = found.quality
    assert quality is not None
    assert (quality.queries, quality.labels, quality.single_image_labels) == (COUNT, 3, 0)
    for mean, values in [
        (quality.p_at_k, precision),
        (quality.precision_at_1, relevant[:, 0]),
        (quality.recall_at_k, relevant[:, :K].sum(axis=1) / totals),
        (quality.map_at_r, np.array(average)),
    ]:
        by_label = [values[files.labels == label].mean() for label in ("cat", "dog", "owl")]
        assert mean.micro <= mean.best <= 1
        assert mean.micro == pytest.approx(values.mean())
        assert mean.macro == pytest.approx(np.mean(by_label))
        assert mean.interval[0] <= mean.micro <= mean.interval[1]
    assert quality.median_others == np.median(totals)
    assert quality.recall_at_k.best == pytest.approx((np.minimum(K, totals) / totals).mean())
    assert [each.p_at_k for each in quality.per_label] == pytest.approx(
        [precision[files.labels == each.label].mean() for each in quality.per_label]
    )
    for each in quality.per_label:
        neighbors = files.labels[ranking[files.labels == each.label, :K]]
        assert {other.label: other.share for other in each.confused_with} == pytest.approx(
            {label: (neighbors == label).mean() for label in set(neighbors.ravel()) - {each.label}}
        )


def test_the_ladder(found: imgindex.Evaluation, files: Files, tmp_path: Path) -> None:
    metric, count = files.manifest["metric"], len(files.uris)
    exact = files.ranking(files.features, "angular")

    def asked(indexes: list[AnnoyIndex], rows: np.ndarray, metric: str) -> np.ndarray:
        """What Annoy answers, over all files, by exact distances."""
        answers = []
        starts = np.cumsum([0, *(index.get_n_items() for index in indexes)])
        for n, row in enumerate(rows):
            copies = int((files.sha256 == files.sha256[n]).sum())
            search_k = 30 if copies == 1 else 60  # recall was measured with ten and the query itself
            items = np.concatenate([
                start + np.array(index.get_nns_by_vector(row, 10 + copies, search_k=search_k), int)
                for index, start in zip(indexes, starts[:-1], strict=True)
            ])  # fmt: skip
            whole = rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric == "angular" else rows
            order = items[np.argsort(np.linalg.norm(whole[items] - whole[n], axis=1), kind="stable")]
            order = order[: 10 + copies]
            answers.append(order[files.sha256[order] != files.sha256[n]][:10])
        return np.array(answers)

    on_features = AnnoyIndex(FEATURE_DIM, "angular")
    on_features.set_seed(0)
    for n, row in enumerate(files.features):
        on_features.add_item(n, row)
    on_features.build(3, n_jobs=1)
    rankings = {
        "exact, features": exact,
        f"exact, PCA {DIMS}": files.ranking(files.vectors, metric),
        f"Annoy, PCA {DIMS}": asked(files.indexes, files.vectors, metric),
    }
    assert [rung.method for rung in found.ladder] == [*rankings, "Annoy, features"]
    for rung in found.ladder[:3]:
        assert rung.p_at_k == pytest.approx(files.p_at_k(rankings[rung.method]))
        assert rung.recall_at_10 == pytest.approx(files.recall(rankings[rung.method], exact), abs=1e-9)
    assert [rung.dims for rung in found.ladder] == [FEATURE_DIM, DIMS, DIMS, FEATURE_DIM]
    size = sum((files.folder / shard["index"]).stat().st_size for shard in files.manifest["shards"])
    assert [rung.bytes for rung in found.ladder[:3]] == [4 * count * FEATURE_DIM, 4 * count * DIMS, size]
    on_features.save(str(tmp_path / "index.ann"))
    rung = found.ladder[3]
    assert rung.bytes == (tmp_path / "index.ann").stat().st_size
    answers = asked([on_features], files.features, "angular")
    assert rung.p_at_k == pytest.approx(files.p_at_k(answers))
    assert rung.recall_at_10 == pytest.approx(files.recall(answers, exact), abs=1e-9)
    for rung in found.ladder:
        assert 0 < (rung.ms_per_query or 0) <= (rung.ms_p95 or 0) <= (rung.ms_p99 or 0)


def test_the_sweep(found: imgindex.Evaluation, files: Files) -> None:
    pca = PCA(svd_solver="full").fit(files.features)
    projected = pca.transform(files.features)
    exact = files.ranking(files.features, "angular")
    assert [(point.dims, point.whiten) for point in found.sweep] == [
        (1, 0), (3, 0), (DIMS, 0), (DIMS, 0.25), (DIMS, 0.5), (DIMS, 1),
    ]  # fmt: skip
    for point in found.sweep:
        scale = pca.explained_variance_[: point.dims] ** (point.whiten / 2)
        ranking = files.ranking(projected[:, : point.dims] / scale, files.manifest["metric"])
        # With one dimension, all cosines are 1 or -1: a matter of rounding.
        if point.dims > 1 or files.manifest["metric"] == "euclidean":
            assert point.p_at_k == pytest.approx(files.p_at_k(ranking), abs=0.005)
            assert point.recall_at_10 == pytest.approx(files.recall(ranking, exact), abs=1e-9)
        ratio = pca.explained_variance_ratio_[: point.dims].sum()
        assert point.explained_variance == pytest.approx(ratio, abs=1e-5)
        assert point.bytes == 4 * COUNT * point.dims


def test_unseen_images_are_asked_of_an_index_that_lacks_them(found: imgindex.Evaluation) -> None:
    unseen = found.unseen_recall
    assert unseen is not None
    assert unseen.queries == (COUNT - 2) // 10
    assert 0.3 < unseen.recall <= 1
    assert unseen.interval[0] <= unseen.recall <= unseen.interval[1]
    assert unseen.seen == 1.0  # as the manifest has it


def test_unseen_images_are_all_found_by_a_search_of_all_nodes(tmp_path: Path) -> None:
    publish_features(tmp_path, features(), URIS, dims=DIMS, search_k=10**6, shards=3)
    unseen = imgindex.evaluate(tmp_path, dims=[2]).unseen_recall
    assert unseen is not None
    assert unseen.recall == 1.0
    # Of so few queries a bootstrap would have no width.
    wilson = binomtest(unseen.queries, unseen.queries).proportion_ci(method="wilson")
    assert unseen.interval == pytest.approx((wilson.low, wilson.high))


def test_an_index_that_is_whitened_is_marked_as_such(tmp_path: Path) -> None:
    publish_features(tmp_path, features(), URIS, dims=DIMS, whiten=0.75)
    found = imgindex.evaluate(tmp_path, dims=[2])
    assert found.whiten == 0.75
    assert (DIMS, 0.75) in [(point.dims, point.whiten) for point in found.sweep]
    assert [line.split()[:2] for line in as_text(found).splitlines() if "(now)" in line] == [
        [f"{DIMS}", "(now)"]
    ]


def test_what_is_mostly_noise_is_not_whitened(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = generator.random((60, 3)) @ generator.random((3, 20))  # of rank 3, but for rounding
    publish_features(tmp_path, np.float32(rows), [f"a/{n}.jpg" for n in range(60)], dims=10)
    found = imgindex.evaluate(tmp_path, dims=[10])
    assert {point.dims for point in found.sweep if point.whiten} == {3}


@pytest.mark.long
def test_many_labels_take_no_memory_for_each_pair_of_them(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((20_000, 2), np.float32)
    publish_features(tmp_path, rows, [f"{n // 2}/{n}.jpg" for n in range(20_000)], dims=2)
    tracemalloc.start()
    found = imgindex.evaluate(tmp_path, dims=[2], sample=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.quality is not None
    assert found.quality.labels == 10_000
    assert peak < 4 * 10_000**2  # half of what a count for each pair would take


def test_chunks_that_a_prune_moves_meanwhile_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_features(tmp_path, features(), URIS, dims=2)
    listed = content_addressed.names
    gone = ["chunk-" + "0" * 32 + ".parquet"]
    monkeypatch.setattr(content_addressed, "names", lambda directory: [*gone, *listed(directory)])
    assert imgindex.evaluate(tmp_path, dims=[2]).images == COUNT


def test_the_same_seed_gives_the_same_figures(output: Path) -> None:
    again = [imgindex.evaluate(output, dims=[3], sample=40, seed=seed) for seed in (3, 3, 4)]
    figures = [
        (each.quality, each.unseen_recall and each.unseen_recall.recall, [row.p_at_k for row in each.ladder])
        for each in again
    ]
    assert figures[0] == figures[1] != figures[2]
    assert [each.queries for each in again] == [40, 40, 40]


class TestLabels:
    def evaluate(self, tmp_path: Path, uris: list[str], digests: list[str] | None = None) -> Any:
        rows = np.random.default_rng(0).random((len(uris), 8), np.float32)
        publish_features(tmp_path, rows, uris, digests, dims=2)
        return imgindex.evaluate(tmp_path, dims=[2])

    def test_a_collection_without_labels_gets_all_that_needs_none(self, tmp_path: Path) -> None:
        found = self.evaluate(tmp_path, [f"{n}.jpg" for n in range(30)])
        assert found.quality is None
        assert [rung.p_at_k for rung in found.ladder] == [None] * 4
        assert all(rung.recall_at_10 is not None for rung in found.ladder)
        assert found.unseen_recall is not None
        assert found.advice == ()

    def test_labels_of_one_image_are_counted_apart(self, tmp_path: Path) -> None:
        found = self.evaluate(tmp_path, ["a/0.jpg", "a/1.jpg", "b/2.jpg", "c/3.jpg", "4.jpg"])
        quality = found.quality
        assert (quality.labels, quality.single_image_labels, quality.images_without_label) == (1, 2, 1)
        assert quality.queries == 2
        assert [each.label for each in quality.per_label] == ["a"]

    def test_a_label_of_copies_alone_has_nothing_to_find(self, tmp_path: Path) -> None:
        digests = ["0" * 64, "0" * 64, "1" * 64, "2" * 64]
        found = self.evaluate(tmp_path, ["a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg"], digests)
        assert [each.label for each in found.quality.per_label] == ["b"]
        assert found.quality.single_image_labels == 1

    @pytest.mark.parametrize("count", [1, 2])
    def test_next_to_nothing_can_be_evaluated(self, count: int, tmp_path: Path) -> None:
        found = self.evaluate(tmp_path, [f"a/{n}.jpg" for n in range(count)])
        assert found.images == count
        assert found.unseen_recall is None


def test_features_that_the_store_lacks_are_an_error_that_says_so(tmp_path: Path) -> None:
    publish_features(tmp_path, np.eye(8, dtype=np.float32), [f"{n}.jpg" for n in range(8)])
    for path in (tmp_path / "store").rglob("*.parquet"):
        path.unlink()
    with pytest.raises(OutputError, match=r"lacks the features of 8 images .* build again to embed them"):
        imgindex.evaluate(tmp_path)


def test_features_of_other_generations_are_passed_over(tmp_path: Path) -> None:
    uris = [f"{n % 2}/{n}.jpg" for n in range(40)]
    rows = np.random.default_rng(0).random((40, 8), np.float32)
    digests = [f"{(n * 7919) % 1000:03}" + "a" * 61 for n in range(40)]  # in no order
    publish_features(tmp_path / "alone", rows[20:], uris[20:], digests[20:])
    publish_features(tmp_path / "both", rows[:20], uris[:20], digests[:20], number=1)
    publish_features(tmp_path / "both", rows[20:], uris[20:], digests[20:], number=2)
    alone, both = (imgindex.evaluate(tmp_path / name, dims=[2]) for name in ("alone", "both"))
    assert both.images == 20
    assert [(row.p_at_k, row.recall_at_10) for row in alone.ladder] == [
        (row.p_at_k, row.recall_at_10) for row in both.ladder
    ]


def test_a_damaged_chunk_is_named_where_it_is_missed(tmp_path: Path) -> None:
    publish_features(tmp_path, np.eye(8, dtype=np.float32), [f"{n}.jpg" for n in range(8)])
    (chunk,) = (tmp_path / "store").rglob("*.parquet")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"X")
    with pytest.raises(OutputError, match=f"lacks the features of 8 images.*{chunk.name} is damaged"):
        imgindex.evaluate(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0; expected a whole number from 1 to 1000"),
        ({"k": 10**18}, "k is 10*; expected a whole number from 1 to 1000"),
        ({"dims": [2, 0]}, "a number of dims is 0; expected a whole number from 1 to 65536"),
        ({"sample": 0}, "sample is 0; expected a whole number from 1"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        imgindex.evaluate(tmp_path, **arguments)


class TestAdvice:
    """Features in which little, or much, depends on one setting."""

    def advice(self, tmp_path: Path, deviations: list[float], dims: int) -> dict[str, str]:
        """What is advised for labels that differ in direction 0; each direction varies by its deviation."""
        generator = np.random.default_rng(0)
        count = 400
        rows = generator.standard_normal((count, len(deviations))) * deviations + 5
        labels = generator.integers(0, 2, count)
        rows[:, 0] += 3 * labels
        unit = normalize(rows.astype(np.float32))[0].astype(np.float32)
        publish_features(tmp_path, unit, [f"{labels[n]}/{n}.jpg" for n in range(count)], dims=dims,
                         metric="euclidean")  # fmt: skip
        found = imgindex.evaluate(tmp_path, dims=[1, 2, 4, 8, 16])
        return {advice.setting: advice.value for advice in found.advice}

    def test_fewer_dimensions_where_the_rest_is_noise(self, tmp_path: Path) -> None:
        assert self.advice(tmp_path, [0.1, *[0.8] * 15], dims=16)["pca.dims"] == "1"

    def test_nothing_where_nothing_is_gained(self, tmp_path: Path) -> None:
        assert self.advice(tmp_path, [0.1, *[0.01] * 7], dims=1) == {}


class TestMeasures:
    def test_on_features_and_vectors_as_scipy_ranks(self, output: Path, files: Files) -> None:
        found = imgindex.evaluate(output, k=K, dims=[2], measures=["l1", "cosine"])
        rows = {(row.measure, row.on): row for row in found.measures}
        assert list(rows) == [(m, on) for on in ("pixels", "features", "vectors") for m in ("l1", "cosine")]
        for (measure, on), row in rows.items():
            if on == "pixels":  # there are no images
                assert (row.images, row.p_at_k) == (0, None)
                assert row.note == "none of the images could be read"
                continue
            of = files.features if on == "features" else files.vectors
            distances = cdist(of, of, {"l1": "cityblock", "cosine": "cosine"}[measure])
            distances[files.sha256[:, np.newaxis] == files.sha256] = np.inf
            ranking = np.argsort(distances, axis=1, kind="stable")
            assert row.p_at_k == pytest.approx(files.p_at_k(ranking), abs=0.005)
            assert (row.images, row.queries) == (COUNT, COUNT)

    def test_on_pixels(self, tmp_path: Path) -> None:
        """Of images that are alike in brightness, whatever their features are."""
        folder = tmp_path / "photos"
        uris = [f"{label}/{n}.png" for label in ("dark", "light") for n in range(4)]
        for n, uri in enumerate(uris):
            (folder / uri).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (n + 200 * (n >= 4),) * 3).save(folder / uri)
        rows = np.random.default_rng(0).random((8, 8), np.float32)
        publish_features(tmp_path / "out", rows, uris, root=str(folder))
        found = imgindex.evaluate(tmp_path / "out", k=3, dims=[2], measures=["l2", "mse"])
        assert [(row.images, row.p_at_k) for row in found.measures if row.on == "pixels"] == [(8, 1.0)] * 2

    def test_a_measure_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="measures has 'l3'; expected some of l1, l2, mse, cosine, ncc"):
            imgindex.evaluate(tmp_path, measures=["l1", "l3"])
        with pytest.raises(UsageError, match="measures has 'euclidean'; did you mean 'l2'"):
            imgindex.evaluate(tmp_path, measures=["euclidean"])


class TestCommand:
    def test_prints_tables_and_writes_json(
        self, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        written = tmp_path / "found.json"
        assert main(["evaluate", str(output), "--k", "2", "--dims", "2,3", "--json", str(written)]) == 0
        printed = capsys.readouterr().out
        assert f"{COUNT} images, of which {COUNT - 2} distinct" in printed
        found = json.loads(written.read_text())
        assert {"quality", "ladder", "sweep", "unseen_recall", "advice"} <= set(found)
        assert f"{100 * found['quality']['p_at_k']['micro']:.2f} %" in printed
        assert {"method", "p_at_k", "recall_at_10", "ms_per_query"} <= set(found["ladder"][0])
        assert [point["dims"] for point in found["sweep"] if point["whiten"] == 0] == [2, 3, DIMS]

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--dims", "two"], 2, "'two' is no list of whole numbers; expected one such as 50,100,150"),
            (["--k", "0"], 2, "k is 0; expected a whole number from 1 to 1000"),
            (["--json", "{tmp}/no/such/folder.json"], 3, "folder.json: cannot be written: No such file"),
        ],
    )
    def test_what_cannot_be_done(
        self, arguments: list[str], code: int, message: str, output: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        given = [argument.format(tmp=tmp_path) for argument in arguments]
        try:
            ended = main(["evaluate", str(output), *given])
        except SystemExit as error:
            ended = error.code
        assert ended == code
        assert message in capsys.readouterr().err
