"""The engines that there are, by the name that `engine.name` of the config gives them."""

import functools
import importlib.metadata
import pkgutil
import re

from imgindex.errors import MachineError, UsageError
from imgindex.models.engines.protocol import EngineFactory

# Where each engine's factory is. Its module is loaded when the engine is first asked for. `auto` tries them
# in this order.
_FACTORIES: dict[str, EngineFactory | str] = {
    "openvino": "imgindex.models.engines.openvino:OpenVinoFactory",
    "tensorflow": "imgindex.models.engines.tensorflow:TensorFlowFactory",
    "numpy": "imgindex.models.engines.numpy:NumpyFactory",
}

# A name stands in configs and manifests.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def register(name: str, engine: EngineFactory) -> None:
    """Adds an engine to those of this process alone.

    Raises ValueError where the name is taken, is `auto`, or is not of lowercase letters, digits, - and _.
    """
    if not is_engine_name(name):
        raise ValueError(f"{name!r} is no name for an engine; use lowercase letters, digits, - and _")
    if name in _FACTORIES:
        raise ValueError(f"an engine {name} is registered already")
    _FACTORIES[name] = engine


def unregister(name: str) -> None:
    """Takes away an engine that `register` added. Raises KeyError where it is not there."""
    del _FACTORIES[name]


@functools.cache
def _add_installed() -> None:
    """Adds the engines of installed packages, which every process finds, behind those that are there."""
    for engine in importlib.metadata.entry_points(group="imgindex.engines"):
        if is_engine_name(engine.name):
            _FACTORIES.setdefault(engine.name, engine.value)


def engine_names() -> tuple[str, ...]:
    """The names of all engines, in the order in which `auto` tries them."""
    _add_installed()
    return tuple(_FACTORIES)


def is_engine_name(name: str) -> bool:
    """Whether an engine may have this name, be it registered here or not; none is called `auto`."""
    return name != "auto" and _NAME.fullmatch(name) is not None


def engine_factory(name: str) -> EngineFactory:
    """The factory that is registered under `name`. Raises MachineError where none is."""
    try:
        _add_installed()
        found = _FACTORIES[name]
    except KeyError:
        raise MachineError(
            f"there is no engine {name} here, only {', '.join(_FACTORIES)}: install the package that has it, "
            "or register it with imgindex.models.engines.registry.register in every process that uses it"
        ) from None
    if isinstance(found, str):
        found = _FACTORIES[name] = pkgutil.resolve_name(found)()
    return found


def check_engine(name: str, backbone: str) -> None:
    """Raises UsageError where the engine `name`, which is registered or `auto`, does not run `backbone`."""
    if name != "auto" and not engine_factory(name).runs(backbone):
        raise UsageError(
            f"engine.name is {name!r}, but the engine {name} does not run the backbone {backbone}: leave "
            "engine.name out"
        )
