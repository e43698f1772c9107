"""Backbones: Keras models that map raw RGB pixels to one pooled feature per image.

A backbone is an application of ``keras.applications`` without its classifier, or a saved
``.keras`` model. ``pixels`` is one without Keras: its feature is the image itself.
Importing this module loads neither Keras nor TensorFlow; :func:`check_backbone` refuses what
it can without them, :func:`load_backbone` builds the model.
"""

import difflib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgindex.errors import UnsupportedModelError, UsageError, WeightsUnavailableError
from imgindex.models.applications import APPLICATIONS
from imgindex.models.digests import layers_digest, weights_digest
from imgindex.models.frameworks import first_line, settled_keras
from imgindex.models.saved_models import describe_hdf5, gray, is_saved_model, load_saved_model

POOLINGS = ("avg", "max")
WEIGHTS_WORDS = ("imagenet", "bundled", "none")
BUNDLED_NAME = "MobileNetV2"

# The baseline: an image's RGB values, row by row. PCA takes memory and time that grow with powers of them.
PIXELS = "pixels"
PIXELS_IMAGE_SIZE = 32
_MOST_PIXELS_IMAGE_SIZE = 64

BUNDLED_WEIGHTS = Path(__file__).parent / "weights/MobileNetV2_imagenet_notop_float16.weights.h5"

IMAGE_SIZES = range(32, 2049)


@dataclass(frozen=True)
class Backbone:
    """A loaded model and what decides its features.

    Attributes:
        architecture: The ``keras.applications`` name, or a digest of a ``.keras`` model's layers.
        model: ``keras.Model`` from raw RGB pixels, uint8 ``[n, height, width, 3]``, to pooled
            features, float32 ``[n, feature_dim]``. Preprocessing is inside.
        image_size: ``(height, width)`` that the model takes, in pixels.
        feature_dim: Length of one feature.
        pooling: ``avg`` or ``max``.
        preprocessing: Full name of the function that the model applies to the pixels, or
            ``in the model`` for a ``.keras`` model.
        weights_sha256: :func:`weights_digest` of the model, wherever its weights came from.
        layers_sha256: :func:`layers_digest` of the model.
    """

    architecture: str
    model: Any
    image_size: tuple[int, int]
    feature_dim: int
    pooling: str
    preprocessing: str
    weights_sha256: str
    layers_sha256: str


@dataclass(frozen=True)
class Core:
    """A loaded Keras model, which takes preprocessed pixels.

    Attributes:
        name: The application, or the path of the ``.keras`` model.
        architecture: As in :class:`Backbone`.
        model: ``keras.Model`` of one input and one output: features ``[n, d]``, or a feature map
            ``[n, height, width, d]``.
        image_size: ``(height, width)`` that the model is run at, in pixels.
        preprocess: From RGB in 0..255, float32 ``[n, height, width, 3]``, to what the model takes.
        preprocessing: As in :class:`Backbone`.
    """

    name: str
    architecture: str
    model: Any
    image_size: tuple[int, int]
    preprocess: Callable[[Any], Any]
    preprocessing: str

    def __call__(self, keras: Any, pixels: Any) -> Any:
        """What the model gives for raw pixels, float32 ``[n, height, width, 3]``.

        Raises:
            UsageError: If a saved model does not take images of `image_size`.
        """
        try:
            # A saved model may have its one output in a list or a dict.
            [features] = keras.tree.flatten(self.model(self.preprocess(pixels)))
        except Exception as error:  # Keras raises many kinds for shapes that do not fit.
            raise UsageError(
                f"{self.name}: does not take images of {self.image_size} (height, width) "
                f"({first_line(error)}): set another backbone.image_size"
            ) from error
        return features


