"""Saved Keras models as backbones: which of their inputs and outputs is used, and at what size."""

import json
import zipfile
from pathlib import Path
from typing import Any

from imgindex.errors import UsageError
from imgindex.models.frameworks import first_line
from imgindex.models.hub import load_keras_hub, needs_keras_hub

_CHANNELS = (1, 3)
_HDF5_START = b"\x89HDF\r\n\x1a\n"
_CONVERT = "in Keras 3 run keras.saving.load_model('NAME.h5', compile=False).save('NAME.keras')"


def is_saved_model(name: str) -> bool:
    """Whether a backbone's name is the path of a saved model."""
    return name.endswith(".keras")


def load_saved_model(
    keras: Any, name: str, given: tuple[int, int] | None, output: str | None
) -> tuple[Any, tuple[int, int]]:
    """The model of a ``.keras`` file, of one input and one output, and the ``(height, width)`` to run it at.

    Args:
        keras: The module ``keras``, as `settled_keras` yields it.
        name: The path of the file.
        given: The ``(height, width)`` that is wanted, None for the model's own.
        output: Names the output, or the layer, that gives the features; None for the only output.

    Raises:
        UsageError: If the model cannot be used; the message lists what it has.
        MachineError: If it has layers of KerasHub, which is not installed.
    """
    if needs_keras_hub(name):
        load_keras_hub(name)  # so that Keras knows its classes
    try:
        core = keras.saving.load_model(name, compile=False, safe_mode=True)
    except Exception as error:  # A foreign file can fail anywhere in Keras.
        raise _unreadable(name, error) from error
    if not getattr(core, "inputs", None):
        raise UsageError(
            f"{name}: Keras does not know the shape of this model's input: build the model from a "
            "keras.Input and save it again"
        )
    core = _with_one_input(keras, name, core, _feature_of(keras, name, core, output))
    pixels, features = core.inputs[0].shape, core.outputs[0].shape
    if len(pixels) != 4 or pixels[-1] not in _CHANNELS:
        first = len(pixels) == 4 and pixels[1] in _CHANNELS
        raise UsageError(
            f"{name}: takes {_shape(pixels)}{', with channels first' if first else ''}; imgindex gives a "
            "model images [n, height, width, 3] (RGB) or [n, height, width, 1] (gray)"
        )
    if len(features) not in (2, 4) or features[-1] is None:
        raise UsageError(
            f"{name}: gives {_shape(features)}, but features must be [n, d] or [n, height, width, d]: pool "
            "them in the model, or name another output or layer in backbone.output"
        )
    return core, _size(name, tuple(pixels[1:3]), given)


def gray(pixels: Any) -> Any:
    """Gray values ``[n, height, width, 1]`` of RGB pixels in 0..255: whole numbers, those of Pillow's mode L.

    Every product and sum is a whole number below 2**24, which float32 holds exactly.
    """
    red, green, blue = (pixels[..., channel : channel + 1] for channel in range(3))
    weighted = red * 19595.0 + green * 38470.0 + blue * 7471.0
    return (weighted + 32768.0) // 65536.0


def describe_hdf5(name: str) -> str:
    """Says of an HDF5 file that is given for a model what it is, and what to do."""
    import h5py

    try:
        with h5py.File(name) as file:
            has_model, saved_by = "model_config" in file.attrs, _text(file.attrs.get("keras_version", "?"))
    except OSError as error:
        return f"cannot be read as HDF5 ({first_line(error)}); expected the path of a .keras file"
    if not has_model:
        return (
            "holds weights and no model: give it as backbone.weights, and the keras.applications model that "
            "they belong to as backbone.name"
        )
    return f"is an HDF5 model (keras_version {saved_by}), and imgindex reads .keras files: {_CONVERT}"


