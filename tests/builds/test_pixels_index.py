"""The backbone `pixels`: an index of raw pixels is one like any other, and as good as they are."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgindex
from imgindex.cli import main
from imgindex.generations.layout import Output, read_manifest

PHOTOS = Path(os.environ.get("IMGINDEX_SHARED", Path(__file__).parents[3] / "shared")) / "data/caltech20"
SETTINGS = [
    "--set", "backbone.name=pixels", "--set", "publish.min_recall=0", "--set", "publish.max_failure_rate=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """Eight images of 40 x 30 pixels, a copy of one, and one that is all black."""
    folder = tmp_path_factory.mktemp("pixels") / "photos"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(image_bytes(number, (40, 30)))
    shutil.copy(folder / "0.png", folder / "copy.png")
    Image.new("RGB", (40, 30)).save(folder / "black.png")
    return folder


@pytest.fixture(scope="module")
def output(photos: Path) -> Path:
    output = photos.parent / "index"
    assert main(["build", "--input", str(photos), "--output", str(output), *SETTINGS]) == 0
    return output


def by_pillow(path: Path) -> np.ndarray:
    """The feature of a photo, float16, by Pillow and NumPy."""
    with Image.open(path) as image:
        image.draft("RGB", (64, 64))  # as docs/formats.md has it of JPEGs
        pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    return (pixels.ravel() / np.linalg.norm(pixels)).astype(np.float16)


@pytest.mark.long
class TestIndex:
    def test_what_is_recorded(self, output: Path) -> None:
        manifest = read_manifest(Output(str(output)))
        assert (manifest.engine.name, manifest.engine.precision) == ("numpy", "float32")
        assert (manifest.spec.backbone, manifest.spec.image_size) == ("pixels", (32, 32))
        assert (manifest.spec.pooling, manifest.spec.preprocessing) == ("none", "none")
        assert manifest.feature_dim == 3 * 32 * 32

    def test_the_features_are_the_pixels(self, output: Path, photos: Path) -> None:
        index = imgindex.Index.open(output)
        features = np.stack([by_pillow(photos / f"{number}.png") for number in range(8)])
        found = index.search_vectors(index.basis.project(features), k=2, exact=True, distinct=True)
        for number, result in enumerate(found):
            nearest = result.neighbors[0]
            assert nearest.uri == f"{number}.png"
            assert nearest.distance == 0

    def test_a_search_finds_each_image(self, output: Path, photos: Path) -> None:
        index = imgindex.Index.open(output)
        for number in range(1, 8):
            [result] = index.search(photos / f"{number}.png", k=1)
            assert [neighbor.uri for neighbor in result.neighbors] == [f"{number}.png"]
        [result] = index.search(photos / "0.png", k=1, exclude_self=True, distinct=True)
        assert result.neighbors[0].uri not in ("0.png", "copy.png")

    def test_a_black_image_has_no_direction(
        self, output: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert read_manifest(Output(str(output))).ledger.failed_by_reason == {"embed/no_direction": 1}
        assert main(["search", str(output), str(photos / "black.png")]) == 3
        assert "no_direction" in capsys.readouterr().err
        compared = imgindex.compare(output, "0.png", photos / "black.png")
        assert (compared.a.has_feature, compared.b.has_feature) == (True, False)
        assert compared.features["cosine"] is None
        assert compared.pixels["cosine"] == 0

    def test_pixels_and_features_have_the_same_cosine(self, output: Path) -> None:
        compared = imgindex.compare(output, "1.png", "2.png")
        assert compared.features["cosine"] == pytest.approx(compared.pixels["cosine"], abs=1e-4)

    def test_inspect_says_what_it_is(self, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(output)]) == 0
        printed = capsys.readouterr().out
        assert "pixels 32x32, their RGB values" in printed
        assert "numpy float32" in printed

    def test_a_refresh_embeds_what_is_new(
        self,
        output: Path,
        photos: Path,
        image_bytes: Callable[..., bytes],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert main(["build", "--input", str(photos), "--output", str(output), *SETTINGS]) == 0
        assert "nothing has changed" in capsys.readouterr().out
        (photos / "9.png").write_bytes(image_bytes(9, (40, 30)))
        assert main(["build", "--input", str(photos), "--output", str(output), *SETTINGS]) == 0
        ledger = read_manifest(Output(str(output))).ledger
        assert (ledger.indexed, ledger.embedded, ledger.reused) == (10, 1, 9)
        assert main(["verify", str(output)]) == 0


def neighbors(points: np.ndarray) -> np.ndarray:
    """The four nearest others [n, 4] of each of `points` [n, d], by brute force."""
    squares = np.square(points).sum(axis=1)
    distances = squares[:, np.newaxis] + squares - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :4]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no caltech20 photos")
@pytest.mark.long
def test_precision_on_photos_is_that_of_brute_force(tmp_path: Path) -> None:
    """All components are kept and the metric is euclidean, so that PCA only turns the features."""
    paths = sorted(PHOTOS.glob("*/*.jpg"))
    settings = [*SETTINGS, "--set", "pca.dims=600", "--set", "index.metric=euclidean"]
    assert main(["build", "--input", str(PHOTOS), "--output", str(tmp_path / "index"), *settings]) == 0
    labels = np.array([path.parent.name for path in paths])
    found = neighbors(np.stack([by_pillow(path) for path in paths]).astype(np.float64))
    expected = (labels[found] == labels[:, np.newaxis]).mean()

    index = imgindex.Index.open(tmp_path / "index")
    results = index.search_each(map(str, paths), k=4, exact=True, exclude_self=True)
    hits = [
        neighbor.label == label
        for label, result in zip(labels, results, strict=True)
        for neighbor in result.neighbors
    ]
    assert len(hits) == 4 * len(paths)
    assert np.mean(hits) == expected
