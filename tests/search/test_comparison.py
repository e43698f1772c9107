"""`imgindex compare` and `imgindex.compare`: two images by every measure."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from labeled_photos import write_photos
from PIL import Image
from scipy.spatial.distance import cdist

import imgindex
from imgindex.cli import main
from imgindex.errors import InputError, OutputError, UsageError
from imgindex.generations.layout import Output, read_manifest
from imgindex.generations.manifest import encode
from imgindex.models.batches import embed_all
from imgindex.models.measures import MEASURES
from imgindex.models.preprocess import decode
from imgindex.search.queries import load

QUICK = [
    "backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32",
    "engine.precision=float32", "pca.dims=8", "publish.min_recall=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    """Twelve images in two folders, with a copy of one of them, and a gray one."""
    folder = tmp_path_factory.mktemp("compare") / "photos"
    write_photos(folder, image_bytes)
    shutil.copy(folder / "a" / "00.png", folder / "b" / "copy.png")
    Image.new("RGB", (50, 20), "gray").save(folder / "b" / "gray.png")
    return folder


@pytest.fixture(scope="module")
def output(photos: Path) -> Path:
    output = photos.parent / "index"
    settings = [word for value in QUICK for word in ("--set", value)]
    assert main(["build", "--input", str(photos), "--output", str(output), *settings]) == 0
    return output


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(output: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["compare", str(output), *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def expected(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The measures of two vectors, by SciPy and NumPy."""
    a, b = one.astype(np.float64).reshape(1, -1), other.astype(np.float64).reshape(1, -1)
    return {
        "l1": cdist(a, b, "cityblock").item(),
        "l2": cdist(a, b, "euclidean").item(),
        "mse": np.square(a - b).mean(),
        "cosine": 1 - cdist(a, b, "cosine").item(),
        "ncc": np.corrcoef(a, b)[0, 1],
    }