def _unreadable(name: str, error: Exception) -> UsageError:
    """What to raise where Keras fails to read a model."""
    with Path(name).open("rb") as file:
        is_hdf5 = file.read(len(_HDF5_START)) == _HDF5_START
    if is_hdf5:
        return UsageError(f"{name}: {describe_hdf5(name)}, after renaming it to NAME.h5")
    saved_by = _keras_version(name)
    if saved_by.startswith(("1.", "2.")):
        return UsageError(
            f"{name}: Keras 2 saved this model (keras_version {saved_by}), and imgindex reads models of "
            f"Keras 3: in Keras 2 save it as NAME.h5, then {_CONVERT}"
        )
    if "Lambda" in str(error):
        return UsageError(
            f"{name}: has a Lambda layer, whose code imgindex does not run: replace it by "
            "a built-in layer and save the model again"
        )
    return UsageError(
        f"{name}: Keras cannot read this model ({first_line(error)}): save it with "
        "model.save(...) in Keras 3, from built-in layers or KerasHub's only"
    )


def _keras_version(name: str) -> str:
    """The `keras_version` that a ``.keras`` file states; empty where it states none."""
    try:
        with zipfile.ZipFile(name) as archive:
            return _text(json.loads(archive.read("metadata.json"))["keras_version"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return ""


def _text(value: Any) -> str:
    """`value` on one short line for a message."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return " ".join(text.split())[:40]


def _feature_of(keras: Any, name: str, core: Any, wanted: str | None) -> Any:
    """The output tensor that gives the features; None stands for the model's only one."""
    if isinstance(core, keras.Sequential):
        names = [core.layers[-1].name]
    else:
        names = sorted(core.output) if isinstance(core.output, dict) else core.output_names
    outputs = list(zip(names, core.outputs, strict=True))
    if wanted is None:
        if len(outputs) == 1:
            return None
        listed = " and ".join(f"{name} {_shape(tensor.shape)}" for name, tensor in outputs)
        raise UsageError(
            f"{name}: has {len(outputs)} outputs, {listed}: name the one that gives the features, as in "
            f"--set backbone.output={names[0]}"
        )
    found = [tensor for name, tensor in outputs if name == wanted]
    if found and len(outputs) == 1:
        return None
    layers = {layer.name: layer for layer in core.layers}
    if not found and wanted in layers:
        found = keras.tree.flatten(layers[wanted].output)
    if len(found) != 1:
        what = f"{len(found)} outputs" if found else "no output and no layer"
        raise UsageError(
            f"backbone.output is {wanted!r}, but {name} has {what} of that name; its outputs are "
            f"{', '.join(names)}, its last layers {', '.join(list(layers)[-5:])}"
        )
    return found[0]


def _with_one_input(keras: Any, name: str, core: Any, feature: Any) -> Any:
    """`core`, cut down to `feature` where that is not None, and to the one input that it is made of."""
    if len(core.inputs) == 1:
        return core if feature is None else keras.Model(core.inputs[0], feature)
    feature = core.outputs[0] if feature is None else feature
    for tensor in core.inputs:
        try:
            return keras.Model(tensor, feature)
        except ValueError:  # it takes others, too
            continue
    listed = " and ".join(f"{tensor.name} {_shape(tensor.shape)}" for tensor in core.inputs)
    raise UsageError(
        f"{name}: needs {len(core.inputs)} inputs, {listed}, but imgindex has nothing but images to give: "
        "save a model of one input [n, height, width, 3]"
    )


def _size(name: str, own: tuple[int | None, int | None], given: tuple[int, int] | None) -> tuple[int, int]:
    """The ``(height, width)`` to run a model at that takes its `own`, None where it takes any."""
    size = given or own
    if None in size:
        raise UsageError(f"{name}: takes images of any size: set backbone.image_size, such as 224")
    if any(side not in (None, wanted) for side, wanted in zip(own, size, strict=True)):
        raise UsageError(
            f"{name}: takes images of {own} (height, width), but backbone.image_size is "
            f"{given}: leave backbone.image_size out"
        )
    return size  # type: ignore[return-value]


def _shape(shape: Any) -> str:
    """The shape of a batch as messages write it: the images are `n`, other free sizes `any`."""
    sides = ["n", *("any" if side is None else str(side) for side in shape[1:])]
    return f"[{', '.join(sides)}]"
