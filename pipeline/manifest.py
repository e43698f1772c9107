"""What a manifest says, and the limits of it that everything relies on that reads a generation."""

import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from imgindex.models.annoy_index import METRICS
from imgindex.models.engines import ENGINES, PRECISIONS
from imgindex.sealed import seal, unseal

SCHEMA_VERSION = 1

# A hundred thousand shards make some 80 MiB.
MAX_BYTES = 1 << 28

# A file of a generation lies in one of its folders. So no path leads out of it.
_PATH = re.compile(r"[a-z]+/[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def encode(content: Mapping[str, Any]) -> bytes:
    """A manifest's bytes. Raises ValueError where no reader would accept them."""
    data = seal(content)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is of {len(data)} bytes, more than the {MAX_BYTES} that are read")
    decode(data, str(content.get("generation")))
    return data


def decode(data: bytes, generation: str) -> dict[str, Any]:
    """Reads the bytes of the manifest of `generation`.

    Raises ValueError for whatever `encode` has not written, and for values that nothing has which a build
    publishes, such as a path that leads elsewhere.
    """
    manifest = unseal(data)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        schema = reprlib.repr(manifest.get("schema_version"))
        raise ValueError(f"it has schema {schema}, of another imgindex; this one reads {SCHEMA_VERSION}")
    for fault in _faults(manifest, _SHAPE, ""):
        raise ValueError(fault)
    if manifest["generation"] != generation:
        raise ValueError(f"it is that of generation {manifest['generation']}")
    if not manifest["shards"]:
        raise ValueError("it has no shards")
    engine = manifest["engine"]
    if (engine["name"], engine["precision"]) == ("openvino", "float16"):
        raise ValueError("its engine has no such precision")
    for section, shapes in _NEWER.items():
        for key, check in shapes.items():
            if key in manifest[section] and not check(manifest[section][key]):
                raise ValueError(f"{section}.{key} is {reprlib.repr(manifest[section][key])}")
    named = [shard[kind] for shard in manifest["shards"] for kind in ("index", "metadata")]
    named += [manifest["basis"], *manifest["failures"]]
    described = Counter(file["path"] for file in manifest["files"])
    for path, count in Counter(named).items():
        if (described[path], count) != (1, 1):
            raise ValueError(f"it names {path} {count} times and describes it {described[path]} times")
    return manifest


def _faults(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Where `value` is not of `shape`: a check, a list of one shape, or a dict of the shapes of its keys."""
    if isinstance(shape, dict) and isinstance(value, dict):
        for key, inner in shape.items():
            if key in value:
                yield from _faults(value[key], inner, f"{where}.{key}" if where else key)
            else:
                yield f"it has no {f'{where}.{key}' if where else key}"
    elif isinstance(shape, list) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _faults(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, dict | list) or not shape(value):
        yield f"{where} is {reprlib.repr(value)}"


_Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> _Check:
    return lambda value: type(value) is int and low <= value <= high


def _one_of(*values: Any) -> _Check:
    return lambda value: isinstance(value, str) and value in values


def _optional(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _like(pattern: re.Pattern[str]) -> _Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _switch(value: Any) -> bool:
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    return _count(value) or (isinstance(value, float) and math.isfinite(value))


def _each(check: _Check) -> _Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


_count = _whole(0, 2**63)
_dims = _whole(1, 65_536)

_SHAPE = {
    "generation": _text,
    "previous": _optional(_text),
    "spec": {
        "digest": _text,
        "backbone": _text,
        "weights_sha256": _text,
        "image_size": lambda value: isinstance(value, list) and [*map(_dims, value)] == [True, True],
        "pooling": _text,
    },
    "engine": {
        "name": _one_of(*ENGINES[1:]),  # none is `auto`
        "precision": _one_of(*PRECISIONS[1:]),
        "batch_size": _whole(1, 4096),
    },
    "input_root": _text,
    "config": {
        "input": _text,
        "backbone": {
            "name": _text,
            "weights": _text,
            "pooling": _text,
            "image_size": _optional(_dims),
        },
        "images": {"max_bytes": _whole(1, 2**40)},
        "pca": {"dims": _number, "whiten": _switch},
        "index": {},
    },
    "ledger": {
        **dict.fromkeys(("listed", "indexed", "failed", "added", "changed", "removed", "unchanged"), _count),
        **dict.fromkeys(("embedded", "copied", "reused", "damaged_chunks"), _count),
        "failed_by_reason": _each(_count),
    },
    "feature_dim": _whole(1, 2**20),
    "dims": _dims,
    "explained_variance_ratio": _number,
    "pca": {"refit": _switch, "why": _text, "fitted_in": _text, "fitted_images": _count},
    "metric": _one_of(*METRICS),
    "search_k": _whole(1, 2**24),
    "recall": {"k": _count, "recall": _number},
    "shards": [{"index": _like(_PATH), "metadata": _like(_PATH), "items": _whole(1, 2**31), "trees": _count}],
    "basis": _like(_PATH),
    "failures": [_like(_PATH)],
    "files": [{"path": _like(_PATH), "size": _count, "sha256": _like(_SHA256)}],
    "timings": lambda value: _each(_number)(value) and "total" in value,
}

# What older builds do not write.
_NEWER: dict[str, dict[str, _Check]] = {
    "ledger": {"skipped": _each(_count)},
    "recall": {"queries": _count, "distinct": _count},
    "pca": {"cut": _count, "scale_ratio": _number},
}
