"""The export `projector`: TensorBoard's own loader reads it, and shows each image beside its vector."""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from outputs import publish_features
from PIL import Image
from vector_outputs import publish_vectors

import imgindex
from imgindex.errors import UsageError

NAME = "20260101T000000Z-00000001"
VECTORS = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
URIS = [f"{'ab'[n % 2]}/{n:02}.jpg" for n in range(40)]

Get = Callable[..., Any]


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Get]:
    """TensorBoard's projector of a `--logdir`, which answers requests as it does a browser."""
    # TensorBoard would load TensorFlow, if it is there, to read checkpoints.
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("notf"))
    plugin = pytest.importorskip("tensorboard.plugins.projector.projector_plugin")
    from werkzeug.test import Client

    def opened(folder: Path) -> Get:
        runs = SimpleNamespace(list_runs=lambda *_, **__: [])
        apps = plugin.ProjectorPlugin(
            SimpleNamespace(data_provider=runs, logdir=str(folder))
        ).get_plugin_apps()

        def get(route: str, **arguments: str) -> Any:
            answer = Client(apps[route]).get(route, query_string={"run": ".", **arguments})
            assert answer.status_code == 200, answer.data
            return answer

        return get

    return opened


def test_tensorboard_shows_every_vector_with_its_uri_and_label(
    tensorboard: Callable[[Path], Get], tmp_path: Path
) -> None:
    publish_vectors(str(tmp_path / "index"), NAME, [*URIS[:-1], "top.jpg"], VECTORS, shards=3)
    assert imgindex.export(tmp_path / "index", "projector", tmp_path / "out").images == 40
    get = tensorboard(tmp_path / "out")
    assert get("/runs").json == ["."]
    (embedding,) = get("/info").json["embeddings"]
    assert embedding["tensorShape"] == [40, 6]
    tensor = np.frombuffer(get("/tensor", name="imgindex").data, np.float32).reshape(40, 6)
    rows = [line.split("\t") for line in get("/metadata", name="imgindex").text.split("\n")]
    assert rows[0] == ["uri", "label"]
    assert rows[-1] == [""]
    for vector, (uri, label) in zip(tensor, rows[1:-1], strict=True):
        number = 39 if uri == "top.jpg" else URIS.index(uri)
        assert label == ("" if uri == "top.jpg" else "ab"[number % 2])
        assert np.array_equal(vector, VECTORS[number])


