"""An index of a KerasHub preset: built, refreshed, searched, and searched after the preset has moved."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_presets import KINDS, save_preset
from PIL import Image

from imgindex import Index
from imgindex.cli import main
from imgindex.errors import OutputError, UsageError
from imgindex.generations.layout import Output, read_manifest

PHOTOS = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home that holds photos, a preset, and an index that was built with it by a relative path."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    random = np.random.default_rng(1)
    for number in range(PHOTOS):
        noise = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        noise.resize((80, 60), Image.Resampling.BICUBIC).save(home / "photos" / f"{number}.png")
    save_preset(home / "presets" / "clip", KINDS["CLIP"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert build("--set", "backbone.pooling=cls") == 0
    return home


def build(*arguments: str) -> int:
    settings = ["backbone.name=presets/clip", "pca.dims=8", "publish.min_recall=0", "report.enabled=false"]
    set_each = [argument for setting in settings for argument in ("--set", setting)]
    return main(["build", "--input", "photos", "--output", "index", *set_each, *arguments])


def finds_itself(index: Index, home: Path) -> None:
    [result] = index.search(str(home / "photos" / "3.png"), 1)
    assert result.neighbors[0].uri == "3.png"


def test_records_what_the_preset_says(home):
    manifest = read_manifest(Output(str(home / "index")))
    assert manifest.spec.backbone == "keras_hub.CLIPVisionEncoder"
    assert (manifest.spec.pooling, manifest.spec.interpolation) == ("cls", "bicubic")
    assert manifest.spec.image_size == (64, 64)
    assert manifest.settings.backbone.name == str(home / "presets" / "clip")
    assert manifest.ledger.indexed == PHOTOS


def test_finds_its_images_from_anywhere(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finds_itself(Index.open(home / "index"), home)


def test_a_refresh_embeds_nothing_anew(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    before = (home / "index" / "CURRENT").read_text()
    assert build("--set", "backbone.pooling=cls") == 0
    assert (home / "index" / "CURRENT").read_text() == before


def test_finds_a_preset_that_has_moved(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path / "home")
    preset = tmp_path / "home" / "presets" / "clip"
    shutil.move(home / "presets", home / "away")
    try:
        finds_itself(Index.open(tmp_path / "home" / "index", model=str(preset)), home)
        shutil.move(preset, tmp_path / "home" / "clip")
        finds_itself(Index.open(tmp_path / "home" / "index"), home)
        with pytest.raises(UsageError, match="is no folder of a preset, and the index was built with /"):
            finds_itself(Index.open(tmp_path / "home" / "index", model=str(tmp_path)), home)
        with pytest.raises(OutputError, match=r"needs the folder /.*/presets/clip, which is not there"):
            finds_itself(Index.open(home / "index"), home)
    finally:
        shutil.move(home / "away", home / "presets")


def test_a_preset_that_has_changed_does_not_fit(home, tmp_path):
    save_preset(tmp_path / "other", KINDS["CLIP"], offset=[0.0, 0.0, 0.0])
    with pytest.raises(OutputError, match="queries would not fit the index: the preprocessing and layers of"):
        finds_itself(Index.open(home / "index", model=str(tmp_path / "other")), home)
