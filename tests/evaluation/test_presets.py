"""`evaluate --presets`: what other settings of the features gain on the index's own images."""

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeFactory, registered
from PIL import Image, ImageColor

import imgindex
from imgindex.cli import main
from imgindex.commands.arguments import parser
from imgindex.config import load_config
from imgindex.errors import OutputError, UsageError
from imgindex.evaluation.preset_trials import MOST_IMAGES, settings_of
from imgindex.models.applications import APPLICATIONS
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.preprocess import decode
from imgindex.models.resizing import Resizing
from imgindex.models.spec import Spec
from imgindex.presets import FEATURE_PRESETS

LABELS = ("blue", "green", "olive", "red")
EACH = 28
SIDE = 16


class Colors:
    """Mean colors of the lower and upper half: with GeM as they are, else beside much noise."""

    name = "colors"
    precision = "float32"
    streams = 2
    feature_dim = 6

    def __init__(self, choice: EngineChoice) -> None:
        if choice.image_size == 288:
            raise UsageError("colors takes no image of 288 pixels")
        side = choice.image_size or SIDE
        resizing = Resizing.filled((side, side), choice.resize, APPLICATIONS[choice.name].fill)
        self.batch_size, self.image_size, self.pooling = choice.batch_size, resizing.size, choice.pooling
        self.spec = Spec(
            "colors", "", resizing.size, choice.pooling, "", "", "", resizing.mode, fill=resizing.fill
        )

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.shape == (self.batch_size, *self.image_size, 3)
        return features_of(pixels, self.pooling)


def features_of(pixels: np.ndarray, pooling: str) -> np.ndarray:
    halves = (
        pixels.reshape(len(pixels), 2, -1, 3).mean(axis=2, dtype=np.float32).reshape(len(pixels), 6) / 255
    )
    if pooling == "gem":
        return halves
    sums = pixels.astype(np.int64).sum(axis=(1, 2, 3)).tolist()
    return halves + 2 * np.float32([np.random.default_rng(each).random(6) for each in sums])


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    with registered("colors", FakeFactory(lambda choice, threads: Colors(choice))):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(EACH * len(LABELS)):
        label = LABELS[number % len(LABELS)]
        (folder / label).mkdir(exist_ok=True)
        shape = (20 + number % 7, 30 - number % 11, 3)
        color = np.array(ImageColor.getrgb(label)) / 2
        pixels = color + generator.integers(0, 120, shape)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def index(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("output")
    config = load_config(
        None,
        [
            *("backbone.name=MobileNetV2", "backbone.weights=none", "engine.name=colors"),
            *("engine.precision=float32", "pca.dims=4", "index.trees=3", "publish.min_recall=0"),
            "report.enabled=false",
        ],
    )
    imgindex.build(replace(config, input=str(photos), output=str(output)))
    return output


@pytest.fixture(scope="module")
def found(index: Path) -> imgindex.Evaluation:
    return imgindex.evaluate(index, k=3, dims=[2], presets=True)


def test_there_is_a_row_for_the_index_and_for_each_preset(found: imgindex.Evaluation) -> None:
    rows = {row.preset: row for row in found.presets}
    assert [*rows] == ["now", *FEATURE_PRESETS]
    assert (rows["now"].pooling, rows["now"].resize, rows["now"].image_size) == (
        "avg",
        "stretch",
        (SIDE, SIDE),
    )
    assert (rows["recommended"].pooling, rows["recommended"].resize) == ("gem", "pad")
    assert rows["fast"].image_size == (160, 160)
    assert rows["accurate"].note == "colors takes no image of 288 pixels"
    assert rows["accurate"].p_at_k is None
    # The same settings are not embedded twice.
    assert replace(rows["keras"], preset="now") == rows["now"]
    for row in (rows["now"], rows["recommended"]):
        assert row.images == row.queries == EACH * len(LABELS)
        assert row.images_per_second
        assert row.images_per_second > 0


@pytest.mark.parametrize("preset", ["keras", "recommended"])
def test_figures_are_those_of_exact_search(found: imgindex.Evaluation, photos: Path, preset: str) -> None:
    (row,) = (row for row in found.presets if row.preset == preset)
    files = sorted(photos.rglob("*.png"))
    resizing = Resizing.filled((SIDE, SIDE), row.resize, APPLICATIONS["MobileNetV2"].fill)
    pixels = np.stack([decode(file.read_bytes(), resizing).pixels for file in files])
    rows = features_of(pixels, row.pooling).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    nearest = np.argsort(-cosines, axis=1)[:, :3]
    labels = np.array([file.parent.name for file in files])
    expected = (labels[nearest] == labels[:, np.newaxis]).mean()
    assert row.p_at_k == pytest.approx(expected, abs=0.005)  # features are rounded to float16
    assert row.interval
    assert row.interval[0] <= row.p_at_k <= row.interval[1]


def test_the_advice_names_what_gains_and_how_to_build_it(found: imgindex.Evaluation, index: Path) -> None:
    gains = {row.preset: row.gain for row in found.presets}
    assert gains["now"] == gains["keras"] == 0
    assert gains["recommended"] > 0.1
    advised = [advice for advice in found.advice if advice.setting == "backbone"]
    assert advised
    assert {advice.value for advice in advised} <= {"recommended", "fast"}
    for advice in advised:
        assert "every image is embedded again" in advice.text
        assert "95 % interval +" in advice.text
        known = parser().parse_args(shlex.split(advice.command)[1:])
        settings = load_config(None, known.set).backbone
        assert {key: getattr(settings, key) for key in settings_of(advice.value)} == settings_of(advice.value)
        assert (settings.name, settings.weights, known.output) == ("MobileNetV2", "none", str(index))


def test_text_json_and_page_have_the_rows(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / name) for name in ("e.json", "e.html")]
    main(
        [
            "evaluate",
            str(index),
            "--dims",
            "2",
            "--presets",
            "recommended",
            "--json",
            files[0],
            "--html",
            files[1],
        ]
    )
    text = capsys.readouterr().out
    assert "Presets: the backbone of the index" in text
    (line,) = (line for line in text.splitlines() if line.strip().startswith("recommended  "))
    assert line.split()[1:5] == ["gem", "pad", "16x16", "no"]
    written = json.loads(Path(files[0]).read_text())
    assert [row["preset"] for row in written["presets"]] == ["now", "recommended"]
    assert ">recommended</" in Path(files[1]).read_text()


def test_a_sample_is_as_large_as_is_asked_for(index: Path) -> None:
    found = imgindex.evaluate(index, dims=[2], presets=["recommended"], sample=30)
    assert [row.images for row in found.presets] == [30, 30]
    assert [advice for advice in found.advice if advice.setting == "backbone"] == []  # too few queries
    assert MOST_IMAGES >= 1000


def test_unknown_presets_are_refused(index: Path) -> None:
    with pytest.raises(
        UsageError, match="'best'; expected some of fast, keras, recommended, accurate, or all"
    ):
        imgindex.evaluate(index, presets=["best"])


def test_images_that_are_gone_are_left_out(index: Path, photos: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    shutil.move(str(photos / "olive"), away)
    try:
        found = imgindex.evaluate(index, dims=[2], presets=["recommended"])
        assert [row.images for row in found.presets] == [EACH * 3] * 2
        shutil.move(str(photos), tmp_path / "all")
        with pytest.raises(OutputError, match=r"none of the 112 images .* bring the images back"):
            imgindex.evaluate(index, dims=[2], presets=["recommended"])
        shutil.move(tmp_path / "all", photos)
    finally:
        shutil.move(away, photos / "olive")
