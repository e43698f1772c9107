"""Duplicates of an index: against brute force on its features, and by the command."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outputs import publish_features
from PIL import Image
from webpages import Page

import imgindex
from imgindex import Duplicates
from imgindex.cli import main
from imgindex.errors import OutputError, UsageError
from imgindex.evaluation.duplicates.results import DuplicateGroup
from imgindex.models.pca import normalize

DIM = 32


def planted(seed: int, count: int = 400) -> np.ndarray:
    """Features in clusters of one to five that are nearly equal; L2-normalized."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((count // 3, DIM))
    features = centers[generator.integers(0, len(centers), count)]
    noise = generator.uniform(0.02, 0.5, (count, 1)) * generator.standard_normal((count, DIM))
    features = features + noise
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def cosines_of(features: np.ndarray) -> np.ndarray:
    """Of the features as a store holds them, in float64."""
    rows = normalize(features)[0].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def named(count: int) -> list[str]:
    return [f"{'abc'[number % 3]}/{number:04}.jpg" for number in range(count)]


def digests_of(contents: np.ndarray) -> list[str]:
    return [f"{content:064x}" for content in contents]


def numbers(group: DuplicateGroup) -> list[int]:
    return [int(image.uri[-8:-4]) for image in group.images]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"shards": 3},
        {"metric": "euclidean"},
        {"whiten": 1.0},
        {"whiten": 0.5, "dims": 24, "metric": "euclidean"},
    ],
    ids=str,
)
@pytest.mark.parametrize("threshold", [0.9, pytest.param(0.97, marks=pytest.mark.long)])
def test_groups_are_those_of_brute_force(how: dict[str, Any], threshold: float, tmp_path: Path) -> None:
    """Every pair of a group reaches the threshold, no two groups could be one, and the least is the least."""
    features = planted(1)
    publish_features(tmp_path, features, named(400), **{"dims": 12, "trees": 20, **how})
    found = imgindex.duplicates(tmp_path, threshold)
    cosines = cosines_of(features)
    groups = [numbers(group) for group in found.groups]
    for group, images in zip(found.groups, groups, strict=True):
        pairs = [cosines[one, other] for one, other in combinations(images, 2)]
        assert group.kind == "near"
        assert min(pairs) == pytest.approx(group.least_similarity, abs=1e-6)
        assert min(pairs) > threshold - 1e-6
        similar = [image.similarity for image in group.images]
        assert similar == pytest.approx(cosines[images[0], images], abs=1e-6)
    grouped = [image for images in groups for image in images]
    assert len(grouped) == len(set(grouped)) == found.near.images == found.all.images
    assert found.near.surplus == len(grouped) - len(groups)
    alone = set(range(400)) - set(grouped)
    for one, other in combinations([*groups, *([image] for image in alone)], 2):
        assert cosines[np.ix_(one, other)].min() < threshold + 1e-6
    near = (cosines >= threshold) & ~np.eye(400, dtype=bool)
    assert found.ungrouped == len(alone & set(np.flatnonzero(near.any(axis=1)).tolist()))


def test_copies_stand_in_the_groups_of_their_bytes_and_are_counted_each(tmp_path: Path) -> None:
    # Content 0 three times, content 1 near to it, content 2 twice, the others alone.
    features = planted(2, 60)
    features[1] = features[0] + 0.001
    contents = np.array([0, 0, 0, 1, 2, 2, *range(3, 50)])
    far = cosines_of(features)
    assert (np.triu(far, 1) >= 0.9999).sum() == 1
    uris = named(len(contents))
    publish_features(tmp_path, features[contents], uris, digests_of(contents), dims=12, trees=20)
    found = imgindex.duplicates(tmp_path, 0.9999)
    assert [(group.kind, sorted(numbers(group))) for group in found.groups] == [
        ("near", [0, 1, 2, 3]),
        ("exact", [4, 5]),
    ]
    assert (found.exact.images, found.exact.surplus) == (2, 1)
    assert (found.near.images, found.near.surplus) == (4, 3)
    near, exact = found.groups
    assert (exact.least_similarity, [image.similarity for image in exact.images]) == (1.0, [1.0, 1.0])
    assert len({image.sha256 for image in near.images}) == 2


def test_thousands_of_copies_hide_no_near_duplicate(tmp_path: Path) -> None:
    features = planted(3, 60)
    features[1] = features[0] * 1.001 + 0.002
    contents = np.array([0] * 2000 + list(range(1, 40)))
    publish_features(tmp_path, features[contents], named(len(contents)), digests_of(contents), dims=12)
    cosine = cosines_of(features)[0, 1]
    found = imgindex.duplicates(tmp_path, cosine - 1e-4)
    assert len(found.groups[0].images) == 2001
    assert 2000 in numbers(found.groups[0])


def test_more_near_duplicates_than_candidates_are_one_group(tmp_path: Path) -> None:
    """As the frames of a film that stands still."""
    generator = np.random.default_rng(0)
    frames = np.ones((300, DIM)) + 0.01 * generator.standard_normal((300, DIM))
    features = np.concatenate([frames, planted(4, 100)]).astype(np.float32)
    publish_features(tmp_path, features, named(400), dims=12, trees=10)
    found = imgindex.duplicates(tmp_path, 0.99)
    assert sorted(numbers(found.groups[0])) == list(range(300))


