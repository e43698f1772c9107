"""Builds from real photos with ImageNet weights, through the whole path, and what must hold of the result."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from annoy import AnnoyIndex
from apache_beam.options.pipeline_options import PipelineOptions
from pictures import swapped_profile
from PIL import Image
from sklearn.decomposition import PCA

import imgindex
from imgindex.errors import OutputError, UsageError
from imgindex.models.applications import BUNDLED_WEIGHTS

pytestmark = pytest.mark.long  # real backbones; builds of the README run by default

BUNDLED = imgindex.BackboneConfig(name="MobileNetV2", weights="bundled")


@pytest.fixture(scope="module")
def photos(sample_photos):
    return sample_photos


@pytest.fixture(scope="module")
def caltech20():
    folder = Path(os.environ.get("IMGINDEX_SHARED", Path(__file__).parents[3] / "shared")) / "data/caltech20"
    if not folder.is_dir():
        pytest.skip("no caltech20 photos; IMGINDEX_SHARED names the folder that holds data/caltech20")
    return folder


@pytest.fixture(scope="module")
def config(photos, tmp_path_factory):
    return imgindex.Config(
        input=str(photos),
        output=str(tmp_path_factory.mktemp("output") / "index"),
        backbone=BUNDLED,
        index=imgindex.IndexConfig(items_per_shard=150),
    )


@pytest.fixture(scope="module")
def manifest(config):
    return imgindex.build(config)


@pytest.fixture(scope="module")
def generation(config, manifest):
    return Path(config.output) / "generations" / manifest["generation"]


@pytest.fixture(scope="module")
def index(config, manifest):
    return imgindex.Index.open(config.output)


@pytest.fixture(scope="module")
def stored(config, manifest):
    """Uris and features as the store holds them, in the order of the uris."""
    directory = Path(config.output) / "store" / manifest["spec"]["digest"]
    uris, features = [], []
    for chunk in directory.glob("chunk-*.parquet"):
        table = pq.read_table(chunk)
        uris += table["uri"].to_pylist()
        features.append(np.array(table["feature"].to_pylist(), np.float16))
    order = np.argsort(uris)
    return np.array(uris)[order], np.concatenate(features)[order]


def digests(generation, folders=("index", "metadata", "pca")):
    return {
        str(path.relative_to(generation)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((generation / folder).iterdir())
    }


def test_every_photo_is_indexed_and_every_file_accounted_for(config, manifest, generation, photos):
    listed = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.*"))
    assert manifest["ledger"] == {
        "listed": len(listed),
        "indexed": len(listed),
        "failed": 0,
        "failed_by_reason": {},
        "environmental": 0,
        "added": len(listed),
        "changed": 0,
        "removed": 0,
        "unchanged": 0,
        "embedded": len(listed),
        "copied": 0,
        "reused": 0,
        "damaged_chunks": 0,
        "skipped": {},
    }
    assert (Path(config.output) / "CURRENT").read_text() == manifest["generation"] + "\n"
    assert json.loads((generation / "manifest.json").read_text()) == manifest
    on_disk = {str(path.relative_to(generation)) for path in generation.rglob("*") if path.is_file()}
    assert on_disk == {file["path"] for file in manifest["files"]} | {"manifest.json"}
    for file in manifest["files"]:
        data = (generation / file["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    uris = [
        uri
        for shard in manifest["shards"]
        for uri in pq.read_table(generation / shard["metadata"])["uri"].to_pylist()
    ]
    assert sorted(uris) == listed


def test_metadata_row_describes_annoy_item(manifest, generation, photos):
    for shard in manifest["shards"]:
        table = pq.read_table(generation / shard["metadata"])
        annoy = AnnoyIndex(manifest["dims"], manifest["metric"])
        assert annoy.load(str(generation / shard["index"]))
        assert annoy.get_n_items() == len(table) == shard["items"]
        assert table["item"].to_pylist() == list(range(len(table)))
        assert table["uri"].to_pylist() == sorted(table["uri"].to_pylist())
        row = table.slice(len(table) // 2, 1).to_pylist()[0]
        data = (photos / row["uri"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["size"] == len(data)
        assert row["label"] == row["uri"].split("/")[0]


def test_vectors_are_scikit_learns_pca_of_the_stored_features(index, stored):
    uris, features = stored
    norms = np.linalg.norm(features.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)
    expected = PCA(index.manifest["dims"], svd_solver="full").fit(features.astype(np.float64))
    np.testing.assert_allclose(index.basis.explained_variance, expected.explained_variance_, rtol=1e-5)
    vectors = expected.transform(features.astype(np.float64))
    signs = np.sign((index.basis.components * expected.components_).sum(axis=1))
    for uri, vector in zip(uris[::25], (vectors * signs)[::25], strict=True):
        neighbor = index.search_vectors(vector[np.newaxis].astype(np.float32), 1, exact=True)[0].neighbors[0]
        assert neighbor.uri == uri
        assert neighbor.similarity > 0.999999


def test_a_query_finds_itself_first_and_its_own_kind_next(index, photos):
    paths = sorted(photos.rglob("*_003.jpg"))
    for path, result in zip(paths, index.search(paths, k=5), strict=True):
        assert [neighbor.rank for neighbor in result.neighbors] == [1, 2, 3, 4, 5]
        first = result.neighbors[0]
        assert first.uri == str(path.relative_to(photos))
        assert first.similarity == pytest.approx(1, abs=1e-5)
        similarities = [neighbor.similarity for neighbor in result.neighbors]
        assert similarities == sorted(similarities, reverse=True)
    labels = [[n.label == r.query.split("/")[-2] for n in r.neighbors] for r in index.search(paths, k=5)]
    assert np.mean(labels) > 0.95


def test_search_takes_paths_arrays_images_and_vectors(index, photos):
    path = photos / "clock" / "clock_005.png"
    pixels = np.asarray(Image.open(path).convert("RGB"))
    by_path, by_array, by_image = index.search([str(path), pixels, Image.open(path)], k=4)
    assert by_array.neighbors == by_path.neighbors == by_image.neighbors
    first = by_path.neighbors[0]
    vector = np.array(index._opened._shards[first.shard].vectors[first.item])
    assert index.search(vector, k=1)[0].neighbors[0].uri == first.uri
    assert index.search([], k=3) == []
    with pytest.raises(UsageError, match="uint8"):
        index.search(pixels.astype(np.float32))
    with pytest.raises(UsageError, match="finite values"):
        index.search(np.zeros(3, np.float32))
    with pytest.raises(UsageError, match="k is 0"):
        index.search(path, k=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_sha256": "00" * 32}, "the weights of MobileNetV2 with weights bundled differ"),
        ({"layers_sha256": None}, "the layers of MobileNetV2 .* build the index again"),
        ({"decoding": "of-before", "image_size": (96, 96)}, "the image size and decoding of images of "),
    ],
)
def test_queries_that_would_not_fit_are_refused(config, photos, monkeypatch, change, words):
    opened = imgindex.Index.open(config.output)
    other = replace(opened.facts, spec=replace(opened.facts.spec, **change, digest="0" * 16))
    monkeypatch.setattr(opened._opened, "manifest", other)
    with pytest.raises(OutputError, match=words):
        opened.search(str(next(photos.rglob("*.jpg"))))


def test_annoy_agrees_with_exact_search(index):
    vectors = np.concatenate([np.array(shard.vectors) for shard in index._opened._shards])
    exact = index.search_vectors(vectors, 11, exact=True)
    approximate = index.search_vectors(vectors, 11)
    agreement = [
        len({n.uri for n in e.neighbors} & {n.uri for n in a.neighbors}) / 11
        for e, a in zip(exact, approximate, strict=True)
    ]
    assert np.mean(agreement) >= 0.95
    assert index.manifest["recall"]["recall"] >= 0.95


def test_more_neighbors_than_images_gives_all_of_them(index, photos):
    everything = index.search(photos / "lake" / "lake_000.jpg", k=1000)[0].neighbors
    assert len(everything) == len({neighbor.uri for neighbor in everything}) == len(index)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--direct_num_workers=2", "--direct_running_mode=multi_threading"],
        ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
        ["--runner=BundleBasedDirectRunner"],
    ],
    ids=["one worker", "two threads", "two processes", "another runner"],
)
def test_bytes_do_not_depend_on_workers_bundles_or_runner(options, config, generation, tmp_path):
    other = replace(config, output=str(tmp_path / "index"))
    manifest = imgindex.build(other, PipelineOptions(options))
    built = tmp_path / "index" / "generations" / manifest["generation"]
    assert digests(built) == digests(generation)


def test_another_filesystem_as_input_and_output(config, manifest, generation, photos, memory):
    for path in photos.rglob("*.*"):
        memory[f"mem://bucket/photos/{path.relative_to(photos)}"] = path.read_bytes(), path.stat().st_mtime
    remote = replace(config, input="mem://bucket/photos", output="mem://bucket/index")
    built = imgindex.build(remote)
    folder = f"mem://bucket/index/generations/{built['generation']}/"
    written = {
        path.removeprefix(folder): hashlib.sha256(data).hexdigest()
        for path, (data, _) in memory.items()
        if path.startswith(folder)
    }
    assert digests(generation).items() <= written.items()
    index = imgindex.Index.open("mem://bucket/index")
    result = index.search("mem://bucket/photos/clock/clock_003.jpg", k=3)[0]
    assert (
        result.neighbors
        == imgindex.Index.open(config.output).search(photos / "clock" / "clock_003.jpg", k=3)[0].neighbors
    )
    assert imgindex.refresh(remote).ledger["reused"] == len(index)


def test_second_build_embeds_only_what_is_new(config, photos, tmp_path):
    folder = tmp_path / "photos"
    for kind in ("lake", "trees"):
        (folder / kind).mkdir(parents=True)
        for path in (photos / kind).iterdir():
            (folder / kind / path.name).write_bytes(path.read_bytes())
    again = replace(config, input=str(folder), output=str(tmp_path / "index"))
    first = imgindex.build(again)
    reader = imgindex.Index.open(again.output)
    (folder / "lake" / "lake_000.jpg").unlink()
    (folder / "lake" / "new.png").write_bytes((photos / "clock" / "clock_005.png").read_bytes())
    second = imgindex.build(again)
    assert second["previous"] == first["generation"]
    assert (second["ledger"]["embedded"], second["ledger"]["reused"]) == (1, 47)
    uris = {
        n.uri for n in imgindex.Index.open(again.output).search(folder / "lake" / "new.png", 48)[0].neighbors
    }
    assert "lake/new.png" in uris
    assert "lake/lake_000.jpg" not in uris
    assert len(reader) == 48
    assert reader.search(photos / "lake" / "lake_000.jpg", 1)[0].neighbors[0].uri == "lake/lake_000.jpg"
    assert len(imgindex.Index.open(again.output, first["generation"])) == 48


@pytest.mark.parametrize("damage", ["index", "metadata", "pca"])
def test_a_damaged_generation_is_not_opened(damage, generation, config, manifest, tmp_path):
    copy = tmp_path / "index"
    shutil.copytree(config.output, copy)
    victim = sorted((copy / "generations" / manifest["generation"] / damage).iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-7])
    with pytest.raises(OutputError):
        imgindex.Index.open(copy)


@pytest.mark.parametrize("count", [1, 2])
def test_hardly_any_images(count, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((photos / "pagoda").iterdir())[:count]):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())
    config = imgindex.Config(input=str(folder), output=str(tmp_path / "index"), backbone=BUNDLED)
    manifest = imgindex.build(config)
    assert (manifest["ledger"]["indexed"], manifest["dims"]) == (count, 1)
    neighbors = imgindex.Index.open(config.output).search(folder / "0.jpg")[0].neighbors
    assert [neighbor.uri for neighbor in neighbors] == ["0.jpg", "1.jpg"][:count]
    assert neighbors[0].label is None


def test_copies_of_one_image_are_all_at_cosine_one(photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.jpg").write_bytes((photos / "dahlia" / "dahlia_000.jpg").read_bytes())
    config = imgindex.Config(input=str(folder), output=str(tmp_path / "index"), backbone=BUNDLED)
    manifest = imgindex.build(config)
    assert manifest["dims"] == 1
    neighbors = imgindex.Index.open(config.output).search(folder / "05.jpg", 12)[0].neighbors
    assert len({neighbor.uri for neighbor in neighbors}) == 12
    assert all(neighbor.similarity == pytest.approx(1) for neighbor in neighbors)


@pytest.mark.parametrize("backbone", ["ResNet50", "InceptionV3"])
def test_backbones_of_the_usual_size(backbone, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*_001.jpg"))):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())
    config = imgindex.Config(
        input=str(folder),
        output=str(tmp_path / "index"),
        backbone=imgindex.BackboneConfig(name=backbone, weights="none"),
    )
    manifest = imgindex.build(config)
    assert (manifest["ledger"]["indexed"], manifest["feature_dim"]) == (13, 2048)
    first = imgindex.Index.open(config.output).search(folder / "7.jpg", k=1)[0].neighbors[0]
    assert (first.uri, first.similarity) == ("7.jpg", pytest.approx(1, abs=1e-4))


def test_a_pil_image_is_searched_as_its_file_is_and_stays_as_it_was(index, photos):
    path = next(
        path for path in sorted(photos.rglob("*.jpg")) if Image.open(path).getexif().get(0x0112, 1) > 1
    )
    image = Image.open(path)
    size = image.size
    by_path, by_image = index.search([path, image], k=3)
    assert by_image.neighbors[0].uri == by_path.neighbors[0].uri == str(path.relative_to(photos))
    assert by_image.neighbors[0].similarity > 0.99
    assert image.size == size


def nearest(vectors, count):
    """The `count` nearest rows of each row by cosine, itself left out, sharing nothing with the project."""
    unit = np.asarray(vectors, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1)[:, :count]


def same_class(vectors, labels):
    """The share of the 4 nearest that have the row's label."""
    return (labels[nearest(vectors, 4)] == labels[:, np.newaxis]).mean()


