"""What a training found, as it stands in the card beside the model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

METHODS = ("scratch", "transfer", "finetune", "init")
AUGMENTATIONS = ("none", "light", "strong")
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        number: From 1, counted through all stages of a training.
        loss: Mean cross-entropy of the training images, in nats, as the pass saw them: augmented.
        accuracy: Share of the training images that the pass classified right, 0 to 1.
        validation_loss: The same of the validation images after the pass, not augmented.
        validation_accuracy: Share of the validation images that are classified right after the pass.
        seconds: How long the pass and its validation took.
    """

    number: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes:
        method: ``scratch``, ``transfer``, ``finetune`` or ``init``.
        base: The network that training began with: a name, or the path of a ``.keras`` model.
        weights: The base's weights, as given: a word or the path of a file.
        image_size: Side of the square that images are resized to, in pixels.
        pooling: How the last feature map became the feature that the classifier saw.
        resize: How images are resized to the square, as ``backbone.resize`` says it.
        augment: ``none``, ``light`` or ``strong``.
        seed: What decided the split, the first weights, the order and the augmentation.
        classes: Names of the classes, sorted; position i is class i.
        split: How many images of each class are in ``train``, ``validation`` and ``test``.
        epochs: All passes, in order.
        best_epoch: Number of the epoch whose weights were kept.
        accuracy: Share of the images of ``train``, ``validation`` and ``test`` that the kept weights
            classify right, not augmented; 0 to 1.
        confusion: ``confusion[i][j]``: how many test images of class i are classified as class j.
        parameters: How many numbers the backbone and the classifier hold.
        trainable_parameters: How many of them training changed.
        seconds: How long the training took, with all the runs that it was resumed by.
        versions: Versions of imgindex, Keras and TensorFlow.
        sha256: Digest of the saved model's file.
    """

    method: str
    base: str
    weights: str
    image_size: int
    pooling: str
    resize: str
    augment: str
    seed: int
    classes: tuple[str, ...]
    split: Mapping[str, Mapping[str, int]]
    epochs: tuple[Epoch, ...]
    best_epoch: int
    accuracy: Mapping[str, float]
    confusion: tuple[tuple[int, ...], ...]
    parameters: int
    trainable_parameters: int
    seconds: float
    versions: Mapping[str, str]
    sha256: str

    @property
    def backbone_pooling(self) -> str:
        """`backbone.pooling` of a build with the model. A class token is a feature, which nothing pools."""
        return "avg" if self.pooling == "cls" else self.pooling

    def as_json(self) -> dict[str, Any]:
        """The result as objects of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrainingResult":
        """The result of its JSON, which may hold other keys. Raises KeyError, TypeError or ValueError."""
        given = {field.name: data[field.name] for field in fields(cls)}
        given["classes"] = tuple(given["classes"])
        given["epochs"] = tuple(Epoch(**epoch) for epoch in given["epochs"])
        given["confusion"] = tuple(tuple(map(int, row)) for row in given["confusion"])
        return cls(**given)