def test_identical_features_reach_a_threshold_of_one(tmp_path: Path) -> None:
    features = planted(5, 60)
    features[7] = features[3]
    publish_features(tmp_path, features, named(60), dims=12)
    found = imgindex.duplicates(tmp_path, 1)
    assert [numbers(group) for group in found.groups] == [[3, 7]]


def test_groups_across_labels_and_folders(tmp_path: Path) -> None:
    features = planted(6, 60)
    uris = [f"x/{number:04}.jpg" for number in range(60)]
    pairs = {
        "same": ("a/0000.jpg", "a/0001.jpg"),
        "folder": ("p/a/0002.jpg", "q/a/0003.jpg"),
        "label": ("b/0004.jpg", "c/0005.jpg"),
    }
    for place, (one, other) in zip((0, 2, 4), pairs.values(), strict=True):
        features[place + 1] = features[place]
        uris[place : place + 2] = one, other
    publish_features(tmp_path, features, uris, dims=12)

    def found(**how: Any) -> list[list[int]]:
        return sorted(sorted(numbers(group)) for group in imgindex.duplicates(tmp_path, 1, **how).groups)

    assert found() == [[0, 1], [2, 3], [4, 5]]
    assert found(across="folders") == [[2, 3], [4, 5]]
    assert found(across="labels") == [[4, 5]]
    with pytest.raises(UsageError, match="expected labels or folders"):
        found(across="sizes")


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_thresholds_that_are_none(threshold: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a number above 0 and at most 1"):
        imgindex.duplicates(tmp_path, threshold)


class TestAgainst:
    """What one index holds of another."""

    @pytest.fixture
    def outputs(self, tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
        """A test set of 90 images, of which the training set of 300 has some; the bases differ."""
        features = planted(7, 390)
        contents = np.arange(390)
        features[300:310] = features[:10]  # near: other bytes
        contents[310:315] = contents[20:25]  # exact
        features[310:315] = features[20:25]
        contents[316] = contents[315]  # a copy in the test set itself
        features[316] = features[315]
        train, test = tmp_path / "train", tmp_path / "test"
        digests = digests_of(contents)
        publish_features(train, features[:300], named(300), digests[:300], dims=12, trees=20, shards=2)
        publish_features(test, features[300:], named(90), digests[300:], dims=10, whiten=1.0)
        return train, test, features

    def test_every_image_with_a_duplicate_is_found(self, outputs: tuple[Path, Path, np.ndarray]) -> None:
        train, test, features = outputs
        found = imgindex.duplicates(test, 0.95, against=train)
        cosines = cosines_of(features)[300:, :300]
        reached = {image: set(np.flatnonzero(cosines[image] >= 0.95).tolist()) for image in range(90)}
        expected = {image: others for image, others in reached.items() if others}
        told = {}
        for group in found.groups:
            own = [int(image.uri[-8:-4]) for image in group.images if image.index == str(test)]
            others = {int(image.uri[-8:-4]) for image in group.images if image.index == str(train)}
            told.update(dict.fromkeys(own, others))
            assert group.images[0].index == str(test)
            assert group.why == ""
        assert told == expected
        assert found.exact.images == 5
        assert found.all.images == len(expected)
        assert found.images == 90

    def test_by_the_command(
        self, outputs: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]
    ) -> None:
        train, test, _ = outputs
        code = main(["duplicates", str(test), "--against", str(train), "--threshold", "1", "--fail_if_found"])
        assert code == 4
        printed = capsys.readouterr()
        assert (
            f"15 images are in {train}, too\n  5 images by their bytes, 10 images by their features\n"
            in printed.out
        )
        assert printed.err == "imgindex: 15 images found, where --fail_if_found allows none\n"

    @pytest.mark.long
    def test_indexes_of_other_specs_are_refused(
        self, outputs: tuple[Path, Path, np.ndarray], quick_output: Path
    ) -> None:
        with pytest.raises(UsageError, match="cannot be compared, for their specs differ in weights"):
            imgindex.duplicates(quick_output, against=outputs[0])

    def test_across_says_nothing_there(self, outputs: tuple[Path, Path, np.ndarray]) -> None:
        with pytest.raises(UsageError, match="across and against do not go together"):
            imgindex.duplicates(outputs[1], against=outputs[0], across="labels")


class TestNew:
    """What the last refresh has added or changed."""

    def test_only_duplicates_of_new_images_are_found(self, tmp_path: Path) -> None:
        features = planted(8, 80)
        features[1] = features[0]  # both old
        features[71], features[73] = features[5], features[72]  # a new one of an old one, two new ones
        uris = named(80)
        contents = np.arange(80)
        contents[74] = contents[9]  # a new copy of an old one
        features[74] = features[9]
        digests = digests_of(contents)
        publish_features(tmp_path, features[:70], uris[:70], digests[:70], dims=12, number=1)
        publish_features(tmp_path, features, uris, digests, dims=12, number=2)
        found = imgindex.duplicates(tmp_path, 1, new=True)
        assert sorted(sorted(numbers(group)) for group in found.groups) == [[5, 71], [9, 74], [72, 73]]
        assert found.images == 10
        assert len(imgindex.duplicates(tmp_path, 1).groups) == 4

    def test_of_a_first_build_all_are_new(self, tmp_path: Path) -> None:
        features = planted(9, 40)
        features[1] = features[0]
        publish_features(tmp_path, features, named(40), dims=12)
        assert len(imgindex.duplicates(tmp_path, 1, new=True).groups) == 1

    def test_a_generation_that_was_pruned_is_named(self, tmp_path: Path) -> None:
        features = planted(9, 40)
        name = publish_features(tmp_path, features, named(40), dims=12, number=1)
        publish_features(tmp_path, features, named(40), dims=12, number=2)
        shutil.rmtree(tmp_path / "generations" / name)
        with pytest.raises(OutputError, match="keep two generations when you prune"):
            imgindex.duplicates(tmp_path, new=True)


def test_a_store_that_lacks_features_is_told(tmp_path: Path) -> None:
    features = planted(10, 40)
    features[1] = features[0]
    publish_features(tmp_path, features, named(40), dims=12)
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(OutputError, match="lacks the features of 40 images"):
        imgindex.duplicates(tmp_path)


# --- with images


@pytest.fixture(scope="module")
def quick_output(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """Twelve photos, of which some have copies: of the same bytes, as BMP, and smaller."""
    folder = tmp_path_factory.mktemp("duplicates")
    photos = folder / "photos"
    for number in range(12):
        path = photos / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, (64, 48)))
    (photos / "b/copy of 00.png").write_bytes(image_bytes(0, (64, 48)))
    with Image.open(photos / "b/01.png") as image:
        image.save(photos / "a/larger.bmp")
    settings = ["backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32", "pca.dims=8"]
    settings += ["engine.precision=float32", "publish.min_recall=0"]
    words = [word for value in settings for word in ("--set", value)]
    assert main(["build", "--input", str(photos), "--output", str(folder / "index"), *words]) == 0
    return folder / "index"


