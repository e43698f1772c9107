"""The export `atlas`: places, neighbors and thumbnails of each image, in one Parquet file."""

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from outputs import publish_features
from PIL import Image
from vector_outputs import publish_vectors

import imgindex
from imgindex.errors import MachineError, UsageError
from imgindex.models.ann.protocol import Metric

NAME = "20260101T000000Z-00000001"
COUNT = 40
VECTORS = np.random.default_rng(1).normal(size=(COUNT, 6)).astype(np.float32)
URIS = [f"{'ab'[n % 2]}/{n:02}.jpg" for n in range(COUNT)]


class StandIn:
    """What is used of UMAP, which compiles itself for half a minute: the map is where it starts."""

    def __init__(self, *, init: npt.NDArray[np.float32], n_neighbors: int, **settings: Any) -> None:
        self.init, self.settings = init, settings
        assert settings["precomputed_knn"][0].shape == (len(init), n_neighbors)

    def fit_transform(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        assert len(vectors) == len(self.init)
        return self.init + self.settings["random_state"]


@pytest.fixture
def umap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, "imgindex.sinks.atlas", raising=False)
    module = ModuleType("umap")
    module.UMAP = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    yield
    sys.modules.pop("imgindex.sinks.atlas", None)


@pytest.mark.usefixtures("umap")
class TestRows:
    @pytest.mark.parametrize("metric", ["angular", "euclidean"])
    def test_neighbors_are_the_rows_that_exact_search_finds(self, metric: Metric, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS, shards=3, metric=metric)
        imgindex.export(tmp_path / "index", "atlas", tmp_path / "out")
        table = pq.read_table(tmp_path / "out/images.parquet")
        uris = table["uri"].to_pylist()
        ours = imgindex.Index.open(tmp_path / "index")
        results = ours.search_vectors(VECTORS[[URIS.index(uri) for uri in uris]], 15, exact=True)
        for found, result in zip(table["neighbors"].to_pylist(), results, strict=True):
            assert [uris[row] for row in found["ids"]] == [each.uri for each in result.neighbors]
            distances = [each.distance for each in result.neighbors]
            assert found["distances"] == pytest.approx(distances, abs=1e-3)

    def test_a_row_describes_its_image(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS, metric="euclidean")
        imgindex.export(tmp_path / "index", "atlas", tmp_path / "out", seed=7)
        for row in pq.read_table(tmp_path / "out/images.parquet").to_pylist():
            n = URIS.index(row["uri"])
            assert [row[name] for name in ("label", "sha256", "size", "width", "height", "thumbnail")] == [
                "ab"[n % 2], f"{n:064x}", n + 1, 5, 6, None,
            ]  # fmt: skip
            assert [row["x"], row["y"]] == pytest.approx((VECTORS[n, :2] + 7).tolist())

    def test_thumbnails_are_small_copies_of_the_images(self, tmp_path: Path) -> None:
        digests = []
        for n, uri in enumerate(URIS[:4]):
            data = io.BytesIO()
            Image.new("RGB", (200, 200), (60 * n, 0, 0)).save(data, "PNG")
            path = tmp_path / "photos" / uri
            path.parent.mkdir(parents=True, exist_ok=True)
            digests.append(hashlib.sha256(data.getvalue()).hexdigest())
            path.write_bytes(data.getvalue())
        (tmp_path / "photos" / URIS[2]).unlink()
        root = str(tmp_path / "photos")
        publish_features(tmp_path / "index", np.abs(VECTORS[:4]), URIS[:4], digests, dims=2, root=root)
        imgindex.export(tmp_path / "index", "atlas", tmp_path / "out")
        for row in pq.read_table(tmp_path / "out/images.parquet").to_pylist():
            n = URIS.index(row["uri"])
            if n == 2:
                assert row["thumbnail"] is None
                continue
            with Image.open(io.BytesIO(row["thumbnail"]["bytes"])) as picture:
                assert (picture.format, max(picture.size)) == ("JPEG", 160)
                assert abs(picture.getpixel((80, 80))[0] - 60 * n) <= 3  # type: ignore[index, operator]
            assert row["thumbnail"]["path"] is None

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    @pytest.mark.parametrize("dims", [1, 2, 6])
    def test_few_images_of_few_dimensions(self, count: int, dims: int, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NAME, URIS[:count], np.abs(VECTORS[:count, :dims]))
        imgindex.export(tmp_path / "index", "atlas", tmp_path / "out")
        table = pq.read_table(tmp_path / "out/images.parquet")
        assert np.isfinite([table["x"].to_numpy(), table["y"].to_numpy()]).all()
        assert [len(row["ids"]) for row in table["neighbors"].to_pylist()] == [count] * count

    def test_a_sample(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS, shards=2)
        done = imgindex.export(tmp_path / "index", "atlas", tmp_path / "out", images=20, seed=3)
        table = pq.read_table(tmp_path / "out/images.parquet")
        assert done.images == len(table) == 20
        assert {row for each in table["neighbors"].to_pylist() for row in each["ids"]} == set(range(20))
        said = json.loads((tmp_path / "out/export.json").read_text())
        assert (said["images"], said["of"], said["seed"]) == (20, 40, 3)
        with pytest.raises(UsageError, match="--images is 0; expected 1 to 100,000"):
            imgindex.export(tmp_path / "index", "atlas", tmp_path / "out", images=0)

    def test_the_same_generation_gives_the_same_bytes(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS, shards=2)
        for name in ("one", "two"):
            imgindex.export(tmp_path / "index", "atlas", tmp_path / name)
        one, two = ((tmp_path / name / "images.parquet").read_bytes() for name in ("one", "two"))
        assert one == two


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "imgindex.sinks.atlas", raising=False)
    monkeypatch.setitem(sys.modules, "umap", None)
    publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS)
    with pytest.raises(
        MachineError, match=r"--format atlas needs the extra atlas: pip install 'imgindex\[atlas\]'"
    ):
        imgindex.export(tmp_path / "index", "atlas", tmp_path / "out")
