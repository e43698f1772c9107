"""The card beside a trained model: what it was made from and how, and how good it is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imgindex.errors import DamagedError
from imgindex.io import filesystem
from imgindex.io.asked_files import JSON_GENERATOR
from imgindex.io.digest_json import seal, unseal
from imgindex.models.training.results import TrainingResult
from imgindex.records import Failure
from imgindex.training.settings import Settings

# Bytes of a card, of which each class and each file that was left out adds a few hundred.
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class LeftOut:
    """Files of the folder that the training did not use.

    Attributes:
        copies: How many are copies of another file.
        contradictory: Groups of copies that have several labels.
        failures: What could not be read or decoded.
    """

    copies: int
    contradictory: tuple[tuple[str, ...], ...]
    failures: tuple[Failure, ...]


def card_path(model: str) -> Path:
    """Where the card of the model at `model` lies."""
    return Path(model).with_suffix(".card.json")


def page_path(model: str) -> Path:
    """Where the page of the model at `model` lies."""
    return Path(model).with_suffix(".html")


def write_card(
    model: str,
    settings: Settings,
    result: TrainingResult,
    test_images: Sequence[str],
    left_out: LeftOut,
) -> None:
    """Writes the card of a model, whole or not at all; `test_images` are uris. Raises OutputError."""
    card = {
        **JSON_GENERATOR,
        **result.as_json(),
        "settings": asdict(settings),
        "test_images": [*test_images],
        "left_out": asdict(left_out),
    }
    filesystem.write_bytes(str(card_path(model)), seal(card))


def read_card(model: str) -> dict[str, Any] | None:
    """What the card of a model holds, for `TrainingResult.from_json`; None where there is none.

    Raises:
        DamagedError: It is no card.
    """
    path = str(card_path(model))
    if not filesystem.exists(path):
        return None
    try:
        return unseal(filesystem.read_written(path, _MAX_BYTES))
    except ValueError as error:
        raise DamagedError(
            f"{path} is no card of a trained model, or damaged: {error}; move it away"
        ) from error