class TestScores:
    def test_they_are_those_of_pixels_stored_features_and_indexed_vectors(
        self, output: Path, photos: Path
    ) -> None:
        from imgindex.features.feature_store import read_features, read_keys
        from imgindex.io import filesystem

        one, other = photos / "a" / "02.png", photos / "b" / "03.png"
        found = imgindex.compare(output, one, other)
        pixels = [decode(path.read_bytes(), (32, 32)).pixels for path in (one, other)]
        assert found.image_size == (32, 32)
        assert found.pixels == pytest.approx(expected(*pixels), rel=1e-9)

        out = Output(str(output))
        store = out.store(read_manifest(out).spec.digest)
        features = {}
        for chunk in filesystem.list_names(store, ".parquet"):
            keys = list(read_keys(store, chunk)) if chunk.startswith("chunk") else []
            rows = read_features(store, chunk, [key.row for key in keys]) if keys else []
            features |= {key.uri: row for key, row in zip(keys, rows, strict=True)}
        assert found.features == pytest.approx(expected(features["a/02.png"], features["b/03.png"]), rel=1e-9)

        index = imgindex.Index.open(output)
        vectors = index.basis.project(np.stack([features["a/02.png"], features["b/03.png"]]))
        assert found.vectors == pytest.approx(expected(*vectors), rel=1e-9)
        neighbors = index.search(one, k=14)[0].neighbors
        [cosine] = [neighbor.similarity for neighbor in neighbors if neighbor.uri == "b/03.png"]
        assert found.vectors["cosine"] == pytest.approx(cosine, abs=1e-6)

    def test_copies_are_equal_by_every_measure(self, output: Path) -> None:
        found = imgindex.compare(output, "a/00.png", "b/copy.png")
        for scores in (found.pixels, found.features, found.vectors):
            for name, score in scores.items():
                assert score == (0 if MEASURES[name].is_distance else pytest.approx(1, abs=1e-12))

    def test_ncc_of_a_constant_image_is_undefined(self, output: Path) -> None:
        found = imgindex.compare(output, "a/00.png", "b/gray.png")
        assert found.pixels["ncc"] is None
        assert None not in [*found.features.values(), *found.vectors.values()]
        others = [score for name, score in found.pixels.items() if name != "ncc"]
        assert all(isinstance(score, float) for score in others)

    def test_a_black_image_is_at_cosine_zero(self, output: Path) -> None:
        black = np.zeros((40, 30, 3), np.uint8)
        assert imgindex.compare(output, "a/00.png", black).pixels["cosine"] == 0
        assert imgindex.compare(output, black, black).pixels == {
            "l1": 0, "l2": 0, "mse": 0, "cosine": 0, "ncc": None,
        }  # fmt: skip

    def test_an_image_without_a_feature_is_compared_by_pixels(
        self, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        zero = lambda engine, pixels: np.zeros((len(pixels), engine.feature_dim), np.float32)  # noqa: E731
        monkeypatch.setattr("imgindex.search.comparison.embed_all", zero)
        found = imgindex.compare(output, "a/00.png", "b/01.png")
        assert not found.a.has_feature
        assert found.pixels["l1"]
        assert set(found.features.values()) == set(found.vectors.values()) == {None}

    def test_images_of_other_sizes_are_resized_to_one(
        self, output: Path, photos: Path, tmp_path: Path
    ) -> None:
        with Image.open(photos / "a" / "00.png") as image:
            image.resize((640, 512), Image.Resampling.NEAREST).save(tmp_path / "large.png")
        found = imgindex.compare(output, "a/00.png", tmp_path / "large.png")
        assert found.pixels["ncc"] == pytest.approx(1, abs=0.1)


class TestImages:
    def test_paths_bytes_pictures_arrays_and_uris(self, output: Path, photos: Path) -> None:
        path = photos / "a" / "02.png"
        image = Image.open(path).convert("RGB")
        given = [path, str(path), path.read_bytes(), image, np.asarray(image), "a/02.png"]
        names = [str(path), str(path), "bytes", "Image", "ndarray", "a/02.png"]
        paths = [str(path), str(path), None, None, None, str(path)]
        for each, name, where in zip(given, names, paths, strict=True):
            found = imgindex.compare(output, each, path)
            assert (found.a.name, found.a.path, found.b.path) == (name, where, str(path))
            assert found.pixels["l1"] == 0

    def test_a_file_counts_before_a_uri(
        self, output: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a").mkdir()
        shutil.copy(photos / "b" / "03.png", tmp_path / "a" / "02.png")
        monkeypatch.chdir(tmp_path)
        assert imgindex.compare(output, "a/02.png", "b/03.png").pixels["l1"] == 0

    @pytest.mark.parametrize("image", [np.zeros(8), 3, None, ["a/02.png"]])
    def test_what_is_no_image_is_refused(self, output: Path, image: object) -> None:
        with pytest.raises(UsageError, match=r"a vector has no pixels|a query must be the path"):
            imgindex.compare(output, image, "a/02.png")  # type: ignore[arg-type]

    def test_bad_images_are_named_with_their_reason(self, output: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_text("no image")
        with pytest.raises(InputError, match=r"image .*bad\.jpg: not_an_image: no image format"):
            imgindex.compare(output, "a/02.png", tmp_path / "bad.jpg")
        with pytest.raises(
            InputError, match=r"image c/1\.png is neither a file nor the uri of an indexed image$"
        ):
            imgindex.compare(output, "c/1.png", "a/02.png")

    def test_the_file_of_an_indexed_image_is_gone(self, output: Path, photos: Path, tmp_path: Path) -> None:
        gone = photos / "b" / "05.png"
        gone.rename(tmp_path / "05.png")
        try:
            with pytest.raises(
                InputError, match=rf"image b/05\.png \({gone}\): cannot be read: No such file"
            ):
                imgindex.compare(output, "b/05.png", "a/02.png")
        finally:
            (tmp_path / "05.png").rename(gone)

    def test_no_index(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="holds no index"):
            imgindex.compare(tmp_path, "a.png", "b.png")


class TestPruning:
    """Another process publishes a generation and prunes the one that is being looked at."""

    @pytest.fixture
    def pruned(self, output: Path, tmp_path: Path) -> tuple[Path, str, str, Callable[[], None]]:
        """An index, its live generation, the next one, and what publishes that one and prunes the other."""
        copy = tmp_path / "index"
        shutil.copytree(output, copy)
        manifest = read_manifest(Output(str(copy)))
        before, after = manifest.generation, "20991231T000000Z-00000001"
        shutil.copytree(copy / "generations" / before, copy / "generations" / after)
        written = copy / "generations" / after / "manifest.json"
        written.write_bytes(encode(replace(manifest, generation=after)))

        def prune() -> None:
            (copy / "CURRENT").write_text(f"{after}\n")
            shutil.rmtree(copy / "generations" / before, ignore_errors=True)

        return copy, before, after, prune

    def test_before_the_uris_are_looked_up(
        self, pruned: tuple[Path, str, str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output, _, after, prune = pruned

        def look_late(path: str | Path, *arguments: object) -> object:
            prune()
            return load(path, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("imgindex.search.comparison.load", look_late)
        assert imgindex.compare(output, "a/00.png", "b/03.png").generation == after

    def test_before_the_page_is_made(
        self,
        pruned: tuple[Path, str, str, Callable[[], None]],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        output, before, _, prune = pruned
        monkeypatch.setattr(
            "imgindex.search.comparison.embed_all", lambda *arguments: (prune(), embed_all(*arguments))[1]
        )
        page = tmp_path / "page.html"
        assert main(["compare", str(output), "a/00.png", "b/03.png", "--html", str(page)]) == 0
        assert before in page.read_text()


class Text(HTMLParser):
    """The cells of a page's table, and its pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = self._inside or tag in ("td", "th")
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells.append(data)


class TestCommand:
    def test_a_table(self, run: Run) -> None:
        code, printed, told = run("a/00.png", "b/gray.png")
        assert (code, told) == (0, "")
        lines = printed.splitlines()
        assert lines[:3] == ["a  a/00.png", "b  b/gray.png", ""]
        assert lines[3].split() == ["measure", "pixels", "32x32", "features", "vectors", "if", "equal"]
        assert [line.split()[0] for line in lines[4:9]] == ["L1", "L2", "MSE", "cosine", "NCC"]
        assert [line.split()[-1] for line in lines[4:9]] == ["0", "0", "0", "1", "1"]
        assert lines[8].split()[1] == "undefined"
        assert len({len(line) for line in lines[3:9]}) == 1
        assert lines[9] == ""
        assert lines[10].startswith("A search ranks by the cosine of the vectors, where more is nearer")
        assert len(lines) == 11

    def test_json(self, run: Run, output: Path, photos: Path) -> None:
        code, printed, _ = run("a/00.png", photos / "b" / "gray.png", "--json")
        found = json.loads(printed)
        assert code == 0
        assert found["a"] == {"name": "a/00.png", "path": f"{photos}/a/00.png", "has_feature": True}
        assert found["b"]["name"] == f"{photos}/b/gray.png"
        assert found["generation"] == (output / "CURRENT").read_text().strip()
        assert found["image_size"] == [32, 32]
        comparison = imgindex.compare(output, "a/00.png", "b/gray.png")
        for kind in ("pixels", "features", "vectors"):
            assert found[kind] == getattr(comparison, kind)
        assert found["pixels"]["ncc"] is None

    def test_a_page_shows_both_pictures_and_the_table(self, run: Run, tmp_path: Path) -> None:
        code, printed, _ = run("a/00.png", "b/03.png", "--html", tmp_path / "page.html")
        assert code == 0
        page = (tmp_path / "page.html").read_text()
        shown = Text(page)
        assert [picture["alt"] for picture in shown.pictures] == ["a/00.png", "b/03.png"]
        assert all((picture["src"] or "").startswith("data:image/") for picture in shown.pictures)
        rows = [line.split() for line in printed.splitlines()[4:9]]
        assert shown.cells[5:] == [cell for row in rows for cell in row]
        assert "default-src 'none'" in page
        assert "<script" not in page

    def test_errors(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_text("no image")
        code, printed, told = run("a/00.png", tmp_path / "bad.jpg")
        assert (code, printed) == (3, "")
        assert told.splitlines() == [
            f"imgindex: image {tmp_path / 'bad.jpg'}: not_an_image: no image format that Pillow reads"
        ]
        code, _, told = run("a/00.png", tmp_path)
        assert (code, told) == (
            3, f"imgindex: image {tmp_path} is no file but a folder, or a pipe; name an image\n"
        )  # fmt: skip
        code, _, told = run("a/00.png", "a/02.png", "--html", tmp_path / "no" / "page.html")
        assert code == 3
        assert "page.html: cannot be written: No such file or directory" in told
        assert run("a/00.png", "a\nb\x1b[31m.png")[2].count("\n") == 1
        with pytest.raises(SystemExit, match="2"):
            main(["compare", "index", "a/00.png"])

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["compare", "--help"])
        assert "its path, or its uri in the index" in capsys.readouterr().out
