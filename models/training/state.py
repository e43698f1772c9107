"""How far a training has come: all that a run needs to go on as if nothing had ended the one before."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.models.training.results import Epoch

Arrays = list[npt.NDArray[Any]]

_STORY = "story"
_KINDS = ("current", "optimizer", "best")


@dataclass
class State:
    """Where a training is.

    Attributes:
        stage: Which stage is under way, from 0; their number where all are done.
        in_stage: How many of its epochs are done.
        epochs: All that are done, of all stages.
        best_epoch: Number of the epoch of this stage that had the lowest validation loss; 0 before the first.
        seconds: How long all runs have taken so far.
        current: The weights of the stage's model, in Keras's order; none where they are the first ones.
        optimizer: The optimizer's variables, in Keras's order; none where the stage begins.
        best: The weights after the best epoch; none before the first.
    """

    stage: int = 0
    in_stage: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    current: Arrays = field(default_factory=list)
    optimizer: Arrays = field(default_factory=list)
    best: Arrays = field(default_factory=list)

    def best_loss(self) -> float:
        """The validation loss of the best epoch; infinite before the first."""
        return self.epochs[self.best_epoch - 1].validation_loss if self.best_epoch else float("inf")

    def epochs_without_gain(self) -> int:
        """How many epochs of this stage came after its best one."""
        return len(self.epochs) - self.best_epoch if self.best_epoch else 0

    def to_npz(self) -> bytes:
        """The state as the bytes of a file."""
        story = {
            "stage": self.stage,
            "in_stage": self.in_stage,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }
        arrays: dict[str, Any] = {
            f"{kind}{number}": array for kind in _KINDS for number, array in enumerate(getattr(self, kind))
        }
        file = io.BytesIO()
        arrays[_STORY] = np.frombuffer(json.dumps(story).encode(), np.uint8)
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> "State":
        """Reads `to_npz`'s bytes. Raises ValueError, KeyError or BadZipFile for others."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            story = json.loads(arrays[_STORY].tobytes())
            story["epochs"] = [Epoch(**epoch) for epoch in story["epochs"]]
            state = cls(**story)
            for kind in _KINDS:
                setattr(state, kind, _numbered(arrays, kind))
            return state


def _numbered(arrays: Any, kind: str) -> Arrays:
    count = sum(name.removeprefix(kind).isdecimal() for name in arrays.files if name.startswith(kind))
    return [arrays[f"{kind}{number}"] for number in range(count)]


def values_of(variables: Sequence[Any]) -> Arrays:
    """The values of Keras variables."""
    return [variable.numpy() for variable in variables]


def assign(variables: Sequence[Any], values: Arrays) -> None:
    """Gives Keras variables the values that `values_of` gave. Raises ValueError where they do not fit."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
