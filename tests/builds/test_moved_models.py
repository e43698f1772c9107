"""Paths are settled when a build starts, and an index finds its model again from anywhere, or when told."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgindex import Index, load_config
from imgindex.cli import main
from imgindex.errors import OutputError, UsageError
from imgindex.generations import manifest
from imgindex.generations.layout import Output, read_manifest
from imgindex.io import filesystem
from imgindex.models.frameworks import settled_keras

pytestmark = pytest.mark.long

QUERY = "photos/3.png"
PHOTOS = 12


def save_model(path: Path, seed: int) -> None:
    """Saves a small model, whose weights depend on `seed`."""
    with settled_keras() as keras:
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(16, 5, strides=3, activation="relu")]
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.Sequential([keras.Input((32, 32, 3)), *layers]).save(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A home that holds photos, a model, and an index that was built with it by relative paths."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    for number in range(PHOTOS):
        image = Image.effect_noise((40, 40), 10 + 8 * number).convert("RGB")
        image.save(home / "photos" / f"{number}.png")
    save_model(home / "models" / "m.keras", 1)
    settings = [
        "backbone.name=models/m.keras",
        "pca.dims=8",
        "engine.precision=float32",
        "publish.min_recall=0",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        arguments = [argument for setting in settings for argument in ("--set", setting)]
        assert main(["build", "--input", "photos", "--output", "work/index", *arguments]) == 0
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that may be changed, in another place than it was built in; nothing is left there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(built, tmp_path / "home")
    at = tmp_path / "elsewhere"
    at.mkdir()
    monkeypatch.chdir(at)
    return tmp_path / "home"


def recorded_as(home: Path, path: str) -> None:
    """Makes the index of `home` one whose manifest has `path` for its model, as older builds wrote it."""
    output = Output(str(home / "work" / "index"))
    recorded = read_manifest(output)
    config = {**recorded.config, "backbone": {**recorded.config["backbone"], "name": path}}
    filesystem.write_bytes(
        output.manifest(recorded.generation), manifest.encode(replace(recorded, config=config))
    )


def finds_itself(home: Path, **options) -> None:
    index = Index.open(home / "work" / "index", **options)
    [result] = index.search(str(home / QUERY), 1)
    assert result.neighbors[0].uri == QUERY.removeprefix("photos/")


def test_a_relative_model_is_searched_from_any_directory(built: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(built / "cache"))
    monkeypatch.chdir(tmp_path)
    recorded = Index.open(built / "work" / "index").manifest["config"]["backbone"]["name"]
    assert recorded == str(built / "models" / "m.keras")
    finds_itself(built)


@pytest.mark.parametrize("place", ["work/index/m.keras", "work/m.keras", "../elsewhere/m.keras"])
def test_a_model_that_has_moved_is_found_in_known_places(place: str, home: Path) -> None:
    recorded_as(home, "/gone/m.keras")
    shutil.copy(home / "models" / "m.keras", home / place)
    finds_itself(home)


def test_a_relative_path_of_an_older_manifest_leads_from_beside_the_index(home: Path) -> None:
    recorded_as(home, "models/m.keras")
    (home / "models").rename(home / "work" / "models")
    finds_itself(home)


def test_another_model_of_that_name_is_passed_over(home: Path) -> None:
    recorded_as(home, "/gone/m.keras")
    save_model(home / "work" / "index" / "m.keras", 2)
    shutil.copy(home / "models" / "m.keras", home / "work" / "m.keras")
    finds_itself(home)
    (home / "work" / "m.keras").unlink()
    with pytest.raises(OutputError, match=r"the weights of .*index/m\.keras .* name it with --model FILE"):
        finds_itself(home)


def test_a_missing_model_names_the_option(home: Path, capsys) -> None:
    recorded_as(home, "/gone/m.keras")
    arguments = ["search", str(home / "work" / "index"), str(home / QUERY), "-k", "1"]
    assert main(arguments) == 3
    said = capsys.readouterr().err
    assert "needs the file /gone/m.keras" in said
    assert "--model FILE (in Python: Index.open(…, model=FILE))" in said
    assert main([*arguments, "--model", str(home / "models" / "m.keras")]) == 0
    assert "3.png" in capsys.readouterr().out


class TestAModelThatIsGiven:
    def test_it_is_used(self, home: Path, monkeypatch) -> None:
        recorded_as(home, "/gone/m.keras")
        moved = (home / "models" / "m.keras").rename(home / "renamed.keras")
        finds_itself(home, model=moved)
        monkeypatch.setenv("HOME", str(home))
        finds_itself(home, model="~/renamed.keras")

    def test_its_digest_is_checked(self, home: Path) -> None:
        save_model(home / "other.keras", 2)
        with pytest.raises(OutputError, match=r"the weights of .*other\.keras .* differ"):
            finds_itself(home, model=home / "other.keras")

    @pytest.mark.parametrize(
        ("model", "message"), [("no.keras", "does not exist"), ("w.h5", r"expected a \.keras file")]
    )
    def test_it_must_be_there_and_of_its_kind(self, model: str, message: str, home: Path) -> None:
        with pytest.raises(UsageError, match=message):
            finds_itself(home, model=model)

    def test_it_stays_after_a_refresh(self, home: Path) -> None:
        recorded_as(home, "/gone/m.keras")
        index = Index.open(home / "work" / "index", model=home / "models" / "m.keras")
        before = index.manifest["generation"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imgindex.search.index.current_name", lambda output: "another")
            patch.setattr("imgindex.generations.layout.read_manifest", lambda output, name: index.facts)
            assert index.refresh()
        assert index.manifest["generation"] == before
        assert index.search(str(home / QUERY), 1)[0].neighbors[0].uri == QUERY.removeprefix("photos/")


def test_vectors_need_no_model(home: Path) -> None:
    recorded_as(home, "/gone/m.keras")
    index = Index.open(home / "work" / "index")
    assert len(index.search_vectors(np.ones((1, 8), np.float32), 3)[0].neighbors) == 3


def test_the_home_directory_may_be_written_as_a_tilde(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    (home / "my.yaml").write_text("backbone: {name: ~/models/m.keras}\npublish: {min_recall: 0}\n")
    config = load_config("~/my.yaml", ["pca.dims=8"])
    assert config.backbone.name == str(home / "models" / "m.keras")
    assert len(Index.open("~/work/index")) == PHOTOS
    assert main(["verify", "~/work/index"]) == 0
    (home / "mine.h5").write_bytes(b"")
    weights = load_config(None, ["backbone.name=MobileNetV2", "backbone.weights=~/mine.h5"]).backbone.weights
    assert weights == str(home / "mine.h5")
