"""A training that was ended goes on with the same command as if nothing had happened, and with no other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from colored_photos import write_colored, write_small_network

import imgindex
from imgindex.errors import UsageError
from imgindex.models.training.defaults import DEFAULTS
from imgindex.models.training.results import TrainingResult
from imgindex.training.work_folder import WorkFolder


class EndedError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.keras"
    write_small_network(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colored")
    write_colored(folder, each=10)
    return folder


Train = Callable[..., TrainingResult]


@pytest.fixture
def train(folder: Path, base: Path) -> Train:
    def call(output: Path, **changes: Any) -> TrainingResult:
        settings = {"method": "init", "base": str(base), "epochs": 3, **changes}
        return imgindex.train(str(settings.pop("directory", folder)), str(output), **settings)

    return call


@pytest.fixture
def end_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has trainings end after so many times that their state was saved."""
    save = WorkFolder.save

    def end(times: int) -> None:
        saved = []

        def saving(work: WorkFolder, state: Any) -> None:
            if len(saved) == times:
                raise EndedError
            save(work, state)
            saved.append(True)

        monkeypatch.setattr(WorkFolder, "save", saving)

    return end


def weights_of(path: Path) -> list[Any]:
    return keras.saving.load_model(path).get_weights()


@pytest.mark.parametrize(
    ("method", "times"),
    [
        ("init", 2),
        pytest.param("finetune", 4, marks=pytest.mark.long),
        pytest.param("finetune", 6, marks=pytest.mark.long),
    ],
)
def test_a_training_that_was_ended_gives_what_it_would_have_given(
    train: Train, end_after: Callable[[int], None], tmp_path: Path, monkeypatch: Any, method: str, times: int
) -> None:
    monkeypatch.setattr(
        "imgindex.models.training.methods.DEFAULTS",
        {name: defaults.__class__("none", 1e-3, 4, 9) for name, defaults in DEFAULTS.items()},
    )
    whole = train(tmp_path / "whole.keras", method=method, augment="light")
    end_after(times)
    with pytest.raises(EndedError):
        train(tmp_path / "ended.keras", method=method, augment="light")
    assert not (tmp_path / "ended.keras").exists()
    end_after(1000)
    resumed = train(tmp_path / "ended.keras", method=method, augment="light")
    assert [epoch.number for epoch in resumed.epochs] == [epoch.number for epoch in whole.epochs]
    for one, other in zip(resumed.epochs, whole.epochs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)
    assert resumed.best_epoch == whole.best_epoch
    assert resumed.confusion == whole.confusion
    assert resumed.trainable_parameters == whole.trainable_parameters
    for one, other in zip(
        weights_of(tmp_path / "ended.keras"), weights_of(tmp_path / "whole.keras"), strict=True
    ):
        assert np.allclose(one, other, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ended.card.json", "ended.html", "ended.keras", "whole.card.json", "whole.html", "whole.keras",
    ]  # fmt: skip


def test_a_training_that_is_finished_gives_its_result_again(train: Train, tmp_path: Path) -> None:
    output = tmp_path / "model.keras"
    first = train(output, epochs=1)
    written = output.stat().st_mtime_ns
    assert train(output, epochs=1) == first
    assert output.stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="is finished, with --epochs 1 and not 2: choose another --output"):
        train(output, epochs=2)


def test_a_model_whose_card_was_not_written_is_finished_by_the_same_call(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any) -> None:
        raise EndedError

    output = tmp_path / "model.keras"
    with monkeypatch.context() as patch:
        patch.setattr("imgindex.training.run.write_card", end)
        with pytest.raises(EndedError):
            train(output, method="transfer", epochs=1)
    assert output.exists()
    result = train(output, method="transfer", epochs=1)
    assert result.trainable_parameters == 16 * 3 + 3
    assert TrainingResult.from_json(json.loads(output.with_suffix(".card.json").read_text())) == result


def test_a_training_under_way_goes_on_with_the_same_settings_alone(
    train: Train, end_after: Callable[[int], None], tmp_path: Path
) -> None:
    output = tmp_path / "model.keras"
    end_after(1)
    with pytest.raises(EndedError):
        train(output)
    with pytest.raises(
        UsageError,
        match="holds a training that is not finished, with --seed 0 and not 1: go on with the same",
    ):
        train(output, seed=1)


def test_a_training_under_way_goes_on_with_the_same_images_alone(
    train: Train, end_after: Callable[[int], None], tmp_path: Path
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "model.keras"
    write_colored(photos, each=10)
    end_after(1)
    with pytest.raises(EndedError):
        train(output, directory=photos)
    (photos / "red" / "000.png").unlink()
    with pytest.raises(UsageError, match="not finished, with other images: go on with the same"):
        train(output, directory=photos)


def test_a_training_under_way_goes_on_with_the_same_base_alone(
    train: Train, end_after: Callable[[int], None], tmp_path: Path
) -> None:
    own, output = tmp_path / "own.keras", tmp_path / "model.keras"
    write_small_network(own)
    end_after(1)
    with pytest.raises(EndedError):
        train(output, base=str(own))
    write_small_network(own, seed=1)
    with pytest.raises(UsageError, match="with another file of the base or its weights"):
        train(output, base=str(own))


def test_what_imgindex_did_not_write_is_neither_replaced_nor_deleted(train: Train, tmp_path: Path) -> None:
    output = tmp_path / "model.keras"
    output.write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists, and no card says how it was trained"):
        train(output)
    assert output.read_bytes() == b"precious"
    other = tmp_path / "other.keras"
    work = tmp_path / "other.keras.training"
    work.mkdir()
    (work / "notes.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"holds notes.txt and no training"):
        train(other)
    assert [path.name for path in work.iterdir() if path.name != ".lock"] == ["notes.txt"]


def test_files_of_others_in_the_folder_of_a_training_stay(
    train: Train, end_after: Callable[[int], None], tmp_path: Path
) -> None:
    output = tmp_path / "model.keras"
    end_after(1)
    with pytest.raises(EndedError):
        train(output)
    (tmp_path / "model.keras.training" / "notes.txt").write_text("precious")
    end_after(1000)
    train(output)
    assert [path.name for path in (tmp_path / "model.keras.training").iterdir()] == ["notes.txt"]


def test_a_damaged_state_is_refused(train: Train, end_after: Callable[[int], None], tmp_path: Path) -> None:
    output = tmp_path / "model.keras"
    end_after(1)
    with pytest.raises(EndedError):
        train(output)
    state = tmp_path / "model.keras.training" / "state.npz"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(
        UsageError, match=r"state.npz is damaged: delete .*model.keras.training to begin anew"
    ):
        train(output)


def test_the_same_seed_gives_the_same_split_and_another_seed_another_one(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgindex.training import run

    found = []
    split = run.split

    def recorded(images: Any, seed: int) -> Any:
        parts = split(images, seed)
        found.append({part: [image.uri for image in images] for part, images in parts.items()})
        return parts

    monkeypatch.setattr(run, "split", recorded)
    for name, method, seed in (("a", "transfer", 0), ("b", "init", 0), ("c", "transfer", 1)):
        train(tmp_path / f"{name}.keras", method=method, seed=seed, epochs=1)
    assert found[0] == found[1] != found[2]
