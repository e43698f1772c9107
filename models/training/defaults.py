"""What a training does where nothing else is asked; `--help` shows it, so this loads no library."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DEFAULT_BASE = "ResNet50"


@dataclass(frozen=True)
class Defaults:
    """Those of a method.

    Attributes:
        augment: The augmentation.
        learning_rate: The largest one.
        epochs: How many there are at most.
        patience: Epochs without a lower validation loss after which the training ends.
    """

    augment: str
    learning_rate: float
    epochs: int
    patience: int


DEFAULTS: Mapping[str, Defaults] = MappingProxyType(
    {
        "scratch": Defaults("light", 1e-3, 40, 20),
        "transfer": Defaults("none", 3e-3, 100, 20),
        "finetune": Defaults("light", 1e-4, 15, 6),
        "init": Defaults("light", 3e-4, 20, 8),
    }
)
