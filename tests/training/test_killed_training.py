"""The command killed in the middle and given again, and given twice: on one thread the same, bit by bit."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from colored_photos import write_colored, write_small_network

from imgindex.training.work_folder import WorkFolder

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("killed")
    write_colored(place / "photos")
    write_small_network(place / "base.keras")
    return place


def start(place: Path, name: str) -> "subprocess.Popen[str]":
    command = [
        *(sys.executable, "-m", "imgindex", "train", str(place / "photos"), "--output", str(place / name)),
        *("--method", "finetune", "--base", str(place / "base.keras"), "--threads", "1", "--epochs", "20"),
        *("--patience", "20"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(place: Path, name: str) -> list[Any]:
    """The weights of the model that the command gives."""
    process = start(place, name)
    _, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return keras.saving.load_model(place / name).get_weights()


@pytest.fixture(scope="module")
def weights(place: Path) -> list[Any]:
    return finish(place, "whole.keras")


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_same_command_gives_the_same_weights(place: Path, weights: list[Any]) -> None:
    assert equal(finish(place, "again.keras"), weights)


@pytest.mark.parametrize("epochs", [2, 105])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(
    place: Path, weights: list[Any], epochs: int
) -> None:
    name = f"killed{epochs}.keras"
    work = WorkFolder(str(place / name))
    process = start(place, name)
    while len(work.state().epochs) < epochs:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (place / name).exists()
    assert equal(finish(place, name), weights)
    assert not work.path.exists()
