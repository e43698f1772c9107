"""Keras and OpenVINO, loaded without what they write and send; Keras with settings that never vary."""

import importlib.util
import os
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imgindex.errors import MachineError, UsageError
from imgindex.models.cache import cache_folder

# Whatever of Keras's global state can decide a feature, by the name that `keras.config` has for it. A user's
# keras.json and process can set each of them.
KERAS_SETTINGS: Mapping[str, Any] = types.MappingProxyType(
    {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last", "dtype_policy": "float32"}
)
_BACKEND = "tensorflow"
# Distributions of which any provides a library.
_DISTRIBUTIONS = {"annoy": ("annoy", "annoy-mm"), "tensorflow": ("tensorflow", "tensorflow-cpu")}

# Keras has one floatx for all threads.
_lock = threading.RLock()


@contextmanager
def settled_keras() -> Iterator[Any]:
    """Yields Keras with `KERAS_SETTINGS`, without progress bars and warnings; then all is as it was before.

    Whatever makes or traces a model does it inside, one thread after the other.

    Raises:
      UsageError: this process already uses Keras with another backend.
      MachineError: Keras cannot be loaded.
    """
    with _lock, ExitStack() as stack:
        keras = _load_keras()
        if keras.config.backend() != _BACKEND:
            raise UsageError(
                f"this process uses Keras with the backend {keras.config.backend()}: start it with "
                f"KERAS_BACKEND={_BACKEND}, or use imgindex in a process of its own"
            )
        if importlib.util.find_spec("tf_keras") is None:
            # Otherwise TensorFlow fails when it is asked whether something is a Keras model.
            stack.enter_context(_environment(TF_USE_LEGACY_KERAS="0"))
        before = {name: getattr(keras.config, name)() for name in KERAS_SETTINGS}
        stack.callback(_set_keras, keras, before)
        _set_keras(keras, KERAS_SETTINGS)
        if keras.config.is_interactive_logging_enabled():
            stack.callback(keras.config.enable_interactive_logging)
            keras.config.disable_interactive_logging()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield keras


def _set_keras(keras: Any, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        getattr(keras.config, f"set_{name}")(value)


def _load_keras() -> Any:
    """Imports Keras for TensorFlow, without the greetings that its C++ part writes to file descriptor 2."""
    if "keras" in sys.modules:
        return sys.modules["keras"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    own = {"KERAS_BACKEND": _BACKEND}
    if "KERAS_HOME" not in os.environ and not os.path.exists(os.path.expanduser("~/.keras")):
        own["KERAS_HOME"] = str(cache_folder() / "keras")  # for its keras.json and its downloads
    if "MPLCONFIGDIR" not in os.environ:  # Keras imports Matplotlib, which makes this folder
        own["MPLCONFIGDIR"] = str(cache_folder() / "matplotlib")
    sys.stderr.flush()
    with _environment(**own), tempfile.TemporaryFile() as greetings:
        stderr = os.dup(2)
        os.dup2(greetings.fileno(), 2)
        try:
            import keras
        except Exception as error:
            raise _cannot_load("Keras", error) from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    return keras


def load_openvino() -> Any:
    """Imports OpenVINO without its telemetry, which looks up a host and writes into the home directory.

    Raises:
      MachineError: it cannot be loaded.
    """
    with _lock:
        if "openvino" in sys.modules:
            return sys.modules["openvino"]
        telemetry = sys.modules.get("openvino_telemetry")
        # What is None there cannot be imported: OpenVINO takes a stub of its own instead.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        except Exception as error:
            raise _cannot_load("OpenVINO", error) from error
        finally:
            del sys.modules["openvino_telemetry"]
            if telemetry is not None:
                sys.modules["openvino_telemetry"] = telemetry
    return openvino


def has_bfloat16() -> bool:
    """Whether OpenVINO finds bfloat16 instructions on this CPU."""
    openvino = load_openvino()
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def version_of(library: str) -> str:
    """A library's version, whichever distribution it comes from. Raises PackageNotFoundError for none."""
    for distribution in _DISTRIBUTIONS.get(library, (library,)):
        with suppress(PackageNotFoundError):
            return version(distribution)
    raise PackageNotFoundError(library)


def tensorflow_version() -> str:
    """TensorFlow's version, without loading it. Raises MachineError where it is not installed."""
    try:
        return version_of("tensorflow")
    except PackageNotFoundError as error:
        raise MachineError(
            f"TensorFlow is not installed, neither as {' nor as '.join(_DISTRIBUTIONS['tensorflow'])}: "
            "pip install tensorflow"
        ) from error


def _cannot_load(library: str, error: Exception) -> Exception:
    """What to raise for the `error` of an import."""
    if isinstance(error, MemoryError):
        return MemoryError(*error.args)
    found = f"{library} cannot be loaded ({type(error).__name__}: {first_line(error)})"
    settings = _keras_json(error)
    if settings:
        return MachineError(f"{found}: correct {settings}, or delete it")
    return MachineError(f"{found}: install {library.lower()} and tensorflow anew")


def _keras_json(error: Exception) -> Path | None:
    """The file of settings that Keras was reading when it raised `error`, if it was."""
    trace = error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_globals
        if names.get("__name__") == "keras.src.backend.config" and trace.tb_next is None:
            return Path(names["_config_path"])
        trace = trace.tb_next
    return None


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    """Sets environment variables for a while."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def first_line(error: BaseException) -> str:
    """What an error of a framework says, on one short line for a message."""
    lines = [line.strip(" :.") for line in str(error).splitlines()]
    # OpenVINO begins with where in its sources it happened, and with what it checked there.
    said = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    line = said[0] if said else type(error).__name__
    return line if len(line) <= 200 else f"{line[:199]}…"
