"""Backbones: Keras models that map raw RGB pixels to one pooled feature per image.

A backbone is an application of ``keras.applications`` without its classifier, a preset of KerasHub, or a
saved ``.keras`` model. ``pixels`` is one without Keras: its feature is the image itself.
Importing this module loads neither Keras nor TensorFlow; :func:`check_backbone` refuses what
it can without them, :func:`load_backbone` builds the model.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgindex.errors import UnsupportedModelError, UsageError
from imgindex.models.applications import APPLICATIONS, BUNDLED_NAME, build_application
from imgindex.models.digests import layers_digest, weights_digest
from imgindex.models.frameworks import first_line, settled_keras
from imgindex.models.hub import check_preset, is_folder, load_preset
from imgindex.models.pooling import POOLINGS, pooled
from imgindex.models.resizing import IMAGENET_MEAN, RESIZES, Color, Resizing
from imgindex.models.saved_models import describe_hdf5, gray, is_saved_model, load_saved_model

WEIGHTS_WORDS = ("imagenet", "bundled", "none")

# The baseline: an image's RGB values, row by row. PCA takes memory and time that grow with powers of them.
PIXELS = "pixels"
PIXELS_IMAGE_SIZE = 32
_MOST_PIXELS_IMAGE_SIZE = 64

IMAGE_SIZES = range(32, 2049)


@dataclass(frozen=True)
class Backbone:
    """A loaded model and what decides its features.

    Attributes:
        architecture: The ``keras.applications`` name, ``keras_hub`` and the class of a preset's model, or a
            digest of a ``.keras`` model's layers.
        model: ``keras.Model`` from raw RGB pixels, uint8 ``[n, height, width, 3]``, to pooled
            features, float32 ``[n, feature_dim]``. Preprocessing is inside.
        resizing: How an image is resized to the ``(height, width)`` that the model takes.
        feature_dim: Length of one feature.
        pooling: One of `POOLINGS`.
        preprocessing: Full name of the function that the model applies to the pixels, of a preset with its
            numbers, or ``in the model`` for a ``.keras`` model.
        weights_sha256: :func:`weights_digest` of the model, wherever its weights came from.
        layers_sha256: :func:`layers_digest` of the model.
        mirror: Whether a feature is the mean of those of the image and of its mirror image.
    """

    architecture: str
    model: Any
    resizing: Resizing
    feature_dim: int
    pooling: str
    preprocessing: str
    weights_sha256: str
    layers_sha256: str
    mirror: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` that the model takes, in pixels."""
        return self.resizing.size


@dataclass(frozen=True)
class Core:
    """A loaded Keras model, which takes preprocessed pixels.

    Attributes:
        name: The application, the path of the ``.keras`` model, or that of the preset's folder.
        architecture: As in :class:`Backbone`.
        model: ``keras.Model`` of one input and one output: features ``[n, d]``, or a feature map
            ``[n, height, width, d]``.
        image_size: ``(height, width)`` that the model is run at, in pixels.
        preprocess: From RGB in 0..255, float32 ``[n, height, width, 3]``, to what the model takes.
        preprocessing: As in :class:`Backbone`.
        interpolation: How images are resized, one of `INTERPOLATIONS`.
        fill: The color that the preprocessing maps to about zero.
    """

    name: str
    architecture: str
    model: Any
    image_size: tuple[int, int]
    preprocess: Callable[[Any], Any]
    preprocessing: str
    interpolation: str = "bilinear"
    fill: Color = IMAGENET_MEAN

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
    name: str,
    weights: str,
    pooling: str,
    image_size: int | None,
    output: str | None = None,
    resize: str = "stretch",
    mirror: bool = False,
) -> None:
    """Refuses what can be refused without loading Keras.

    Args:
        name: A ``keras.applications`` name, ``pixels``, the path of a ``.keras`` model, or that of the folder
            of a KerasHub preset.
        weights: ``imagenet``, ``bundled``, ``none`` or the path of a ``.h5`` weights file. With a path
            the application has the layers that it has with ``imagenet``. For a ``.keras`` model and a
            preset, which hold their weights, only ``imagenet`` and ``none``; both mean these weights.
            ``pixels`` has none: it takes the same two, which mean nothing.
        pooling: One of `POOLINGS`, of which ``cls`` is for presets that have a class token. ``pixels`` has
            nothing to pool and takes ``avg`` alone, the default.
        image_size: Side of the square input in pixels, or None for the
            model's own size.
        output: Of a ``.keras`` model the name of the output, or of the layer, that gives the features, or
            None for the only output.
        resize: One of `RESIZES`.
        mirror: Whether a feature is to be the mean of those of the image and of its mirror image, which
            ``pixels`` has no use for.

    Raises:
        UsageError: If one of them cannot be right.
        MachineError: If KerasHub, which a preset needs, is not installed.
    """
    if pooling not in POOLINGS:
        raise UsageError(f"backbone.pooling is {pooling!r}: expected one of {', '.join(POOLINGS)}")
    if resize not in RESIZES:
        raise UsageError(f"backbone.resize is {resize!r}: expected one of {', '.join(RESIZES)}")
    size = _image_size(image_size)
    if pooling == "cls" and not is_preset(name):
        raise UsageError(
            f"backbone.pooling is 'cls', but imgindex knows no class token of {name}: set it to avg, max or "
            "gem"
        )
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
        _check_pixels(weights, pooling, image_size, mirror)
        return
    if name.endswith((".h5", ".hdf5")):
        raise UsageError(
            f"backbone.name: {name} {describe_hdf5(name)}"
            if is_file(name)
            else f"backbone.name: no such file: {name}"
        )
    if is_preset(name):
        check_preset(name, weights, pooling, size)
        return
    if name not in APPLICATIONS:
        raise UsageError(
            f"backbone.name {name!r} is unknown{_did_you_mean(name, [*APPLICATIONS, PIXELS])}: expected a "
            "keras.applications model, such as ResNet50, or pixels, or the path of a .keras file or of a "
            "KerasHub preset's folder"
        )
    minimum = APPLICATIONS[name].minimum_size
    if size is not None and min(size) < minimum:
        raise UsageError(
            f"backbone.image_size is {image_size!r}: {name} takes no side below {minimum} pixels"
        )
    _check_weights(name, weights)


