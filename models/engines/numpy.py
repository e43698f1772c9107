"""The NumPy engine: runs the backbone `pixels`, whose features are the pixels themselves."""

import hashlib

import numpy as np
import numpy.typing as npt

from imgindex.errors import UnsupportedModelError
from imgindex.models.backbones import PIXELS, PIXELS_IMAGE_SIZE, check_backbone
from imgindex.models.engines.protocol import Engine, EngineChoice, EngineFactory
from imgindex.models.preprocess import PREPROCESSING
from imgindex.models.resizing import IMAGENET_MEAN, Resizing
from imgindex.models.spec import Spec

# These words say what the backbone computes. They are part of the spec, so they must change when that does.
_LAYERS = b"RGB values by row, column and channel"


class NumpyFactory(EngineFactory):
    """Engines of NumPy."""

    def runs(self, backbone: str) -> bool:
        """See `EngineFactory`."""
        return backbone == PIXELS

    def load(self, choice: EngineChoice, threads: int) -> Engine:
        """See `EngineFactory.load`."""
        if not self.runs(choice.name):
            raise UnsupportedModelError(
                f"the engine numpy runs the backbone {PIXELS} only, not {choice.name}"
            )
        check_backbone(
            choice.name, choice.weights, choice.pooling, choice.image_size, choice.output,
            choice.resize, choice.mirror,
        )  # fmt: skip
        return NumpyEngine(choice.image_size or PIXELS_IMAGE_SIZE, choice.batch_size, choice.resize)


class NumpyEngine:
    """Flattens images of `side` x `side` pixels."""

    name = "numpy"
    precision = "float32"
    streams = 1

    def __init__(self, side: int, batch_size: int, resize: str) -> None:
        """`resize` is one of `resizing.RESIZES`."""
        self.batch_size = batch_size
        self.image_size = (side, side)
        self.feature_dim = 3 * side * side
        resizing = Resizing.filled(self.image_size, resize, IMAGENET_MEAN)
        self.spec = Spec(
            backbone=PIXELS,
            weights_sha256=hashlib.sha256(b"").hexdigest(),
            image_size=self.image_size,
            pooling="none",
            preprocessing="none",
            decoding=PREPROCESSING,
            layers_sha256=hashlib.sha256(_LAYERS).hexdigest(),
            resize=resizing.mode,
            fill=resizing.fill,
        )

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.embed`: each image's values, 0 to 255, by row, then column, then red, green, blue."""
        return pixels.reshape(len(pixels), -1).astype(np.float32)