def test_the_sprite_has_a_picture_of_each_image_and_gray_where_there_is_none(
    tensorboard: Callable[[Path], Get], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    digests = []
    for n, uri in enumerate(URIS[:10]):
        data = io.BytesIO()
        Image.new("RGB", (60, 30) if n % 2 else (30, 60), (20 * n, 0, 255 - 20 * n)).save(data, "PNG")
        (photos / uri).parent.mkdir(parents=True, exist_ok=True)
        (photos / uri).write_bytes(data.getvalue())
        digests.append(hashlib.sha256(data.getvalue()).hexdigest())
    (photos / URIS[3]).unlink()
    (photos / URIS[4]).write_bytes((photos / URIS[5]).read_bytes())  # another image by now
    (photos / URIS[5]).write_bytes(b"no image")
    digests[5] = hashlib.sha256(b"no image").hexdigest()
    publish_features(tmp_path / "index", np.abs(VECTORS[:10]), URIS[:10], digests, root=str(photos))
    imgindex.export(tmp_path / "index", "projector", tmp_path / "out")
    get = tensorboard(tmp_path / "out")
    (embedding,) = get("/info").json["embeddings"]
    width, height = embedding["sprite"]["singleImageDim"]
    answer = get("/sprite_image", name="imgindex")
    assert answer.mimetype == "image/png"
    sprite = np.asarray(Image.open(io.BytesIO(answer.data)))
    assert sprite.shape == (4 * height, 4 * width, 3)  # the smallest square of ten cells
    uris = [line.split("\t")[0] for line in get("/metadata", name="imgindex").text.split("\n")[1:-1]]
    for place in range(16):
        cell = sprite[place // 4 * height :, place % 4 * width :][:height, :width]
        n = URIS.index(uris[place]) if place < 10 else 3
        expected = (128, 128, 128) if n in (3, 4, 5) else (20 * n, 0, 255 - 20 * n)
        assert np.abs(cell[height // 2, width // 2].astype(int) - expected).max() <= 2


def test_names_with_tabs_and_line_breaks_stay_on_their_line(
    tensorboard: Callable[[Path], Get], tmp_path: Path
) -> None:
    uris = ["a\tb/c\nd.jpg", "e\\t\r.jpg", "\u2028/\x85\x0b.jpg", "caf\U0010dce9.jpg"]
    publish_vectors(str(tmp_path / "index"), NAME, uris, VECTORS[:4])
    imgindex.export(tmp_path / "index", "projector", tmp_path / "out")
    get = tensorboard(tmp_path / "out")
    lines = get("/metadata", name="imgindex").data.decode().split("\n")
    assert lines[-1] == ""
    assert {tuple(line.split("\t")) for line in lines[1:-1]} == {
        ("a\\tb/c\\nd.jpg", "a\\tb"),
        ("e\\\\t\\r.jpg", ""),
        ("\u2028/\x85\x0b.jpg", "\u2028"),
        ("caf\U0010dce9.jpg", ""),
    }


def test_the_config_of_the_page_by_itself_says_the_same(
    tensorboard: Callable[[Path], Get], tmp_path: Path
) -> None:
    publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS)
    imgindex.export(tmp_path / "index", "projector", tmp_path / "out")
    config = json.loads((tmp_path / "out/projector_config.json").read_text())
    served = tensorboard(tmp_path / "out")("/info").json
    assert config["embeddings"] == served["embeddings"]


class TestSample:
    def test_a_seed_draws_so_many_images(self, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS, shards=2)

        def exported(**options: int) -> tuple[bytes, list[str]]:
            done = imgindex.export(tmp_path / "index", "projector", tmp_path / "out", images=15, **options)
            assert done.images == 15
            lines = (tmp_path / "out/metadata.tsv").read_text().splitlines()[1:]
            return (tmp_path / "out/tensors.tsv").read_bytes(), [line.split("\t")[0] for line in lines]

        tensors, uris = exported()
        assert exported() == exported(seed=0) == (tensors, uris)
        assert exported(seed=1)[1] != uris
        assert len(set(uris)) == 15
        _, uris = exported(seed=1)
        rows = np.loadtxt(tmp_path / "out/tensors.tsv", np.float32)
        assert np.array_equal(rows, VECTORS[[URIS.index(uri) for uri in uris]])
        said = json.loads((tmp_path / "out/export.json").read_text())
        assert (said["images"], said["of"], said["seed"]) == (15, 40, 1)

    @pytest.mark.parametrize("images", [0, -1, 100_001])
    def test_a_number_that_the_projector_does_not_take(self, images: int, tmp_path: Path) -> None:
        publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS)
        with pytest.raises(UsageError, match=f"--images is {images}; expected 1 to 100,000"):
            imgindex.export(tmp_path / "index", "projector", tmp_path / "out", images=images)
        with pytest.raises(UsageError, match="--seed is -1; expected a number that is not negative"):
            imgindex.export(tmp_path / "index", "projector", tmp_path / "out", seed=-1)

    def test_the_largest_sprite_that_browsers_take(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("imgindex.sinks.projector._MOST_PIXELS", 100)
        publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS)
        imgindex.export(tmp_path / "index", "projector", tmp_path / "out")
        with Image.open(tmp_path / "out/sprite.png") as sprite:
            assert sprite.size == (7 * 14, 7 * 14)


def test_the_same_generation_gives_the_same_bytes(tmp_path: Path) -> None:
    publish_vectors(str(tmp_path / "index"), NAME, URIS, VECTORS, shards=2)
    for name in ("one", "two"):
        imgindex.export(tmp_path / "index", "projector", tmp_path / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
