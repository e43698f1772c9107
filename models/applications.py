"""The models of ``keras.applications`` that can be backbones: what is known of each, and how it is built."""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from imgindex.errors import UsageError, WeightsUnavailableError
from imgindex.models.frameworks import first_line
from imgindex.models.resizing import IMAGENET_MEAN, Color

BUNDLED_NAME = "MobileNetV2"
BUNDLED_WEIGHTS = Path(__file__).parent / "weights/MobileNetV2_imagenet_notop_float16.weights.h5"

# How Keras's own constructors pool; what they do not know is added to their feature map.
_APPLICATIONS_POOLINGS = ("avg", "max")

# The middle of 0 to 255, for models whose preprocessing maps these to -1 to 1.
_GRAY: Color = (128, 128, 128)


@dataclass(frozen=True)
class Architecture:
    """What must be known of a ``keras.applications`` model before Keras is loaded.

    Attributes:
        module: Submodule of ``keras.applications`` that holds its ``preprocess_input``.
        image_size: Default side of the square input, in pixels.
        minimum_size: Smallest side that the application accepts, in pixels.
        fill: The color that its preprocessing maps to about zero.
    """

    module: str
    image_size: int
    minimum_size: int = 32
    fill: Color = IMAGENET_MEAN


APPLICATIONS: Mapping[str, Architecture] = MappingProxyType(
    {
        "ConvNeXtTiny": Architecture("convnext", 224),
        "ConvNeXtSmall": Architecture("convnext", 224),
        "ConvNeXtBase": Architecture("convnext", 224),
        "ConvNeXtLarge": Architecture("convnext", 224),
        "ConvNeXtXLarge": Architecture("convnext", 224),
        "DenseNet121": Architecture("densenet", 224),
        "DenseNet169": Architecture("densenet", 224),
        "DenseNet201": Architecture("densenet", 224),
        "EfficientNetB0": Architecture("efficientnet", 224),
        "EfficientNetB1": Architecture("efficientnet", 240),
        "EfficientNetB2": Architecture("efficientnet", 260),
        "EfficientNetB3": Architecture("efficientnet", 300),
        "EfficientNetB4": Architecture("efficientnet", 380),
        "EfficientNetB5": Architecture("efficientnet", 456),
        "EfficientNetB6": Architecture("efficientnet", 528),
        "EfficientNetB7": Architecture("efficientnet", 600),
        "EfficientNetV2B0": Architecture("efficientnet_v2", 224),
        "EfficientNetV2B1": Architecture("efficientnet_v2", 240),
        "EfficientNetV2B2": Architecture("efficientnet_v2", 260),
        "EfficientNetV2B3": Architecture("efficientnet_v2", 300),
        "EfficientNetV2S": Architecture("efficientnet_v2", 384, fill=_GRAY),
        "EfficientNetV2M": Architecture("efficientnet_v2", 480, fill=_GRAY),
        "EfficientNetV2L": Architecture("efficientnet_v2", 480, fill=_GRAY),
        "InceptionResNetV2": Architecture("inception_resnet_v2", 299, 75, fill=_GRAY),
        "InceptionV3": Architecture("inception_v3", 299, 75, fill=_GRAY),
        "MobileNet": Architecture("mobilenet", 224, fill=_GRAY),
        "MobileNetV2": Architecture("mobilenet_v2", 224, fill=_GRAY),
        "MobileNetV3Large": Architecture("mobilenet_v3", 224, fill=_GRAY),
        "MobileNetV3Small": Architecture("mobilenet_v3", 224, fill=_GRAY),
        "NASNetLarge": Architecture("nasnet", 331, fill=_GRAY),
        "NASNetMobile": Architecture("nasnet", 224, fill=_GRAY),
        "ResNet50": Architecture("resnet50", 224),
        "ResNet101": Architecture("resnet", 224),
        "ResNet152": Architecture("resnet", 224),
        "ResNet50V2": Architecture("resnet_v2", 224, fill=_GRAY),
        "ResNet101V2": Architecture("resnet_v2", 224, fill=_GRAY),
        "ResNet152V2": Architecture("resnet_v2", 224, fill=_GRAY),
        "VGG16": Architecture("vgg16", 224),
        "VGG19": Architecture("vgg19", 224),
        "Xception": Architecture("xception", 299, 71, fill=_GRAY),
    }
)


def build_application(
    keras: Any, name: str, weights: str, pooling: str | None, size: tuple[int, int], seed: int
) -> Any:
    """The application `name` for images of ``(height, width)``, without its classifier.

    Args:
        keras: The module ``keras``, as `settled_keras` yields it.
        weights, pooling, seed: As in `imgindex.models.backbones.load_core`. What Keras does not pool by
            leaves a feature map, and so does None.

    Raises:
        UsageError: A file of weights does not fit.
        WeightsUnavailableError: The ImageNet weights cannot be downloaded.
    """
    build = getattr(keras.applications, name)
    own_pooling = pooling if pooling in _APPLICATIONS_POOLINGS else None
    options = {"include_top": False, "input_shape": (*size, 3), "pooling": own_pooling}
    if weights == "imagenet":
        try:
            return build(weights="imagenet", **options)
        except Exception as error:
            wanted = _wanted_download(keras, error)
            if wanted is None:
                raise
            raise WeightsUnavailableError(
                f"{name}: Keras could not download its ImageNet weights ({first_line(error)}): "
                f"put {wanted.name} into {wanted.parent}, or give --set backbone.weights=PATH, "
                f"none (random) or, with backbone.name={BUNDLED_NAME}, bundled"
            ) from error
    if weights == "none":
        core = build(weights=None, **options)
        randomize(core, seed)
        return core
    path = BUNDLED_WEIGHTS if weights == "bundled" else Path(weights)
    try:
        with _in_place_of_the_download(keras, path):
            return build(weights="imagenet", **options)
    except Exception as error:  # h5py and Keras raise many kinds for files that do not fit.
        raise UsageError(
            f"{path}: these weights do not fit {name} ({first_line(error)}): give a file saved "
            f"from keras.applications.{name}(include_top=False)"
        ) from error


@contextmanager
def _in_place_of_the_download(keras: Any, path: Path) -> Iterator[None]:
    """Lets Keras take `path` for the ImageNet weights that it would download.

    Given a path itself, it leaves layers out that the EfficientNets have for ImageNet weights alone.
    """
    module = sys.modules[keras.utils.get_file.__module__]
    download = module.get_file
    thread = threading.get_ident()

    def get_file(*arguments: Any, **options: Any) -> Any:
        return str(path) if threading.get_ident() == thread else download(*arguments, **options)

    module.get_file = get_file  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.get_file = download  # type: ignore[attr-defined]


def _wanted_download(keras: Any, error: BaseException) -> Path | None:
    """The file that Keras wanted to download when it raised, None if it was not downloading.

    Its errors name the URL at best, and the name in the cache may differ from the URL's.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is keras.utils.get_file.__code__:
            return Path(trace.tb_frame.f_locals["download_target"])
        trace = trace.tb_next
    return None


def randomize(model: Any, seed: int) -> None:
    """Draws every kernel anew; biases and normalizations keep their constant start values.

    Keras seeds its initializers from Python's global generator, which other threads may use
    meanwhile.
    """
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) < 2:
            continue
        # A depthwise kernel [height, width, channels, 1] sums over one channel at a time.
        depthwise = len(shape) == 4 and shape[-1] == 1
        fan_in = int(np.prod(shape[:2] if depthwise else shape[:-1]))
        kernel = generator.standard_normal(shape, dtype=np.float32)
        weight.assign(kernel * np.float32(fan_in**-0.5))
