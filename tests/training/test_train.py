"""The four methods on a folder that a small network learns in seconds, and what they leave behind."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from colored_photos import COLORS, SIZE, write_colored, write_small_network
from PIL import Image

import imgindex
from imgindex.models.backbones import load_backbone
from imgindex.models.engines.loading import create_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.training.results import METHODS, TrainingResult

EPOCHS = {"scratch": 12, "transfer": 30, "finetune": 2, "init": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colored")
    write_colored(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.keras"
    write_small_network(path)
    return path


@pytest.fixture(scope="module", params=METHODS)
def trained(
    request: pytest.FixtureRequest, folder: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingResult, Path, Any]:
    """The result of each method, its model's path, and the network as it was trained."""
    from imgindex.training import run

    output = tmp_path_factory.mktemp("models") / f"{request.param}.keras"
    networks = []
    build = run.build_network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_network", lambda *a, **b: networks.append(build(*a, **b)) or networks[0])
        result = imgindex.train(
            str(folder), str(output), method=request.param, base=str(base), epochs=EPOCHS[request.param]
        )
    return result, output, networks[0]


def layers_of(path: Path) -> list[Any]:
    """The layers with weights of a saved model, in order."""
    model = keras.saving.load_model(path)
    while any(hasattr(layer, "layers") for layer in model.layers):
        [model] = [layer for layer in model.layers if hasattr(layer, "layers")]
    return [layer for layer in model.layers if layer.weights]


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_a_network_learns_to_tell_the_classes(trained: tuple[TrainingResult, Path, Any]) -> None:
    result, _, _ = trained
    assert result.classes == tuple(sorted(COLORS))
    assert result.accuracy["test"] > 0.6
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_the_accuracy_is_that_of_the_confusion_matrix(trained: tuple[TrainingResult, Path, Any]) -> None:
    result, _, _ = trained
    confusion = np.array(result.confusion)
    assert result.accuracy["test"] == np.trace(confusion) / confusion.sum()
    assert dict(zip(result.classes, confusion.sum(axis=1), strict=True)) == result.split["test"]


def test_the_best_epoch_has_the_lowest_validation_loss_of_its_stage(
    trained: tuple[TrainingResult, Path, Any],
) -> None:
    result, _, _ = trained
    of_stage = result.epochs[-EPOCHS[result.method] :]
    assert result.best_epoch == min(of_stage, key=lambda epoch: epoch.validation_loss).number
    assert [epoch.number for epoch in result.epochs] == list(range(1, len(result.epochs) + 1))


def test_each_method_trains_the_layers_that_it_says(
    trained: tuple[TrainingResult, Path, Any], base: Path
) -> None:
    result, output, _ = trained
    before, after = layers_of(base), layers_of(output)
    kinds = [type(layer).__name__ for layer in after]
    assert kinds == ["Conv2D", "BatchNormalization", "Conv2D", "BatchNormalization"]
    changed = [not same(a, b) for a, b in zip(before, after, strict=True)]
    assert (
        changed
        == {
            "scratch": [True] * 4,
            "transfer": [False] * 4,
            "finetune": [False, False, True, False],
            "init": [True] * 4,
        }[result.method]
    )


def test_the_card_says_what_the_call_returned(trained: tuple[TrainingResult, Path, Any]) -> None:
    result, output, _ = trained
    card = json.loads(output.with_suffix(".card.json").read_text())
    assert TrainingResult.from_json(card) == result
    assert card["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert set(card["versions"]) == {"imgindex", "keras", "tensorflow"}


def test_nothing_but_the_model_with_its_card_and_its_page_stays(
    trained: tuple[TrainingResult, Path, Any],
) -> None:
    _, output, _ = trained
    assert sorted(path.name for path in output.parent.iterdir()) == [
        f"{output.stem}.card.json", f"{output.stem}.html", output.name,
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
def test_a_build_gives_the_features_of_the_network_as_it_was_trained(
    trained: tuple[TrainingResult, Path, Any], engine: str
) -> None:
    _, output, network = trained
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    choice = EngineChoice(
        name=str(output), weights="imagenet", pooling="avg", image_size=None, engine=engine,
        precision="float32", batch_size=4,
    )  # fmt: skip
    given = create_engine(choice, 1).embed(pixels)
    own = network.features.predict(pixels, verbose=0)
    cosines = np.sum(given * own, axis=1) / np.linalg.norm(given, axis=1) / np.linalg.norm(own, axis=1)
    assert cosines.min() > 0.9999


def test_the_model_takes_raw_pixels_and_gives_a_feature_map(
    trained: tuple[TrainingResult, Path, Any],
) -> None:
    _, output, _ = trained
    model = keras.saving.load_model(output)
    assert model.input_shape == (None, SIZE, SIZE, 3)
    assert model.output_shape == (None, 7, 7, 16)
    assert load_backbone(str(output), "imagenet", "avg", None).image_size == (SIZE, SIZE)


def test_transfer_with_augmentation_leaves_the_base_as_it_is(
    folder: Path, base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.keras"
    result = imgindex.train(
        str(folder), str(output), method="transfer", base=str(base), epochs=2, augment="strong"
    )
    assert all(same(a, b) for a, b in zip(layers_of(base), layers_of(output), strict=True))
    assert result.trainable_parameters == 16 * 3 + 3


def test_the_split_of_folders_for_parts_is_kept(folder: Path, base: Path, tmp_path: Path) -> None:
    for place, file in enumerate(sorted(folder.rglob("*.png"))):
        part = ("test", "val", "train", "train")[place % 4]
        target = tmp_path / "photos" / part / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    result = imgindex.train(
        str(tmp_path / "photos"), str(tmp_path / "model.keras"), method="transfer", base=str(base), epochs=1
    )
    assert result.classes == tuple(sorted(COLORS))
    assert {part: sum(counts.values()) for part, counts in result.split.items()} == {
        "train": 30, "validation": 15, "test": 15,
    }  # fmt: skip


def test_files_that_cannot_be_used_are_left_out_and_on_the_card(
    folder: Path, base: Path, tmp_path: Path
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "model.keras"
    shutil.copytree(folder, photos)
    (photos / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    shutil.copy(photos / "red" / "000.png", photos / "red" / "copy.png")
    shutil.copy(photos / "red" / "001.png", photos / "blue" / "mistaken.png")
    Image.new("RGB", (8, 8)).save(photos / "at the top.png")
    result = imgindex.train(str(photos), str(output), method="transfer", base=str(base), epochs=1)
    assert sum(counts["red"] for counts in result.split.values()) == 19
    assert sum(counts["blue"] for counts in result.split.values()) == 20
    left_out = json.loads(output.with_suffix(".card.json").read_text())["left_out"]
    assert left_out["copies"] == 1
    assert left_out["contradictory"] == [["blue/mistaken.png", "red/001.png"]]
    assert [(each["uri"], each["stage"]) for each in left_out["failures"]] == [("red/broken.png", "decode")]


def test_rare_classes_weigh_as_much_as_frequent_ones(base: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_colored(photos, each=30)
    for file in sorted((photos / "red").iterdir())[4:]:
        file.unlink()
    result = imgindex.train(
        str(photos), str(tmp_path / "model.keras"), method="scratch", base=str(base), epochs=12
    )
    assert result.confusion[2][2] == 1
