"""KerasHub presets as backbones: folders that hold a model's settings and weights, and what it is given.

Importing this module loads neither Keras nor KerasHub; :func:`check_preset` refuses what it can without them,
:func:`load_preset` builds the model.
"""

import importlib.util
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from imgindex.errors import MachineError, UsageError
from imgindex.models.frameworks import first_line
from imgindex.models.resizing import INTERPOLATIONS, Color

PRESET_CONFIG = "config.json"
_CONVERTER = "image_converter.json"
_WEIGHTS = ("model.weights.h5", "model.weights.json")  # the latter lists the files of a large model
_EXTRA = "pip install 'imgindex[hub]'"
# In the config of a model, which names the module and the registered name of each class.
_KERAS_HUB = re.compile(rb'"(module|registered_name)"\s*:\s*"keras_hub[.>]')


@dataclass(frozen=True)
class _Kind:
    """What imgindex must know of a class of KerasHub's models before it loads one.

    Attributes:
        size_argument: The argument of its constructor that sets the image size; None where its position
            embeddings are of one size.
        other_tokens: Says by a model's settings how many tokens it gives before those of the patches. The
            first of them is the class token. None for a model that gives a feature map or a feature.
        pools: Whether the model pools by itself, as it was trained to.
    """

    size_argument: str | None = None
    other_tokens: Callable[[Mapping[str, Any]], int] | None = None
    pools: bool = False


def _class_and_registers(settings: Mapping[str, Any]) -> int:
    return 1 + int(settings.get("num_register_tokens", 0))


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "CLIPVisionEncoder": _Kind(other_tokens=lambda settings: 1),
        "CSPNetBackbone": _Kind("image_shape"),
        "DINOV2Backbone": _Kind("image_shape", _class_and_registers),
        "DINOV3Backbone": _Kind("image_shape", _class_and_registers),
        "DeiTBackbone": _Kind(other_tokens=lambda settings: 2),  # the class token and that of distillation
        "DenseNetBackbone": _Kind("image_shape"),
        "EfficientNetBackbone": _Kind("input_shape"),
        "MetaCLIP2VisionEncoder": _Kind(other_tokens=lambda settings: 1),
        "MobileNetBackbone": _Kind("image_shape"),
        "ResNetBackbone": _Kind("image_shape"),
        "SigLIPVisionEncoder": _Kind(pools=True),
        "SwinTransformerBackbone": _Kind(other_tokens=lambda settings: 0),
        "VGGBackbone": _Kind("image_shape"),
        "ViTBackbone": _Kind(other_tokens=lambda settings: int(settings.get("use_class_token", True))),
        "XceptionBackbone": _Kind("image_shape"),
    }
)
# Models of images and text, of which the image tower is the backbone.
_TWO_TOWERS = ("CLIPBackbone", "MetaCLIP2Backbone", "SigLIPBackbone")
_TOWER = "vision_encoder"


@dataclass(frozen=True)
class Preset:
    """The model that a preset's files describe.

    Attributes:
        folder: The folder of the files.
        class_name: The name of the image tower's class.
        settings: The arguments of the image tower's constructor.
        has_towers: Whether the preset has a text tower, too.
    """

    folder: str
    class_name: str
    settings: Mapping[str, Any]
    has_towers: bool

    @property
    def kind(self) -> _Kind:
        """The kind of the image tower."""
        return _KINDS[self.class_name]

    @property
    def size(self) -> tuple[int | None, int | None]:
        """``(height, width)`` of the images that the model takes as it is saved, None for any."""
        shape = self.settings.get(self.kind.size_argument or "image_shape") or (None, None)
        return shape[0], shape[1]

    @property
    def has_class_token(self) -> bool:
        """Whether a class token is among what the model gives."""
        return self.kind.other_tokens is not None and self.kind.other_tokens(self.settings) > 0