def test_caltech20_retrieves_its_own_classes(caltech20, tmp_path):
    config = imgindex.Config(input=str(caltech20), output=str(tmp_path / "index"), backbone=BUNDLED)
    assert imgindex.build(config)["ledger"]["indexed"] == 600
    index = imgindex.Index.open(config.output)
    (shard,), (table,) = index._opened._shards, index._opened._metadata
    assert same_class(shard.vectors, np.array(table["label"].to_pylist())) >= 0.95
    annoy = index.search_vectors(np.array(shard.vectors), 11)
    agreement = [
        len(set(exact) & ({n.item for n in result.neighbors} - {item})) / 10
        for item, (exact, result) in enumerate(zip(nearest(shard.vectors, 10), annoy, strict=True))
    ]
    assert np.mean(agreement) >= 0.95


@pytest.mark.parametrize("enlarged", [1, 5])
def test_caltech20_retrieves_as_well_as_float32_of_whole_decodes(caltech20, enlarged, tmp_path):
    # Enlarged five times, photos are decoded at a reduced size.
    uris = sorted(path.relative_to(caltech20).as_posix() for path in caltech20.glob("*/*.jpg"))
    pixels = []
    for path in (caltech20 / uri for uri in uris):
        target = tmp_path / "photos" / path.relative_to(caltech20)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photo:
            size = photo.width * enlarged, photo.height * enlarged
            photo.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
        with Image.open(target) as photo:
            pixels.append(np.asarray(photo.resize((224, 224), Image.Resampling.BILINEAR)))
    import keras

    model = keras.applications.MobileNetV2(
        input_shape=(224, 224, 3), include_top=False, pooling="avg", weights=str(BUNDLED_WEIGHTS)
    )
    preprocessed = keras.applications.mobilenet_v2.preprocess_input(np.array(pixels, np.float32))
    features = model.predict(preprocessed, verbose=0)
    expected = PCA(150, svd_solver="full").fit_transform(
        features / np.linalg.norm(features, axis=1, keepdims=True)
    )
    config = imgindex.Config(input=str(tmp_path / "photos"), output=str(tmp_path / "index"), backbone=BUNDLED)
    imgindex.build(config)
    index = imgindex.Index.open(config.output)
    assert index._opened._metadata[0]["uri"].to_pylist() == uris
    labels = np.array([uri.partition("/")[0] for uri in uris])
    assert abs(same_class(index._opened._shards[0].vectors, labels) - same_class(expected, labels)) <= 0.005


def test_color_profiles_are_applied_unless_told_not_to(photos, tmp_path):
    swapped = swapped_profile()
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[::40]):
        with Image.open(path) as photo:
            photo.save(tmp_path / "photos" / f"{number}.png", icc_profile=swapped)
    images, searched = tmp_path / "photos", str(tmp_path / "photos/0.png")
    manifests, vectors = {}, {}
    for choice in ("srgb", "ignore"):
        limits = imgindex.ImagesConfig(color_profile=choice)
        config = imgindex.Config(str(images), str(tmp_path / choice), backbone=BUNDLED, images=limits)
        manifests[choice] = imgindex.build(config)
        index = imgindex.Index.open(config.output)
        nearest = index.search(searched, k=1)[0].neighbors[0]
        assert nearest.uri == "0.png"
        assert nearest.similarity > 0.999  # the query is decoded as the indexed image was
        vectors[choice] = index.basis.mean
    assert manifests["srgb"]["spec"]["digest"] != manifests["ignore"]["spec"]["digest"]
    assert np.abs(vectors["srgb"] - vectors["ignore"]).max() > 0.001
