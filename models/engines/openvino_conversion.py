"""Backbones that are converted for OpenVINO, preprocessing included, and the cache that keeps them."""

import contextlib
import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from imgindex.errors import MachineError, OutputError, UnsupportedModelError, UsageError
from imgindex.io.digest_json import seal, unseal
from imgindex.models.applications import BUNDLED_WEIGHTS
from imgindex.models.backbones import WEIGHTS_WORDS, Backbone, is_preset, load_backbone
from imgindex.models.cache import cache_folder
from imgindex.models.engines.openvino_rewrites import rewrite
from imgindex.models.engines.tensorflow import trace
from imgindex.models.frameworks import (
    KERAS_SETTINGS,
    first_line,
    load_openvino,
    settled_keras,
    tensorflow_version,
)
from imgindex.models.hub import check_keras_hub, needs_keras_hub, preset_files
from imgindex.models.preprocess import PREPROCESSING
from imgindex.models.saved_models import is_saved_model
from imgindex.models.spec import Spec

_MODEL, _WEIGHTS, _SPEC = "model.xml", "model.bin", "spec.json"
_PARTIAL = ".partial-"
# Names what a conversion does besides what the libraries do, and how its digests are taken: a change of
# either is a change of this name.
_CONVERSION = "rewritten-3"
# What a conversion depends on, and random weights, which NumPy draws.
_LIBRARIES: tuple[str, ...] = ("imgindex", "keras", "numpy", "openvino")
# No conversion takes so long: one that is older has died.
_DEAD_SECONDS = 3600.0


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raises MemoryError where OpenVINO, whose every error is a RuntimeError, means that."""
    try:
        yield
    except RuntimeError as error:
        if re.search("Failed to allocate|bad_alloc|Cannot allocate memory|can't alloc", str(error)):
            raise MemoryError(str(error)) from error
        raise


def unable(verb: str, backbone: str, error: Exception) -> UnsupportedModelError:
    """The exception that says that OpenVINO cannot `verb` (convert, run) a backbone; `error` is the cause."""
    return UnsupportedModelError(
        f"OpenVINO cannot {verb} {backbone} ({first_line(error)}): set engine.name to tensorflow"
    )


@dataclass(frozen=True)
class ConvertedModel:
    """A backbone as OpenVINO reads it, in a file of the user's cache, with its spec beside it."""

    path: Path
    spec: Spec


def converted_model(
    name: str,
    weights: str,
    pooling: str,
    image_size: int | None,
    output: str | None = None,
    resize: str = "stretch",
    mirror: bool = False,
) -> ConvertedModel:
    """The converted backbone from the cache; where it is not there, or damaged, converts and keeps it.

    What is in the cache needs neither Keras nor TensorFlow, which take seconds to load.

    Raises:
      OutputError: the cache cannot be written.
      UnsupportedModelError: OpenVINO cannot convert the model; besides, whatever `load_backbone` raises.
    """
    folder = models_folder() / _cache_key(name, weights, pooling, image_size, output, resize, mirror)
    try:
        cached = _read(folder)
    except OSError as error:
        raise OutputError(
            f"cannot read the converted model in {folder}: {error.strerror}; make it readable, or name "
            "another cache folder with XDG_CACHE_HOME"
        ) from error
    if cached is None:
        backbone = load_backbone(name, weights, pooling, image_size, output, resize, mirror)
        try:
            _convert(backbone, folder)
        except (OSError, _NotSavedError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
            raise OutputError(
                f"cannot keep the converted model in {folder.parent}: {reason}; make it writable and make "
                "room there, or name another cache folder with XDG_CACHE_HOME"
            ) from error
        cached = ConvertedModel(folder / _MODEL, Spec.of(backbone))
    return cached


def _read(folder: Path) -> ConvertedModel | None:
    """The converted model in `folder`; None where a file is missing or does not match its digest.

    Raises OSError where that cannot be told, as when the process has too many files open.
    """
    try:
        content = unseal((folder / _SPEC).read_bytes())
        fields = content["spec"]
        spec = Spec.read(fields)
        if content["files"] != _digests(folder):
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None
    return ConvertedModel(folder / _MODEL, spec)


def _digests(folder: Path) -> dict[str, str]:
    return {name: _file_digest(folder / name) for name in (_MODEL, _WEIGHTS)}


def models_folder() -> Path:
    """Where the converted models lie. Raises MachineError where there is no place for them."""
    return cache_folder() / "openvino"


def _cache_key(
    name: str,
    weights: str,
    pooling: str,
    image_size: int | None,
    output: str | None = None,
    resize: str = "stretch",
    mirror: bool = False,
) -> str:
    """Names all that the conversion depends on: files by their content, libraries by version.

    Keras's own settings are the same for every conversion.
    """
    preset = preset_files(name) if is_preset(name) else None
    model_file = Path(name) if is_saved_model(name) else None
    weights_file = None if weights in WEIGHTS_WORDS else Path(weights)
    if weights == "bundled":
        weights_file = BUNDLED_WEIGHTS
    libraries = _LIBRARIES
    if preset or (model_file and needs_keras_hub(name)):
        check_keras_hub(name)
        libraries = (*_LIBRARIES, "keras-hub")
    try:
        files = preset and {file.name: _file_digest(file) for file in preset}
        model, kernels = (file and _file_digest(file) for file in (model_file, weights_file))
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from error
    parts = {
        "model": files or model or name,
        "weights": kernels or weights,
        "pooling": pooling,
        "image_size": image_size,
        **({} if output is None else {"output": output}),
        **({} if resize == "stretch" else {"resize": resize}),  # the spec beside the model has it
        **({"mirror": True} if mirror else {}),
        "decoding": PREPROCESSING,
        "conversion": _CONVERSION,
        "keras": dict(KERAS_SETTINGS),
        "versions": {
            **{library: version(library) for library in libraries},
            "tensorflow": tensorflow_version(),
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _NotSavedError(Exception):
    """OpenVINO could not write a model; it does not say why."""


def _convert(backbone: Backbone, folder: Path) -> None:
    """Converts `backbone` to the new directory `folder`, which appears whole or not at all."""
    openvino = load_openvino()
    try:
        with settled_keras(), memory_errors():  # it asks Keras what it is given
            model = openvino.convert_model(trace(backbone, None))
            rewrite(model)
    except (MemoryError, UsageError):
        raise
    except Exception as error:  # its frontend raises kinds of its own
        if sys.flags.optimize > 1:
            raise MachineError(
                "OpenVINO cannot convert a model in a Python without docstrings, which it reads: "
                "unset PYTHONOPTIMIZE for the first build"
            ) from error
        raise unable("convert", backbone.architecture, error) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    _delete_dead(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent))
    try:
        try:
            openvino.save_model(model, partial / _MODEL, compress_to_fp16=False)
            openvino.Core().read_model(partial / _MODEL)  # the end of a file may be missing without an error
        except RuntimeError as error:
            raise _NotSavedError(str(error)) from error
        sealed = seal({"spec": Spec.of(backbone).content, "files": _digests(partial)})
        (partial / _SPEC).write_bytes(sealed)
        if folder.exists() and _read(folder) is None:
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError:
        if _read(folder) is None:  # else another process was first with the same model
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _delete_dead(cache: Path) -> None:
    """Deletes what conversions have left that were killed."""
    for partial in cache.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):  # another process is quicker
            if time.time() - partial.stat().st_mtime > _DEAD_SECONDS:
                shutil.rmtree(partial)