@dataclass(frozen=True)
class LoadedPreset:
    """A preset's model and what decides the images that it is given.

    Attributes:
        architecture: The name of the class of its image tower.
        core: ``keras.Model`` from RGB values 0 to 255, float32 ``[n, height, width, 3]``, to a feature map
            ``[n, height, width, d]``, where the patches of a vision transformer are one of the width 1, or
            to features ``[n, d]``.
        size: ``(height, width)`` that the model takes.
        interpolation: One of `INTERPOLATIONS`.
        fill: The color that the preprocessing maps to about zero.
        preprocessing: How `core` scales the values before all else, with the preset's numbers.
    """

    architecture: str
    core: Any
    size: tuple[int, int]
    interpolation: str
    fill: Color
    preprocessing: str


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder at `path`; False where it cannot be told."""
    try:
        return Path(path).is_dir()
    except OSError:  # a name that is too long, or below a folder that may not be looked into
        return False


def preset_files(folder: str) -> list[Path]:
    """The files of a preset that decide its features, in the order of their names."""
    found = Path(folder).glob("model*.weights.*")
    return sorted([*found, *(Path(folder) / name for name in (PRESET_CONFIG, _CONVERTER))])


def needs_keras_hub(name: str) -> bool:
    """Whether KerasHub must be there to load the ``.keras`` file of this path."""
    try:
        with zipfile.ZipFile(name) as archive:
            return _KERAS_HUB.search(archive.read("config.json")) is not None
    except (OSError, KeyError, zipfile.BadZipFile):  # whoever loads it says more
        return False


def check_keras_hub(name: str) -> None:
    """Raises MachineError where KerasHub, which the backbone `name` needs, is not installed."""
    if importlib.util.find_spec("keras_hub") is None:
        raise MachineError(f"{name} needs KerasHub, which is not installed: {_EXTRA}")


def load_keras_hub(name: str) -> Any:
    """Imports KerasHub for the backbone `name`, inside of `settled_keras`. Raises MachineError."""
    check_keras_hub(name)
    try:
        import keras_hub
    except Exception as error:  # of its own dependencies, which may not fit each other
        raise MachineError(
            f"KerasHub cannot be loaded ({type(error).__name__}: {first_line(error)}): {_EXTRA} anew"
        ) from error
    return keras_hub


def check_preset(name: str, weights: str, pooling: str, image_size: tuple[int, int] | None) -> Preset:
    """The preset in the folder `name`, without loading Keras.

    Args:
        name: The path of the folder.
        weights, pooling: As the config has them.
        image_size: The ``(height, width)`` that is wanted, None for the preset's own.

    Raises:
        UsageError: There is no preset of a backbone for images, or it does not do what is wanted.
        MachineError: KerasHub is not installed.
    """
    if "://" in name:
        raise UsageError(
            f"backbone.name is {name!r}, but imgindex takes presets from local folders alone: save it to one "
            f"with keras_hub.models.Backbone.from_preset({name!r}).save_to_preset(FOLDER) and "
            f"keras_hub.layers.ImageConverter.from_preset({name!r}).save_to_preset(FOLDER)"
        )
    preset = _read(Path(name))
    if weights not in ("imagenet", "none"):
        raise UsageError(
            f"backbone.weights is {weights!r}, but the preset {name} holds its own weights: leave "
            "backbone.weights out"
        )
    if preset.kind.pools and pooling != "avg":
        raise UsageError(
            f"backbone.pooling is {pooling!r}, but the model of {name} pools its tokens by itself, as it was "
            "trained to: leave backbone.pooling out"
        )
    if pooling == "cls" and not preset.has_class_token:
        raise UsageError(
            f"backbone.pooling is 'cls', but the model of {name} has no class token: set it to avg, max "
            "or gem"
        )
    if image_size not in (None, preset.size) and preset.kind.size_argument is None:
        raise UsageError(
            f"backbone.image_size is {image_size}, but the position embeddings of {name} are those of images "
            f"of {preset.size} (height, width): leave backbone.image_size out"
        )
    check_keras_hub(name)
    return preset


def load_preset(
    keras: Any, preset: Preset, given: tuple[int, int] | None, pooling: str | None
) -> LoadedPreset:
    """Loads the model of a preset.

    Args:
        keras: The module ``keras``, as `settled_keras` yields it.
        preset: As `check_preset` gives it for `given` and `pooling`.
        given: The ``(height, width)`` that is wanted, None for the preset's own.
        pooling: ``cls`` makes `LoadedPreset.core` give the class token; all others are left to the caller.

    Raises:
        UsageError: The files do not fit each other, or this KerasHub.
        MachineError: KerasHub cannot be loaded.
    """
    keras_hub = load_keras_hub(preset.folder)
    try:
        converter = keras.saving.deserialize_keras_object(_json(Path(preset.folder), _CONVERTER))
        own = converter.image_size
        scale, offset, interpolation = converter.scale, converter.offset, converter.interpolation
    except Exception as error:  # a foreign file can fail anywhere in Keras
        raise _unreadable(preset, error) from error
    if interpolation not in INTERPOLATIONS:
        raise UsageError(
            f"{preset.folder}: images are to be resized by the interpolation {interpolation}, and imgindex "
            f"has {' and '.join(INTERPOLATIONS)}: change it in {_CONVERTER}"
        )
    size = _size(preset, given, own and tuple(own))
    scale, offset = (1.0 if scale is None else scale), (0.0 if offset is None else offset)
    try:
        core = _core(keras, keras_hub, preset, size, keras.layers.Rescaling(scale, offset), pooling)
    except Exception as error:  # as above
        raise _unreadable(preset, error) from error
    return LoadedPreset(
        architecture=f"keras_hub.{preset.class_name}",
        core=core,
        size=size,
        interpolation=interpolation,
        fill=_mapped_to_zero(scale, offset),
        preprocessing=f"keras.layers.Rescaling(scale={scale}, offset={offset})",
    )


def _core(
    keras: Any, keras_hub: Any, preset: Preset, size: tuple[int, int], rescale: Any, pooling: str | None
) -> Any:
    """`LoadedPreset.core`, whose first layer is `rescale`."""
    argument = preset.kind.size_argument
    shape = {argument: (*size, 3)} if argument and preset.size not in (size, (None, None)) else {}
    model = keras_hub.models.Backbone.from_preset(preset.folder, **shape)
    tower = getattr(model, _TOWER) if preset.has_towers else model
    pixels = keras.Input((*size, 3), name="rgb")
    values = rescale(pixels)
    # Its one input may be in a dict, under a name of its own.
    found = tower(keras.tree.map_structure(lambda _: values, tower.input))
    if preset.kind.other_tokens is None:
        return keras.Model(pixels, found)
    if pooling == "cls":
        return keras.Model(pixels, found[:, 0])
    patches = found[:, preset.kind.other_tokens(preset.settings) :]
    return keras.Model(pixels, keras.ops.expand_dims(patches, 2))


def _mapped_to_zero(scale: Any, offset: Any) -> Color:
    """The color of which `scale` and `offset`, each a number or one for each channel, make about zero."""
    values = np.broadcast_to(-np.asarray(offset) / np.asarray(scale), 3)
    red, green, blue = np.clip(np.round(values), 0, 255).astype(int).tolist()
    return red, green, blue


def _size(
    preset: Preset, given: tuple[int, int] | None, converter: tuple[int, int] | None
) -> tuple[int, int]:
    """The ``(height, width)`` to run the model at; `converter` is that of the images that are made for it."""
    size = given or converter or preset.size
    if None in size:
        raise UsageError(f"{preset.folder}: takes images of any size: set backbone.image_size, such as 224")
    if size != preset.size and preset.kind.size_argument is None:
        raise UsageError(
            f"{preset.folder}: its {_CONVERTER} makes images of {size} (height, width), and its model takes "
            f"{preset.size}: save the preset again, with the converter that belongs to the model"
        )
    return size  # type: ignore[return-value]


def _unreadable(preset: Preset, error: Exception) -> UsageError:
    return UsageError(
        f"{preset.folder}: KerasHub cannot load this preset ({first_line(error)}): save it again, or install "
        "the version of KerasHub that saved it"
    )


def _read(folder: Path) -> Preset:
    if not is_folder(folder):
        raise UsageError(f"backbone.name: no such folder: {folder}")
    model = _json(folder, PRESET_CONFIG)
    try:
        has_towers = _class_name(model) in _TWO_TOWERS
        tower = model["config"][_TOWER] if has_towers else model
        name, settings = _class_name(tower), dict(tower["config"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"backbone.name: {folder} is no KerasHub preset, for its {PRESET_CONFIG} names no model of "
            "KerasHub: load it with keras_hub.models.Backbone.from_preset(…), and save it with "
            "save_to_preset(FOLDER)"
        ) from None
    if name not in _KINDS:
        raise UsageError(
            f"backbone.name: {folder} is a preset of {name}, which is no backbone for images: expected one "
            f"of {', '.join(sorted([*_KINDS, *_TWO_TOWERS]))}"
        )
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        raise UsageError(f"backbone.name: the preset {folder} has no {_WEIGHTS[0]}: save it again")
    _json(folder, _CONVERTER)
    return Preset(str(folder.absolute()), name, settings, has_towers)


def _class_name(found: Mapping[str, Any]) -> str:
    """The name of one of KerasHub's classes. Raises KeyError and ValueError where there is none."""
    package, name = found["registered_name"].split(">")
    if package != "keras_hub":
        raise ValueError(package)
    return str(name)


def _json(folder: Path, name: str) -> dict[str, Any]:
    """What a file of a preset says."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = (
            "save it with keras_hub.layers.ImageConverter.from_preset(…).save_to_preset(FOLDER)"
            if name == _CONVERTER
            else "expected a folder that a model's save_to_preset(FOLDER) has written"
        )
        raise UsageError(f"backbone.name: the folder {folder} has no {name}: {hint}") from None
    except OSError as error:
        raise UsageError(f"{folder / name}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"{folder / name}: is no JSON ({first_line(error)}): save the preset again"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"{folder / name}: holds no object: save the preset again")
    return content
