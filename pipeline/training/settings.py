"""What is asked of a training: checked before any work, recorded, and compared where a training goes on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from imgindex.errors import UsageError
from imgindex.io import filesystem, written_files
from imgindex.models.backbones import PIXELS, check_backbone, is_file, is_preset
from imgindex.models.hub import preset_files
from imgindex.models.saved_models import is_saved_model
from imgindex.models.training.defaults import DEFAULTS
from imgindex.models.training.resnets import RESNETS
from imgindex.models.training.results import AUGMENTATIONS, METHODS

# How the messages of `check_backbone` name what is here a flag of its own.
_FLAGS = {
    "--set backbone.": "--",
    "backbone.name": "--base",
    "backbone.": "--",
}

_LEAST = {"epochs": 1, "patience": 1, "batch_size": 1, "freeze_layers": 0, "seed": 0}
_TOO_MUCH = 1 << 31


@dataclass(frozen=True)
class Settings:
    """All that decides what a training gives, but for the images. None stands for a default.

    Attributes:
        directory: Where the images are.
        method: One of `METHODS`.
        base: A ``keras.applications`` name, the path of a ``.keras`` model or that of a KerasHub preset's
            folder, or for ``scratch`` also one of `RESNETS`.
        weights: ``imagenet``, ``bundled``, the path of a ``.h5`` file, or ``none`` for the method
            ``scratch``.
        image_size: Side of the square that images are resized to; the base's own by default.
        pooling: One of `imgindex.models.pooling.POOLINGS`.
        augment: One of `AUGMENTATIONS`.
        epochs: The most epochs of the last stage.
        patience: Epochs without a lower validation loss that end the last stage.
        learning_rate: The largest one of the last stage.
        batch_size: Images of a step.
        freeze_layers: For ``finetune`` how many of the base's first layers are not trained.
        seed: Draws the split, the order, the augmentation and random weights.
    """

    directory: str
    method: str
    base: str
    weights: str | None
    image_size: int | None
    pooling: str
    augment: str | None
    epochs: int | None
    patience: int | None
    learning_rate: float | None
    batch_size: int
    freeze_layers: int | None
    seed: int

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The settings that have another value in `other`, in words for a message."""
        return [
            f"--{name} {other.get(name)} and not {value}"
            if name != "directory"
            else f"the images in {other.get(name)}"
            for name, value in asdict(self).items()
            if other.get(name) != value
        ]

    def files(self) -> dict[str, str]:
        """The digests of the files that the base and its weights are from, by path."""
        paths = [path for path in (self.base, self.weights or "") if path.endswith((".keras", ".h5"))]
        if self.base not in RESNETS and is_preset(self.base):
            paths += map(str, preset_files(self.base))
        return {path: written_files.describe(Path(path), path).sha256 for path in paths}


def settled(asked: Settings) -> Settings:
    """Settings with the method's own weights and augmentation where none are given. Raises UsageError."""
    method, weights = asked.method, asked.weights
    if method not in METHODS:
        raise UsageError(f"--method is {method!r}: expected one of {', '.join(METHODS)}")
    if asked.augment not in (None, *AUGMENTATIONS):
        raise UsageError(f"--augment is {asked.augment!r}: expected one of {', '.join(AUGMENTATIONS)}")
    if asked.base == PIXELS:
        raise UsageError(f"--base is {PIXELS}, which has nothing to train: give a keras.applications model")
    if method == "scratch" and weights not in (None, "none"):
        raise UsageError(
            f"--weights is {weights!r}, but --method scratch begins with random weights: leave it out"
        )
    if method != "scratch" and asked.base in RESNETS:
        raise UsageError(
            f"--base is {asked.base}, for which there are no pretrained weights: choose --method scratch, or "
            "give the .keras file of one that you have trained"
        )
    if method != "scratch" and weights == "none":
        raise UsageError(
            f"--weights is none, but --method {method} begins with pretrained weights: give some, or choose "
            "--method scratch"
        )
    if asked.freeze_layers is not None and method != "finetune":
        raise UsageError("--freeze_layers goes with --method finetune: leave it out, or choose that method")
    for name, least in _LEAST.items():
        value = getattr(asked, name)
        if value is not None and (type(value) is not int or not least <= value < _TOO_MUCH):
            raise UsageError(f"--{name} is {value!r}: expected a whole number of at least {least}")
    rate = asked.learning_rate
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"--learning_rate is {rate!r}: expected a number above 0, such as 0.001")
    if weights is None:
        weights = "none" if method == "scratch" else "imagenet"
    _check_base(asked.base, weights, asked.pooling, asked.image_size)
    return replace(asked, weights=weights, augment=asked.augment or DEFAULTS[method].augment)


def _check_base(base: str, weights: str, pooling: str, image_size: int | None) -> None:
    # The small ResNets take the images and the pooling that the larger ones do.
    known = "ResNet50" if base in RESNETS else base
    try:
        check_backbone(known, weights, pooling, image_size)
    except UsageError as error:
        raise in_flags(error) from error


def in_flags(error: UsageError) -> UsageError:
    """An error of a backbone, with the names of flags in place of those of the config's settings."""
    message = str(error)
    for name, flag in _FLAGS.items():
        message = message.replace(name, flag)
    return UsageError(message)


def check_output(output: str) -> None:
    """Raises UsageError where `output` is no local path of a ``.keras`` model."""
    if not is_saved_model(output) or not filesystem.is_local(output):
        raise UsageError(f"--output is {output}: expected the path of a local file that ends in .keras")
    if filesystem.exists(output) and not is_file(output):
        raise UsageError(f"--output is {output}, which is no file: choose another name")
