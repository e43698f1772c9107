"""The four ways to use a network on a labeled folder, as stages of training."""

from dataclasses import dataclass

from imgindex.errors import UsageError
from imgindex.models.training.defaults import DEFAULTS
from imgindex.models.training.networks import Network

# Of the layers of a base, fine-tuning leaves this share as it is by default: the first ones, which see edges
# and textures that all photos have.
_FROZEN_SHARE = 2 / 3

ALL_FROZEN = None


@dataclass(frozen=True)
class Stage:
    """A part of a training with layers, a learning rate and a length of its own.

    Attributes:
        on_features: Whether the classifier alone is trained, on features that are computed once.
        frozen: How many of the backbone's first layers are frozen; `ALL_FROZEN` for all.
        learning_rate: The largest one. It rises over the first steps, and falls along a cosine to nothing.
        epochs: How many there are at most.
        patience: Epochs without a lower validation loss after which the stage ends.
    """

    on_features: bool
    frozen: int | None
    learning_rate: float
    epochs: int
    patience: int


def stages(
    method: str,
    network: Network,
    augment: str,
    epochs: int | None,
    learning_rate: float | None,
    patience: int | None,
    freeze_layers: int | None,
) -> tuple[Stage, ...]:
    """The stages of a method. None stands for a default of the method.

    `epochs`, `learning_rate` and `patience` are those of the last stage.

    Raises:
        UsageError: `freeze_layers` leaves no layer to train.
    """
    own = DEFAULTS[method]
    layers = len(network.layers())
    if freeze_layers is None:
        freeze_layers = round(_FROZEN_SHARE * layers)
    if freeze_layers >= layers:
        raise UsageError(
            f"--freeze_layers is {freeze_layers}, and the base has {layers} layers: give fewer, or choose "
            "--method transfer"
        )
    head = DEFAULTS["transfer"]
    last = Stage(
        on_features=method == "transfer" and augment == "none",
        frozen={"scratch": 0, "init": 0, "finetune": freeze_layers}.get(method, ALL_FROZEN),
        learning_rate=learning_rate or own.learning_rate,
        epochs=epochs or own.epochs,
        patience=patience or own.patience,
    )
    if method != "finetune":
        return (last,)
    # A classifier with random weights would change the layers below it at random, too.
    return Stage(True, ALL_FROZEN, head.learning_rate, head.epochs, head.patience), last
