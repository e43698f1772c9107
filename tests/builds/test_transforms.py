"""The transforms, each in a small pipeline of its own, as people who compose their own would use them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.pvalue import AsSingleton
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline as BeamTestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st
from packed import tar_of
from sklearn.decomposition import PCA

from imgindex.config import IndexConfig, PcaConfig
from imgindex.features import feature_store
from imgindex.features.embedder import EmbeddedUnit
from imgindex.features.transforms import EmbedImages, ReadFeatures
from imgindex.indexing.shards import write_shard
from imgindex.indexing.transforms import FitPca, ProjectFeatures, WriteIndex
from imgindex.indexing.vector_files import VectorRows
from imgindex.inputs.local_files import local_version
from imgindex.inputs.transforms import ListImages
from imgindex.io import filesystem as io_filesystem
from imgindex.io.content_addressed import names
from imgindex.models.batches import embed_all
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.moments import Moments
from imgindex.models.pca import Basis, fit_basis, normalize
from imgindex.models.preprocess import decode
from imgindex.records import ImageFile, ImageRow, bucket_of
from imgindex.runtime.progress import EMBEDDING

ENGINE = EngineChoice("MobileNetV2", "none", "avg", 32, "tensorflow", "float32", 4)
THREADS = 2
INDEX = IndexConfig(trees=4)


def pipeline() -> BeamTestPipeline:
    return BeamTestPipeline(runner=FnApiRunner())


def all_of(check: Callable[[list[Any]], None]) -> Callable[[list[Any]], None]:
    """A matcher for `assert_that` that gives `check` the elements as a list."""
    return lambda elements: check(list(elements))


def features_of(seed: int, rows: int, dims: int = 12) -> np.ndarray:
    """Unit rows in float16 whose columns vary to different degrees."""
    columns = np.random.default_rng(seed).standard_normal((rows, dims)) * np.linspace(2, 0.1, dims) + 0.5
    features, valid = normalize(columns.astype(np.float32))
    assert valid.all()
    return features


def rows_of(uris: Sequence[str]) -> list[ImageRow]:
    return [ImageRow(uri, len(uri), "1", f"{len(uri):064}", 30, 20) for uri in uris]


def split(features: np.ndarray, *sizes: int) -> list[np.ndarray]:
    return np.split(features, np.cumsum(sizes))


@pytest.mark.parametrize("filesystem", ["local", "mem"])
def test_list_images_gives_files_and_failures(
    filesystem: str, tmp_path: Path, memory: dict[str, tuple[bytes, float]]
) -> None:
    wanted, failed = ["a.jpg", "x/b.JPG", "x/c d.png"], []
    if filesystem == "local":
        source = str(tmp_path)
        (tmp_path / "x").mkdir()
        for uri in [*wanted, "x/notes.txt"]:
            (tmp_path / uri).write_bytes(b"data")
        (tmp_path / "x/gone.jpg").symlink_to("nowhere")
        failed = ["x/gone.jpg"]
    else:
        source = "mem://bucket/in"
        memory.update({f"{source}/{uri}": (b"data", 1.0) for uri in [*wanted, "x/notes.txt"]})
    with pipeline() as p:
        listed = p | ListImages(source)
        files = listed.files | beam.Map(lambda file: (file.uri, file.path, file.size))
        assert_that(files, equal_to([(uri, f"{source}/{uri}", 4) for uri in wanted]), "files")
        failures = listed.failures | "Uris" >> beam.Map(lambda failure: failure.uri)
        assert_that(failures, equal_to(failed), "failures")


def test_list_images_takes_extensions(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.raw"):
        (tmp_path / name).write_bytes(b"")
    with pipeline() as p:
        assert_that(
            (p | ListImages(str(tmp_path), [".raw"])).files | beam.Map(lambda f: f.uri), equal_to(["b.raw"])
        )


@pytest.mark.parametrize("filesystem", ["local", "mem"])
def test_list_images_counts_what_it_skips(filesystem: str, tmp_path: Path, memory: Any) -> None:
    place = str(tmp_path) if filesystem == "local" else "mem://bucket/in"
    names = ["a.jpg", "._a.jpg", "b.heic", "old/c.jpg", "c.mp4"]
    for name in names:
        io_filesystem.write_bytes(io_filesystem.join(place, name), b"")
    io_filesystem.write_bytes(io_filesystem.join(place, "x.tar"), tar_of(dict.fromkeys(names, b"")))
    with pipeline() as p:
        listed = p | ListImages(place, [".jpg"], include=["*.jpg", "*.heic"], exclude=["/x.tar/old/"])
        uris = listed.files | "Uris" >> beam.Map(lambda file: file.uri)
        assert_that(uris, equal_to(["a.jpg", "old/c.jpg"]), "files")
        counts = listed.skipped | "Counts" >> beam.FlatMap(lambda skipped: skipped.counts.items())
        totals = counts | beam.CombinePerKey(sum)
        assert_that(totals, equal_to([("hidden files", 1), (".heic", 1), ("excluded files", 2)]), "skipped")


@pytest.mark.parametrize("filesystem", ["local", "mem"])
def test_list_images_goes_through_tars_and_lists(filesystem: str, tmp_path: Path, memory: Any) -> None:
    place = str(tmp_path) if filesystem == "local" else "mem://bucket/in"
    tar = tar_of({"a.jpg": b"a", "b/c.jpg": b"cc", "notes.txt": b""})
    for name, data in {
        "x/y.tar": tar,
        "x/plain.jpg": b"data",
        "broken.tar": tar[:1100],
        "z.tgz": b"",
    }.items():
        io_filesystem.write_bytes(io_filesystem.join(place, name), data)
    names = ["x/plain.jpg", "x/y.tar", "gone.jpg", "./x/plain.jpg", "x/y.tar/a.jpg", "broken.tar/none.jpg"]
    io_filesystem.write_bytes(io_filesystem.join(place, "list.txt"), "\n".join(names).encode())
    of_tar = [("x/y.tar/a.jpg", 1), ("x/y.tar/b/c.jpg", 2)]
    cut_off = ("broken.tar", "truncated_tar")
    expected = {
        "": ([("x/plain.jpg", 4), *of_tar, ("broken.tar/a.jpg", 1)], [cut_off, ("z.tgz", "compressed_tar")]),
        "x/y.tar": ([(uri.removeprefix("x/"), size) for uri, size in of_tar], []),
        "list.txt": (
            [("x/plain.jpg", 4), *of_tar],
            [("gone.jpg", "vanished"), ("broken.tar/none.jpg", "vanished"), cut_off],
        ),
    }
    for name, (files, failures) in expected.items():
        with pipeline() as p:
            listed = p | ListImages(io_filesystem.join(place, name) if name else place)
            found = listed.files | beam.Map(lambda file: (file.uri, file.size))
            assert_that(found, equal_to(files), "files")
            failed = listed.failures | "Reasons" >> beam.Map(lambda failure: (failure.uri, failure.reason))
            assert_that(failed, equal_to(failures), "failures")


def test_embed_images_fills_the_store(tmp_path: Path, image_bytes: Callable[..., bytes]) -> None:
    files, expected = [], {}
    engine = load_engine(ENGINE, THREADS)
    for number in range(10):
        data = image_bytes(number, (40, 50), "JPEG") if number != 3 else b"no image"
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        files.append(ImageFile(path.name, str(path), len(data), local_version(path.stat())))
        if number != 3:
            # Alone in its batch: a feature does not depend on its neighbors.
            pixels = decode(data, (32, 32)).pixels[np.newaxis]
            expected[f"{number}.jpg"] = normalize(embed_all(engine, pixels))[0][0]
    directory = f"{tmp_path}/store"

    def check(units: list[EmbeddedUnit]) -> None:
        assert sum(len(unit.images) for unit in units) == 9
        failures = [(failure.uri, failure.reason) for unit in units for failure in unit.failures]
        assert failures == [("3.jpg", "not_an_image")]
        assert sorted({image.chunk for unit in units for image in unit.images}) == names(directory)

    EMBEDDING.reset()
    p = pipeline()
    embed = EmbedImages(directory, ENGINE, threads=THREADS, spec_digest=engine.spec.digest)
    assert_that(p | beam.Create(files) | embed, all_of(check))
    result = p.run()
    result.wait_until_finish()
    assert EMBEDDING.snapshot() == (10, 10)
    counters = result.metrics().query(MetricsFilter().with_namespace("imgindex"))["counters"]
    assert {counter.key.metric.name: counter.committed for counter in counters} == {
        "embedded": 9,
        "failed_not_an_image": 1,
    }
    stored = {}
    for chunk in names(directory):
        images, features = feature_store.read_rows(
            directory, chunk, [k.row for k in feature_store.read_keys(directory, chunk)]
        )
        stored |= dict(zip(images["uri"].to_pylist(), features, strict=True))
    assert sorted(stored) == sorted(expected)
    assert len({feature.tobytes() for feature in stored.values()}) == 9
    for uri, feature in stored.items():
        np.testing.assert_array_equal(feature, expected[uri])


def test_embed_images_refuses_a_worker_with_other_weights(tmp_path: Path) -> None:
    embed = EmbedImages(str(tmp_path), ENGINE, threads=THREADS, spec_digest="0123456789abcdef")
    with pytest.raises(Exception, match="the launcher's has 0123456789abcdef"), pipeline() as p:
        _ = p | beam.Create([ImageFile("a.jpg", "a.jpg", 1, "1")]) | embed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whiten", [False, True])
def test_fit_pca_agrees_with_scikit_learn(whiten: bool) -> None:
    features = features_of(3, 300)
    expected = PCA(5, svd_solver="full", whiten=whiten).fit(features.astype(np.float64))

    def check(bases: list[Any]) -> None:
        (basis,) = bases
        np.testing.assert_allclose(basis.mean, expected.mean_, atol=1e-6)
        np.testing.assert_allclose(basis.components, expected.components_, atol=1e-5)
        np.testing.assert_allclose(basis.explained_variance, expected.explained_variance_, rtol=1e-5)
        np.testing.assert_allclose(
            basis.explained_variance_ratio, expected.explained_variance_ratio_, rtol=1e-5
        )
        vectors = expected.transform(features.astype(np.float64))
        np.testing.assert_allclose(basis.project(features), vectors, atol=1e-4)

    with pipeline() as p:
        batches = p | beam.Create(split(features, 1, 50, 120, 7)) | beam.Reshuffle()
        assert_that(batches | FitPca(PcaConfig(dims=5, whiten=whiten)), all_of(check))


def test_fit_pca_of_no_rows_gives_no_basis() -> None:
    with pipeline() as p:
        assert_that(p | beam.Create([]) | FitPca(PcaConfig()), equal_to([]))


@pytest.mark.parametrize("lengths", [(60,), (1, 50, 9), (30, 30)])
def test_fit_pca_does_not_depend_on_batches_or_bundles(lengths: tuple[int, ...]) -> None:
    features = features_of(4, 60, 5)
    moments = Moments.empty(5)
    moments.add(features)
    with pipeline() as p:
        order = np.random.default_rng(len(lengths)).permutation(60)
        batches = p | beam.Create(split(features[order], *lengths)) | beam.Reshuffle()
        bits = batches | FitPca(PcaConfig(dims=3)) | beam.Map(lambda basis: basis.to_npz())
        assert_that(bits, equal_to([fit_basis(moments, 3).to_npz()]))


def test_fit_pca_of_more_rows_than_are_held_back() -> None:
    features = features_of(5, 10_000, 3)

    def check(bases: list[Basis]) -> None:
        variances = np.linalg.eigvalsh(np.cov(features.astype(np.float64).T))[::-1]
        np.testing.assert_allclose(bases[0].explained_variance, variances, rtol=1e-6)

    with pipeline() as p:
        batches = p | beam.Create(split(features, 3000, 3000, 3000, 1000))
        assert_that(batches | FitPca(PcaConfig(dims=3)), all_of(check))


def test_read_and_project_features(place: str) -> None:
    uris = [f"{n}.jpg" for n in range(40)]
    features = features_of(6, 40)
    units = [
        feature_store.write_rows(place, rows_of(uris[at : at + 20]), features[at : at + 20]) for at in (0, 20)
    ]
    chunks = [images[0].chunk for images in units]
    moments = Moments.empty(12)
    moments.add(features)
    basis = fit_basis(moments, 4)
    selection = [(chunks[0], list(range(20))), (chunks[1], [1, 3])]
    selected = [*range(20), 21, 23]

    def check_features(batches: list[np.ndarray]) -> None:
        rows = {row.tobytes() for batch in batches for row in batch}
        assert rows == {features[number].tobytes() for number in selected}

    def check_vectors(elements: list[tuple[int, VectorRows]]) -> None:
        assert len({shard for shard, _ in elements}) == 3
        found = {}
        for shard, rows in elements:
            for image, vector in zip(rows.images.to_pylist(), rows.vectors, strict=True):
                assert shard == bucket_of(image["uri"], 3)
                assert (image["width"], image["height"], image["size"]) == (30, 20, len(image["uri"]))
                found[image["uri"]] = vector
        assert sorted(found) == sorted(uris[number] for number in selected)
        for number in selected:
            np.testing.assert_array_equal(found[uris[number]], basis.project(features[[number]])[0])

    with pipeline() as p:
        chosen = p | beam.Create(selection)
        read = chosen | ReadFeatures(place)
        assert_that(read, all_of(check_features), "features")
        side = AsSingleton(p | "Basis" >> beam.Create([basis]))
        count = AsSingleton(p | "ShardCount" >> beam.Create([3]))
        assert_that(chosen | ProjectFeatures(place, side, count), all_of(check_vectors), "vectors")


def test_write_index_writes_each_shard(tmp_path: Path) -> None:
    def rows(shard: int, start: int, stop: int) -> VectorRows:
        uris = [f"{shard}/{n:02}.jpg" for n in range(start, stop)]
        numbers = {name: pa.array(range(start, stop)) for name in ("size", "width", "height")}
        vectors = np.random.default_rng(shard).standard_normal((30, 4)).astype(np.float32)[start:stop]
        return VectorRows(pa.table({"uri": uris, "sha256": uris, **numbers}), vectors)

    batches = [(0, rows(0, 10, 30)), (1, rows(1, 0, 5)), (0, rows(0, 0, 10))]
    expected = [
        write_shard(f"{tmp_path}/plain", shard, 2, [rows(shard, 0, n)], INDEX)
        for shard, n in ((0, 30), (1, 5))
    ]

    def check(shards: list[Any]) -> None:
        shards = sorted(shards, key=lambda shard: shard.index.path)
        assert [(s.index, s.metadata, s.items) for s in shards] == [
            (s.index, s.metadata, s.items) for s in expected
        ]

    with pipeline() as p:
        count = AsSingleton(p | "ShardCount" >> beam.Create([2]))
        written = p | beam.Create(batches) | beam.Reshuffle() | WriteIndex(f"{tmp_path}/beam", count, INDEX)
        assert_that(written, all_of(check))
    uris = pq.read_table(tmp_path / "beam" / expected[0].metadata.path)["uri"].to_pylist()
    assert uris == [f"0/{n:02}.jpg" for n in range(30)]


@given(st.text(), st.integers(1, 1000))
def test_a_bucket_is_within_its_range(uri: str, buckets: int) -> None:
    assert 0 <= bucket_of(uri, buckets) < buckets


def test_buckets_are_the_same_for_ever_and_even() -> None:
    # As `b2sum -l 64` has them. Another hash would put every image of a published index into another shard.
    assert [bucket_of(uri, 1000) for uri in ("", "a.jpg", "ä 猫/b.png")] == [876, 449, 344]
    counts = np.bincount([bucket_of(f"{n}.jpg", 8) for n in range(8000)], minlength=8)
    assert counts.min() > 900
