"""How good a trained network is: its accuracy, and which classes it takes for which."""

import numpy as np

from imgindex.models.frameworks import settled_keras
from imgindex.models.training.datasets import Examples, Indices, batches
from imgindex.models.training.fit import Training
from imgindex.models.training.results import PARTS
from imgindex.models.training.split import TEST

Confusion = tuple[tuple[int, ...], ...]


def judge(training: Training) -> tuple[dict[str, float], Confusion]:
    """The accuracy in each part, and ``[actual][predicted]`` of the test images.

    Images are not augmented.
    """
    examples = training.last_examples()
    predicted = {part: _predicted(training, examples, examples.parts[part]) for part in PARTS}
    actual = {part: examples.classes[examples.parts[part]] for part in PARTS}
    accuracy = {part: float(np.mean(predicted[part] == actual[part])) for part in PARTS}
    confusion = np.zeros((training.last_model().output_shape[-1],) * 2, np.int64)
    np.add.at(confusion, (actual[TEST], predicted[TEST]), 1)
    return accuracy, tuple(map(tuple, confusion.tolist()))


def _predicted(training: Training, examples: Examples, positions: Indices) -> Indices:
    fed = batches(examples, positions, training.batch_size)
    with settled_keras():
        logits = training.last_model().predict(fed, verbose=0)
    predicted: Indices = np.argmax(logits, axis=1)
    return predicted