def check_backbone(
    name: str, weights: str, pooling: str, image_size: int | None, output: str | None = None
) -> None:
    """Refuses what can be refused without loading Keras.

    Args:
        name: A ``keras.applications`` name, ``pixels`` or the path of a ``.keras`` model.
        weights: ``imagenet``, ``bundled``, ``none`` or the path of a ``.h5`` weights file. With a path
            the application has the layers that it has with ``imagenet``. For a ``.keras`` model,
            which holds its weights, only ``imagenet`` and ``none``; both mean the weights in the file.
            ``pixels`` has none: it takes the same two, which mean nothing.
        pooling: ``avg`` or ``max``. ``pixels`` has nothing to pool and takes ``avg`` alone, the default.
        image_size: Side of the square input in pixels, or None for the
            model's own size.
        output: Of a ``.keras`` model the name of the output, or of the layer, that gives the features, or
            None for the only output.

    Raises:
        UsageError: If one of them cannot be right.
    """
    if pooling not in POOLINGS:
        raise UsageError(f"backbone.pooling is {pooling!r}: expected one of {', '.join(POOLINGS)}")
    size = _image_size(image_size)
    if is_saved_model(name):
        if not is_file(name):
            raise UsageError(f"backbone.name: no such file: {name}")
        if weights not in ("imagenet", "none"):
            raise UsageError(
                f"backbone.weights is {weights!r}, but {name} holds its own weights: "
                "leave backbone.weights out"
            )
        return
    if output is not None:
        raise UsageError(
            f"backbone.output is {output!r}, but {name} is no .keras model: leave backbone.output out"
        )
    if name == PIXELS:
        _check_pixels(weights, pooling, image_size)
        return
    if name.endswith((".h5", ".hdf5")):
        raise UsageError(
            f"backbone.name: {name} {describe_hdf5(name)}"
            if is_file(name)
            else f"backbone.name: no such file: {name}"
        )
    if name not in APPLICATIONS:
        raise UsageError(
            f"backbone.name {name!r} is unknown{_did_you_mean(name, [*APPLICATIONS, PIXELS])}: expected a "
            "keras.applications model, such as ResNet50, or pixels, or the path of a .keras file"
        )
    minimum = APPLICATIONS[name].minimum_size
    if size is not None and min(size) < minimum:
        raise UsageError(
            f"backbone.image_size is {image_size!r}: {name} takes no side below {minimum} pixels"
        )
    _check_weights(name, weights)


def _check_pixels(weights: str, pooling: str, image_size: int | None) -> None:
    if weights not in ("imagenet", "none"):
        raise UsageError(
            f"backbone.weights is {weights!r}, but the backbone {PIXELS} has no weights: leave "
            "backbone.weights out"
        )
    if pooling != "avg":
        raise UsageError(
            f"backbone.pooling is {pooling!r}, but the backbone {PIXELS} has nothing to pool: leave "
            "backbone.pooling out"
        )
    if (image_size or 0) > _MOST_PIXELS_IMAGE_SIZE:
        raise UsageError(
            f"backbone.image_size is {image_size}: the backbone {PIXELS} takes a side of at most "
            f"{_MOST_PIXELS_IMAGE_SIZE} pixels, of which each adds to the feature's length"
        )


def load_backbone(
    name: str,
    weights: str,
    pooling: str,
    image_size: int | None,
    output: str | None = None,
    seed: int = 0,
) -> Backbone:
    """Builds the model and loads its weights.

    Args:
        name, weights, pooling, image_size, output: As in :func:`check_backbone`.
        seed: Seeds the random weights of ``weights="none"``; the same seed gives the same
            weights in every process.

    Raises:
        UsageError: If the arguments, a weights file or a ``.keras`` model cannot be used.
        UnsupportedModelError: For ``pixels``, which is no Keras model.
        WeightsUnavailableError: If the ImageNet weights cannot be downloaded.
    """
    check_backbone(name, weights, pooling, image_size, output)
    if name == PIXELS:
        raise UnsupportedModelError(f"the backbone {PIXELS} is no Keras model: use the engine numpy")
    with settled_keras() as keras:
        core = load_core(name, weights, pooling, image_size, output, seed)
        model = _on_pixels(keras, core, pooling)
    return Backbone(
        architecture=core.architecture,
        model=model,
        image_size=core.image_size,
        feature_dim=model.output_shape[-1],
        pooling=pooling,
        preprocessing=core.preprocessing,
        weights_sha256=weights_digest(model),
        layers_sha256=layers_digest(model),
    )


