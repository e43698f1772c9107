"""The export `faiss`: an index that takes raw features and answers as imgindex does."""

import hashlib
import resource
import sys
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from outputs import publish_features

import imgindex
from imgindex.cli import main
from imgindex.errors import MachineError, UsageError
from imgindex.models.ann.protocol import Metric
from imgindex.models.pca import normalize

Float32 = npt.NDArray[np.float32]

COUNT, FEATURE_DIM, DIMS, K = 300, 24, 6, 10
URIS = [f"{'ab'[n % 2]}/{n:03}.jpg" for n in range(COUNT)]
GENERATOR = np.random.default_rng(7)
# As a backbone gives them: not negative, and of any length.
FEATURES = np.maximum(GENERATOR.normal(1, 1, (COUNT, FEATURE_DIM)), 0).astype(np.float32)
QUERIES = np.maximum(GENERATOR.normal(1, 1, (20, FEATURE_DIM)), 0).astype(np.float32) * 9
# The store rounds features to float16, and FAISS does not round queries.
ROUNDING = 2e-3


def published(folder: Path, metric: Metric = "angular", whiten: float = 0.0) -> Path:
    publish_features(folder, FEATURES, URIS, dims=DIMS, metric=metric, whiten=whiten, shards=3)
    return folder


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("index"))


def uris_of(folder: Path) -> list[str]:
    uris: list[str] = pq.read_table(folder / "metadata.parquet")["uri"].to_pylist()
    return uris


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
@pytest.mark.parametrize("whiten", [0.0, 0.25, 1.0])
def test_raw_features_have_the_neighbors_of_imgindex(metric: Metric, whiten: float, tmp_path: Path) -> None:
    output = published(tmp_path / "index", metric, whiten)
    imgindex.export(output, "faiss", tmp_path / "out")
    theirs = faiss.read_index(str(tmp_path / "out" / "index.faiss"))
    assert (theirs.d, theirs.ntotal) == (FEATURE_DIM, COUNT)
    uris = uris_of(tmp_path / "out")
    ours = imgindex.Index.open(output)
    vectors = ours.basis.project(normalize(QUERIES)[0])
    scores, items = theirs.search(QUERIES, K)
    for n, result in enumerate(ours.search_vectors(vectors, 2 * K, exact=True)):
        distance = {neighbor.uri: neighbor.distance for neighbor in result.neighbors}
        found = [distance[uris[item]] for item in items[n]]
        # Which of two neighbors comes first may differ where both are as near within the rounding.
        best = [neighbor.distance for neighbor in result.neighbors[:K]]
        assert found == pytest.approx(best, abs=ROUNDING * max(1, best[-1]))
        given = np.sqrt(np.maximum(0, 2 - 2 * scores[n] if metric == "angular" else scores[n]))
        assert given == pytest.approx(best, abs=ROUNDING * max(1, best[-1]))
        same = {uris[item] for item in items[n]} & {neighbor.uri for neighbor in result.neighbors[:K]}
        assert len(same) >= K - 1


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
def test_the_index_within_takes_vectors(metric: Metric, tmp_path: Path) -> None:
    output = published(tmp_path / "index", metric)
    imgindex.export(output, "faiss", tmp_path / "out")
    imgindex.export(output, "npy", tmp_path / "vectors", normalize=metric == "angular")
    vectors = np.concatenate([np.load(path) for path in sorted((tmp_path / "vectors/img_emb").iterdir())])
    whole = faiss.read_index(str(tmp_path / "out/index.faiss"))  # which `inner` is a part of
    inner = faiss.downcast_index(whole.index)
    assert inner.metric_type == (faiss.METRIC_INNER_PRODUCT if metric == "angular" else faiss.METRIC_L2)
    assert inner.reconstruct_n(0, COUNT) == pytest.approx(vectors, abs=1e-6)
    assert inner.search(vectors, 1)[1][:, 0].tolist() == list(range(COUNT))


def test_row_i_describes_item_i(output: Path, tmp_path: Path) -> None:
    imgindex.export(output, "faiss", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/metadata.parquet")
    assert rows.column_names == ["uri", "label", "sha256", "size", "width", "height"]
    assert sorted(rows["uri"].to_pylist()) == sorted(URIS)
    index = faiss.read_index(str(tmp_path / "out/index.faiss"))
    asked = FEATURES[[URIS.index(uri) for uri in rows["uri"].to_pylist()]]
    assert index.search(asked, 1)[1][:, 0].tolist() == list(range(COUNT))


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat", "PCA4,Flat", "OPQ3,IVF4,PQ3x4", "SQ8"])
def test_any_index_of_the_factory_is_made_with_the_same_bytes_each_time(
    factory: str, output: Path, tmp_path: Path
) -> None:
    digests = set()
    for _ in range(2):
        imgindex.export(output, "faiss", tmp_path / "out", faiss_index=factory)
        digests.add(hashlib.sha256((tmp_path / "out/index.faiss").read_bytes()).hexdigest())
    assert len(digests) == 1
    index = faiss.read_index(str(tmp_path / "out/index.faiss"))
    uris = uris_of(tmp_path / "out")
    found = index.search(FEATURES, 30)[1]
    assert np.mean([URIS[n] in [uris[item] for item in row] for n, row in enumerate(found)]) > 0.8


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("Floor", "could not parse index string Floor"),
        ("", "could not parse index string"),
        ("PQ4", "The dimension of the vector"),
        ("IVF1000,Flat", r"Number of training points \(300\) should be at least"),
        ("IDMap,Flat", "use add_with_ids"),
        ("LSH", "metric == METRIC_L2"),
    ],
)
def test_an_index_that_faiss_cannot_make(factory: str, reason: str, output: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=rf"FAISS cannot make an index '{factory}' of these.*{reason}"
    ) as told:
        imgindex.export(output, "faiss", tmp_path / "out", faiss_index=factory)
    assert "Error in" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_flag_of_another_format(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(output), str(tmp_path / "out"), "--format"]
    assert main([*command, "npy", "--faiss_index", "Flat"]) == 2
    assert capsys.readouterr().err == (
        "imgindex: the format npy does not take --faiss_index; these formats do: faiss\n"
    )
    assert main([*command, "faiss", "--normalize"]) == 2
    assert capsys.readouterr().err.startswith(
        "imgindex: the format faiss does not take --normalize; these formats do: npy, "
    )


def test_without_the_extra(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "imgindex.sinks.faiss", raising=False)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        MachineError, match=r"--format faiss needs the extra faiss: pip install 'imgindex\[faiss\]'"
    ):
        imgindex.export(output, "faiss", tmp_path / "out")


def test_a_full_disk(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imgindex.export(output, "faiss", tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = (tmp_path / "out/metadata.parquet").stat().st_size
    command = ["export", str(output), "--format", "faiss", str(tmp_path / "new"), "--faiss_index", "HNSW256"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (large + 1, limits[1]))
    try:
        code = main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 3
    assert capsys.readouterr().err == f"imgindex: cannot write {tmp_path}/new: File too large\n"
