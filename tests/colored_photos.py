"""A labeled folder that a small network learns in seconds, and such a network."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLORS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}
SIZE = 32


def write_colored(folder: Path, each: int = 20, seed: int = 0) -> None:
    """Writes `each` noisy images of one color to a folder of each of `COLORS` below `folder`."""
    generator = np.random.default_rng(seed)
    for label, color in COLORS.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            noise = generator.integers(-50, 50, (40, 36, 3))
            Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(
                folder / label / f"{number:03}.png"
            )


def write_small_network(path: Path, seed: int = 0) -> None:
    """Saves a network of two convolutions with random weights, from pixels in 0..255 to a feature map."""
    import keras

    keras.utils.set_random_seed(seed)
    pixels = keras.Input((SIZE, SIZE, 3))
    maps: Any = keras.layers.Rescaling(1 / 127.5, -1)(pixels)
    for filters in (8, 16):
        maps = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(maps)
        maps = keras.layers.BatchNormalization()(maps)
        maps = keras.layers.ReLU()(maps)
    keras.Model(pixels, maps).save(path)