def load_core(
    name: str,
    weights: str,
    pooling: str | None,
    image_size: int | None,
    output: str | None = None,
    seed: int = 0,
) -> Core:
    """Loads the Keras model of a backbone with its weights, for a part of a model that takes raw pixels.

    Args:
        name, weights, image_size, output, seed: As in :func:`load_backbone`.
        pooling: What an application pools its feature map by, or None for the feature map itself.
            A ``.keras`` model stays as it is.

    Raises:
        UsageError: If a weights file or a ``.keras`` model cannot be used.
        WeightsUnavailableError: If the ImageNet weights cannot be downloaded.
    """
    size = _image_size(image_size)
    with settled_keras() as keras:
        if is_saved_model(name):
            model, size = load_saved_model(keras, name, size, output)
            is_gray = model.inputs[0].shape[-1] == 1
            return Core(
                name=name,
                architecture=f"keras-model-{layers_digest(model)[:16]}",
                model=model,
                image_size=size,
                preprocess=gray if is_gray else lambda pixels: pixels,
                preprocessing="in the model",
            )
        known = APPLICATIONS[name]
        size = size or (known.image_size,) * 2
        return Core(
            name=name,
            architecture=name,
            model=_build_application(keras, name, weights, pooling, size, seed),
            image_size=size,
            preprocess=getattr(keras.applications, known.module).preprocess_input,
            preprocessing=f"keras.applications.{known.module}.preprocess_input",
        )


def _image_size(image_size: Any) -> tuple[int, int] | None:
    """``(height, width)`` of the config's value, None for null; refuses anything else."""
    if image_size is None:
        return None
    # bool is an int, and True is no size.
    if type(image_size) is not int or image_size not in IMAGE_SIZES:
        raise UsageError(
            f"backbone.image_size is {image_size!r}: expected a side in pixels, "
            f"{IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}, or null"
        )
    return image_size, image_size


def is_file(path: str) -> bool:
    """Whether there is a file at `path`; False where it cannot be told."""
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long, or a folder that may not be looked into
        return False


def _did_you_mean(given: str, choices: Mapping[str, object] | Sequence[str]) -> str:
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(given.lower(), by_lower, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(by_lower[match] for match in close)}?)" if close else ""


def _check_weights(name: str, weights: str) -> None:
    if weights == "bundled" and name != BUNDLED_NAME:
        raise UsageError(
            f"backbone.weights is bundled, but the package bundles weights of {BUNDLED_NAME} only: "
            f"choose backbone.name={BUNDLED_NAME}, or imagenet, none or a path for {name}"
        )
    if weights in WEIGHTS_WORDS:
        return
    if not weights.endswith(".h5"):
        raise UsageError(
            f"backbone.weights is {weights!r}{_did_you_mean(weights, WEIGHTS_WORDS)}: expected "
            f"{', '.join(WEIGHTS_WORDS)} or the path of a .h5 weights file"
        )
    if not is_file(weights):
        raise UsageError(f"backbone.weights: no such file: {weights}")


def _build_application(
    keras: Any, name: str, weights: str, pooling: str | None, size: tuple[int, int], seed: int
) -> Any:
    build = getattr(keras.applications, name)
    options = {"include_top": False, "input_shape": (*size, 3), "pooling": pooling}
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


def _on_pixels(keras: Any, core: Core, pooling: str) -> Any:
    """The model from uint8 pixels ``[n, height, width, 3]`` to float32 ``[n, feature_dim]``."""
    pixels = keras.Input((*core.image_size, 3), dtype="uint8", name="pixels")
    features = core(keras, keras.ops.cast(pixels, "float32"))
    if len(features.shape) == 4:
        layer = {"avg": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D"}[pooling]
        features = getattr(keras.layers, layer)()(features)
    return keras.Model(pixels, keras.ops.cast(features, "float32"))
