"""Presets of KerasHub as the base of a training, and every pooling of what is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colored_photos import COLORS, write_colored, write_small_network
from hub_presets import KINDS, save_preset

import imgindex
from imgindex.errors import UsageError
from imgindex.models.engines.loading import create_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.resizing import Resizing


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("colored")
    write_colored(folder, each=10)
    return str(folder)


def trained(
    photos: str, base: str, output: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[imgindex.TrainingResult, Any]:
    """The result of a training, and the network as it was trained."""
    from imgindex.training import run

    networks = []
    build = run.build_network
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_network", lambda *a, **b: networks.append(build(*a, **b)) or networks[0])
        result = imgindex.train(photos, str(output), base=base, epochs=1, **options)
    return result, networks[0]


def assert_a_build_gives_its_features(
    result: imgindex.TrainingResult, network: Any, output: Path, engine: str
) -> None:
    side = result.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    choice = EngineChoice(
        name=str(output), weights="imagenet", pooling=result.backbone_pooling, image_size=None, engine=engine,
        precision="float32", batch_size=4,
    )  # fmt: skip
    built = create_engine(choice, 1)
    given, own = built.embed(pixels), network.features.predict(pixels, verbose=0)
    cosines = np.sum(given * own, axis=1) / np.linalg.norm(given, axis=1) / np.linalg.norm(own, axis=1)
    assert cosines.min() > 0.9999
    # The images of the training were resized like those of the build.
    assert built.spec.resizing == Resizing((side, side), result.resize)


@pytest.mark.parametrize(
    ("kind", "method", "pooling"),
    [
        pytest.param("ResNet50", "init", "gem", marks=pytest.mark.long),
        pytest.param("ViT", "finetune", "cls", marks=pytest.mark.long),
        ("DINOv2", "transfer", "avg"),
        pytest.param("ViT", "scratch", "cls", marks=pytest.mark.long),
    ],
)
def test_a_preset_is_trained_and_a_build_takes_the_model(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, method: str, pooling: str
) -> None:
    preset = save_preset(tmp_path / "preset", KINDS[kind])
    output = tmp_path / "model.keras"
    result, network = trained(photos, preset, output, monkeypatch, method=method, pooling=pooling)
    assert result.classes == tuple(sorted(COLORS))
    assert (result.base, result.image_size, result.pooling) == (preset, KINDS[kind].side, pooling)
    assert_a_build_gives_its_features(result, network, output, "tensorflow")


def test_the_generalized_mean_pools_what_is_trained(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, output = tmp_path / "base.keras", tmp_path / "model.keras"
    write_small_network(base)
    result, network = trained(photos, str(base), output, monkeypatch, method="init", pooling="gem")
    for engine in ("tensorflow", "openvino"):
        assert_a_build_gives_its_features(result, network, output, engine)


def test_a_class_token_is_refused_where_the_base_has_none(photos: str, tmp_path: Path) -> None:
    output = str(tmp_path / "model.keras")
    with pytest.raises(UsageError, match="--pooling is 'cls', but imgindex knows no class token of ResNet50"):
        imgindex.train(photos, output, method="scratch", base="ResNet50", pooling="cls")
    preset = save_preset(tmp_path / "preset", KINDS["ResNet18"])
    with pytest.raises(UsageError, match=r"--pooling is 'cls', but the model of .* has no class token"):
        imgindex.train(photos, output, method="init", base=preset, pooling="cls")


def test_a_training_under_way_goes_on_with_the_same_preset_alone(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, output = save_preset(tmp_path / "preset", KINDS["ResNet18"]), str(tmp_path / "model.keras")
    with monkeypatch.context() as patch:
        patch.setattr("imgindex.training.run.judge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            imgindex.train(photos, output, method="transfer", base=preset, epochs=1)
    converter = tmp_path / "preset" / "image_converter.json"
    converter.write_text(converter.read_text() + "\n")
    with pytest.raises(UsageError, match="with another file of the base or its weights"):
        imgindex.train(photos, output, method="transfer", base=preset, epochs=1)
