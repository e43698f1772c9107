"""The folder beside a model in the making: what a training needs to go on where a run has ended."""

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.errors import UsageError
from imgindex.io import filesystem
from imgindex.io.digest_json import seal, unseal
from imgindex.models.training.state import State
from imgindex.training.settings import Settings

_SETTINGS, _STATE, _FEATURES, _PIXELS, _MODEL, _LOCK = (
    "settings.json", "state.npz", "features.npy", "pixels", "model.keras", ".lock",
)  # fmt: skip
_NAMES = re.compile("|".join(map(re.escape, (_SETTINGS, _STATE, _FEATURES))))
_MAX_BYTES = 1 << 40


class WorkFolder:
    """The folder of one training. Whoever uses it holds its lock."""

    def __init__(self, output: str) -> None:
        """The folder of the model that `output` is to hold."""
        self.path = Path(f"{output}.training")
        self.pixels = self.path / _PIXELS
        self.model = self.path / _MODEL

    def exists(self) -> bool:
        """Whether a training is under way here."""
        return filesystem.exists(str(self.path / _SETTINGS))

    def check(self, settings: Settings) -> None:
        """Checks that a training of these settings may begin here, or go on.

        Raises:
            UsageError: One with other settings is under way, or the folder holds files of others.
        """
        filesystem.delete_partials(str(self.path), _NAMES)
        found = self._read(_SETTINGS)
        if found is None:
            others = sorted(file.name for file in self.path.iterdir() if file.name not in (_LOCK, _PIXELS))
            if others:
                raise UsageError(f"{self.path} holds {others[0]} and no training: choose another --output")
            return
        differences = settings.differences(found["settings"])
        if not differences and found["files"] != settings.files():
            differences = ["another file of the base or its weights"]
        self._refuse(differences)

    def begin(self, settings: Settings, images: str) -> None:
        """Records the settings of a training and the digest of its images, once all is known to be right.

        Raises:
            UsageError: The training that is under way has other images.
        """
        found = self._read(_SETTINGS)
        if found is None:
            content = {"settings": asdict(settings), "files": settings.files(), "images": images}
            filesystem.write_bytes(str(self.path / _SETTINGS), seal(content))
        elif found["images"] != images:
            self._refuse(["other images"])

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            raise UsageError(
                f"{self.path} holds a training that is not finished, with {', '.join(differences)}: go on "
                "with the same, choose another --output, or delete the folder"
            )

    def _read(self, name: str) -> dict[str, Any] | None:
        path = str(self.path / name)
        if not filesystem.exists(path):
            return None
        try:
            return unseal(filesystem.read_written(path, _MAX_BYTES))
        except ValueError as error:
            raise self._damaged(path) from error

    def state(self) -> State:
        """Where the training is: at its beginning where nothing is saved. Raises UsageError for damage."""
        path = str(self.path / _STATE)
        if not filesystem.exists(path):
            return State()
        try:
            return State.from_npz(filesystem.read_written(path, _MAX_BYTES))
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(path) from error

    def save(self, state: State) -> None:
        """Saves where the training is. Raises OutputError."""
        filesystem.write_bytes(str(self.path / _STATE), state.to_npz())

    def features(self, compute: Callable[[], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The features of all images: those that are saved, or what `compute` gives, which then is saved."""
        path = str(self.path / _FEATURES)
        if filesystem.exists(path):
            try:
                with filesystem.as_output_error("read", path):
                    saved: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
                    return saved
            except (ValueError, EOFError) as error:
                raise self._damaged(path) from error
        features = compute()
        file = io.BytesIO()
        np.save(file, features)
        filesystem.write_bytes(path, file.getvalue())
        return features

    def _damaged(self, path: str) -> UsageError:
        return UsageError(f"{path} is damaged: delete {self.path} to begin anew")

    def remove(self) -> None:
        """Deletes what a training has written into the folder, and the folder where it is empty then."""
        with filesystem.as_output_error("delete", str(self.path)):
            for name in (_STATE, _FEATURES, _PIXELS, _MODEL, _SETTINGS, _LOCK):
                (self.path / name).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()
