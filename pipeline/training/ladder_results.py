"""What a ladder of trainings found: a run for each method and seed, and their means."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from imgindex.io.asked_files import JSON_GENERATOR
from imgindex.models.training.results import METHODS

SCHEMA_VERSION = 1

# The base as it is, which the methods are compared with.
UNTRAINED = "untrained"
RUNGS = (UNTRAINED, *METHODS)


@dataclass(frozen=True)
class Retrieval:
    """How well test images find each other in an index of them alone.

    Attributes:
        p_at_k: Mean share of an image's k nearest that have its class.
        best_p_at_k: The most that `p_at_k` could be: below 1 where a class has at most k test images.
        map_at_r: Mean average precision at R, the number of other test images of the class.
    """

    p_at_k: float
    best_p_at_k: float
    map_at_r: float


@dataclass(frozen=True)
class LadderRun:
    """One method with one seed, or the base as it is.

    Attributes:
        method: One of `RUNGS`.
        seed: What decided the split, the weights that are drawn, the order and the augmentation.
        accuracy: Share of the test images that are classified right; None for `UNTRAINED`, which has no
            classifier.
        retrieval: Of an index of the test images with this backbone; None where no two of them share a class.
        seconds: How long the training took; None for `UNTRAINED`.
        parameters: How many numbers the backbone and the classifier hold; None for `UNTRAINED`.
        trainable_parameters: How many of them training changed; None for `UNTRAINED`.
        epochs: How many passes over the training images there were; None for `UNTRAINED`.
        best_epoch: Whose weights were kept; None for `UNTRAINED`.
        model: The name of the saved model in the ladder's folder; None for `UNTRAINED`.
        sha256: Digest of that file; None for `UNTRAINED`.
    """

    method: str
    seed: int
    accuracy: float | None = None
    retrieval: Retrieval | None = None
    seconds: float | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    model: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Figure:
    """A figure of several runs.

    Attributes:
        mean: The mean over the seeds.
        deviation: The standard deviation of the seeds, with n - 1; None for a single one.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """The figure of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Rung:
    """A method over all seeds, each figure None where no run has it."""

    method: str
    accuracy: Figure | None
    p_at_k: Figure | None
    map_at_r: Figure | None
    seconds: Figure | None
    trainable_parameters: int | None


@dataclass(frozen=True)
class TrainingLadder:
    """All methods on the same splits of one folder.

    Attributes:
        directory: The labeled folder.
        base, weights: What the methods began with.
        image_size, pooling, resize, augment: As of the trainings; `augment` is None for that of each method.
        classes: How many classes there are.
        split: How many images each part has.
        seeds: Each draws a split, which is the same for all methods.
        k: The ranks that P@k looks at.
        runs: Seed by seed, each in the order of `RUNGS`.
        versions: Of the libraries that the figures depend on.
    """

    directory: str
    base: str
    weights: str
    image_size: int
    pooling: str
    resize: str
    augment: str | None
    classes: int
    split: Mapping[str, int]
    seeds: tuple[int, ...]
    k: int
    runs: tuple[LadderRun, ...]
    versions: Mapping[str, str]

    def rungs(self) -> tuple[Rung, ...]:
        """The methods in the order of `RUNGS`."""
        return tuple(self._rung(method) for method in RUNGS)

    def best_p_at_k(self) -> float | None:
        """The most that P@k could be, as the mean over the seeds; None where it was not measured."""
        best = [run.retrieval.best_p_at_k for run in self.runs if run.retrieval is not None]
        return statistics.fmean(best) if best else None

    def as_json(self) -> dict[str, Any]:
        """The ladder as objects of JSON, whose keys stay the same for a `schema_version`."""
        return (
            JSON_GENERATOR
            | {"schema_version": SCHEMA_VERSION}
            | asdict(self)
            | {"rungs": [asdict(rung) for rung in self.rungs()], "best_p_at_k": self.best_p_at_k()}
        )

    def _rung(self, method: str) -> Rung:
        runs = [run for run in self.runs if run.method == method]
        found = [run.retrieval for run in runs if run.retrieval is not None]
        trained = [run for run in runs if run.trainable_parameters is not None]
        return Rung(
            method,
            _figure([run.accuracy for run in runs]),
            _figure([each.p_at_k for each in found]),
            _figure([each.map_at_r for each in found]),
            _figure([run.seconds for run in runs]),
            trained[0].trainable_parameters if trained else None,
        )


def _figure(values: Sequence[float | None]) -> Figure | None:
    known = [value for value in values if value is not None]
    return Figure.of(known) if known else None
