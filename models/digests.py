"""Digests of a finished Keras model: of its weights, and of what it computes with them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Of a layer: what only training reads, and names, which Keras numbers through the life of a process.
_LAYER_KEYS = ("name", "build_config", "compile_config")
_CONFIG_KEYS = ("name", "trainable", "renorm", "renorm_clipping", "renorm_momentum")
_CONFIG_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def weights_digest(model: Any) -> str:
    """sha256 over a Keras model's weights, in the order of ``model.weights``.

    For each weight: its shape and little-endian bytes, and its dtype unless float32. Names stay out: Keras
    numbers unnamed layers and variables through the life of a process, so they tell what else it built.
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        values = weight.numpy()
        kind = "" if values.dtype == "float32" else f"{values.dtype} "
        digest.update(f"{kind}{values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def layers_digest(model: Any) -> str:
    """sha256 over the layers of a Keras model: classes, settings, constants, dtype policies and connections.

    Names and what only training reads stay out: initializers, regularizers, constraints. So do settings that
    are null or false, which other versions of Keras may not have.
    """
    canonical = _object(json.loads(model.to_json()), {})
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _object(found: dict[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    """What Keras serialized of a layer or another object; `numbers` has the layers around it by name."""
    kept = {key: value for key, value in found.items() if key not in _LAYER_KEYS and value is not None}
    config = kept.get("config")
    if isinstance(config, dict) and not found["class_name"].endswith("DTypePolicy"):  # it is its name
        kept["config"] = _config(config)
    if "inbound_nodes" in kept:
        kept["inbound_nodes"] = _numbered(kept["inbound_nodes"], numbers)
    return kept


def _config(config: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in config.items()
        if value is not None
        and value is not False
        and key not in _CONFIG_KEYS
        and not key.endswith(_CONFIG_ENDINGS)
    }
    layers = kept.get("layers")
    layers = layers if isinstance(layers, list) else []
    # As connections name them: the settings of a layer, such as a model of KerasHub, may lack its name.
    names = [layer.get("name", layer["config"].get("name")) for layer in layers]
    numbers = {name: number for number, name in enumerate(names)}
    for key in ("input_layers", "output_layers"):
        if key in kept:
            kept[key] = _numbered(kept[key], numbers)
    return {key: _inside(value, numbers) for key, value in kept.items()}


def _inside(value: Any, numbers: Mapping[str, int]) -> Any:
    if isinstance(value, list):
        return [_inside(item, numbers) for item in value]
    if isinstance(value, dict):
        if "class_name" in value and "config" in value:
            return _object(value, numbers)
        return {key: _inside(item, numbers) for key, item in value.items()}
    return value


def _numbered(value: Any, numbers: Mapping[str, int]) -> Any:
    """Connections, each ``[name, node, tensor]``, with the layers' numbers for their names."""
    if isinstance(value, list):
        match value:
            case [str(name), int(node), int(tensor)] if name in numbers:
                return [numbers[name], node, tensor]
        return [_numbered(item, numbers) for item in value]
    if isinstance(value, dict):
        return {key: _numbered(item, numbers) for key, item in value.items()}
    return value
