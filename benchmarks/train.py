"""Steps a second of a training, and of the same network on one batch that lies in memory."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from imgindex.config import ImagesConfig
from imgindex.models.backbones import load_core
from imgindex.models.frameworks import settled_keras
from imgindex.models.resizing import Resizing
from imgindex.models.training.datasets import Examples, batches, epoch_order
from imgindex.models.training.fit import compiled
from imgindex.models.training.networks import build_network, freeze
from imgindex.training.labeled_folder import decode, list_labeled

BATCH = 32
CLASSES = 4


def main(backbone: str, side: int, images: int) -> None:
    """Prints both, and their ratio: the medians of rounds that take turns."""
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for number in range(images):
            file = Path(folder) / str(number % CLASSES) / f"{number}.jpg"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (240, 320, 3), np.uint8)).save(file)
        limits = ImagesConfig()
        listed, _ = list_labeled(folder, limits)
        core = load_core(backbone, "none", None, side)
        decoded = decode(listed, Resizing(core.image_size), limits, Path(folder) / "pixels", lambda _: None)
    network = build_network(core, "avg", CLASSES, from_scratch=False, augment="light", seed=0)
    freeze(network, 0)
    classes = np.arange(images) % CLASSES
    examples = Examples(decoded.pixels, classes, {})
    weights = np.ones(CLASSES, np.float32)
    steps = -(-images // BATCH)
    model = network.whole
    with settled_keras() as keras:
        import tensorflow as tf

        compiled(keras, model, 1e-3, 1000)
        one = next(iter(batches(examples, np.arange(BATCH), BATCH, weights)))
        repeated = tf.data.Dataset.from_tensors(one).repeat(steps)

        def fed(epoch: int) -> tf.data.Dataset:
            return batches(examples, epoch_order(np.arange(images), BATCH, 0, epoch), BATCH, weights)

        def rate(data: Callable[[], tf.data.Dataset]) -> float:
            started = time.monotonic()
            model.fit(data(), epochs=1, verbose=0)
            return steps / (time.monotonic() - started)

        model.fit(fed(0), epochs=1, verbose=0)
        model.fit(repeated, epochs=1, verbose=0)
        rates = [(rate(lambda epoch=epoch: fed(epoch)), rate(lambda: repeated)) for epoch in range(1, 6)]
    training, memory = np.median(rates, axis=0)
    print(f"training {training:.2f} steps/s, in memory {memory:.2f} steps/s, ratio {training / memory:.3f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