def _check_pixels(weights: str, pooling: str, image_size: int | None, mirror: bool) -> None:
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
    if mirror:
        raise UsageError(
            f"backbone.mirror is True, but the backbone {PIXELS} compares pixels by their places, which a "
            "mirror image would blur: leave backbone.mirror out"
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
    resize: str = "stretch",
    mirror: bool = False,
    *,
    seed: int = 0,
) -> Backbone:
    """Builds the model and loads its weights.

    Args:
        name, weights, pooling, image_size, output, resize, mirror: As in :func:`check_backbone`.
        seed: Seeds the random weights of ``weights="none"``; the same seed gives the same
            weights in every process.

    Raises:
        UsageError: If the arguments, a weights file, a preset or a ``.keras`` model cannot be used.
        MachineError: If KerasHub, which a preset or a ``.keras`` model needs, cannot be loaded.
        UnsupportedModelError: For ``pixels``, which is no Keras model.
        WeightsUnavailableError: If the ImageNet weights cannot be downloaded.
    """
    check_backbone(name, weights, pooling, image_size, output, resize, mirror)
    if name == PIXELS:
        raise UnsupportedModelError(f"the backbone {PIXELS} is no Keras model: use the engine numpy")
    with settled_keras() as keras:
        core = load_core(name, weights, pooling, image_size, output, seed)
        model = _on_pixels(keras, core, pooling, mirror)
    return Backbone(
        architecture=core.architecture,
        model=model,
        resizing=Resizing.filled(core.image_size, resize, core.fill, core.interpolation),
        feature_dim=model.output_shape[-1],
        pooling=pooling,
        preprocessing=core.preprocessing,
        weights_sha256=weights_digest(model),
        layers_sha256=layers_digest(model),
        mirror=mirror,
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
        pooling: How an application pools its feature map; None keeps the feature map. ``cls`` makes a preset
            give its class token. A ``.keras`` model stays as it is.

    Raises:
        UsageError: If a weights file, a preset or a ``.keras`` model cannot be used.
        MachineError: If KerasHub, which a preset or a ``.keras`` model needs, cannot be loaded.
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
        if is_preset(name):
            preset = load_preset(keras, check_preset(name, weights, pooling or "avg", size), size, pooling)
            return Core(
                name=name,
                architecture=preset.architecture,
                model=preset.core,
                image_size=preset.size,
                preprocess=lambda pixels: pixels,
                preprocessing=preset.preprocessing,
                interpolation=preset.interpolation,
                fill=preset.fill,
            )
        known = APPLICATIONS[name]
        size = size or (known.image_size,) * 2
        return Core(
            name=name,
            architecture=name,
            model=build_application(keras, name, weights, pooling, size, seed),
            image_size=size,
            preprocess=getattr(keras.applications, known.module).preprocess_input,
            preprocessing=f"keras.applications.{known.module}.preprocess_input",
            fill=known.fill,
        )


def is_preset(name: str) -> bool:
    """Whether a backbone's name means the folder of a KerasHub preset, be that there or not."""
    if name in APPLICATIONS or name == PIXELS or name.endswith((".keras", ".h5", ".hdf5")):
        return False
    return "/" in name or is_folder(name)


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


def _on_pixels(keras: Any, core: Core, pooling: str, mirror: bool) -> Any:
    """The model from uint8 pixels ``[n, height, width, 3]`` to float32 ``[n, feature_dim]``."""
    pixels = keras.Input((*core.image_size, 3), dtype="uint8", name="pixels")
    values = keras.ops.cast(pixels, "float32")
    if mirror:
        values = keras.ops.concatenate([values, keras.ops.flip(values, axis=2)])
    features = core(keras, values)
    if len(features.shape) == 4:
        features = pooled(keras, features, pooling)
    features = keras.ops.cast(features, "float32")
    if mirror:
        features = keras.ops.mean(keras.ops.reshape(features, (2, -1, features.shape[-1])), axis=0)
    return keras.Model(pixels, features)