GROUPS = [["a/00.png", "b/copy of 00.png"], ["a/larger.bmp", "b/01.png"]]


def test_the_command_prints_groups_and_which_to_keep(
    quick_output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["duplicates", str(quick_output), "--threshold", "0.99999"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"14 images of {quick_output} looked at, threshold 0.99999"
    assert lines[1] == "  exact duplicates: 1 group of 2 images, 1 besides one of each"
    assert lines[2] == "  near  duplicates: 1 group of 2 images, 1 besides one of each"
    assert "1  exact, 2 images, keep: shortest path" in lines
    assert "2  near, 2 images, least similarity 1.0000, keep: largest file" in lines
    kept = [line.split()[-1] for line in lines if line.startswith("   keep")]
    assert kept == ["a/00.png", "a/larger.bmp"]


def test_the_files_of_the_command_say_the_same(
    quick_output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / f"found.{kind}" for kind in ("csv", "json", "html")}
    flags = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    for _ in range(2):  # its own files are replaced
        assert main(["duplicates", str(quick_output), "--threshold", "0.99999", *flags]) == 0
    told = json.loads(files["json"].read_text())
    assert [[image["uri"] for image in group["images"]] for group in told["groups"]] == GROUPS
    assert told["generator"] == "imgindex"
    assert told["all"] == {"groups": 2, "images": 4, "surplus": 2}
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [(row["group"], row["keep"], row["uri"]) for row in rows] == [
        (str(number), "no" if place else "yes", uri)
        for number, group in enumerate(GROUPS, 1)
        for place, uri in enumerate(group)
    ]
    assert {row["why"] for row in rows} == {"shortest path", "largest file", ""}
    page = Page(files["html"].read_text())
    page.assert_self_contained()
    page.assert_accessible()
    assert len(page.named("img")) == 4
    assert "largest file" in page.text


def test_nothing_found_is_no_failure(quick_output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = imgindex.duplicates(quick_output, 0.99999, across="labels")
    assert isinstance(found, Duplicates)
    assert [group.images[0].uri for group in found.groups] == ["a/00.png", "a/larger.bmp"]
    assert main(["duplicates", str(quick_output), "--threshold", "0.99999", "--new", "--fail_if_found"]) == 4
    assert capsys.readouterr().err == "imgindex: 4 images found, where --fail_if_found allows none\n"


def test_no_other_file_is_replaced(
    quick_output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "prices.csv"
    other.write_text("name,price\n")
    assert main(["duplicates", str(quick_output), "--csv", str(other)]) == 2
    assert "is no CSV file of imgindex" in capsys.readouterr().err
    assert (
        main(["duplicates", str(quick_output), "--csv", str(tmp_path / "x"), "--json", str(tmp_path / "x")])
        == 2
    )
    assert "is given both for the JSON file and for the CSV file" in capsys.readouterr().err
