"""The manifest: what a generation says of itself, and the limits that whoever reads one relies on."""

import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from imgindex.io.digest_json import seal, unseal
from imgindex.models.ann.protocol import METRICS, Metric
from imgindex.models.engines.protocol import PRECISIONS
from imgindex.models.engines.registry import is_engine_name
from imgindex.records import WrittenFile

SCHEMA_VERSION = 1

# A hundred thousand shards make some 80 MiB.
MAX_BYTES = 1 << 28

# A file of a generation lies in one of its folders. So no path leads out of it.
_PATH = re.compile(r"[a-z]+/[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Ledger:
    """What a build did with the images of its input; those listed are those indexed and those failed."""

    listed: int
    indexed: int
    failed: int
    failed_by_reason: Mapping[str, int]  # by stage/reason
    # Against the generation before.
    added: int
    changed: int
    removed: int
    unchanged: int
    # Where the features came from.
    embedded: int
    copied: int  # from images of the same bytes
    reused: int  # from the store
    damaged_chunks: int  # of the store, which were dropped
    environmental: int = 0  # failures that may pass, which the next builds try again
    skipped: Mapping[str, int] = field(default_factory=dict)  # files that are no images of the input, by kind


@dataclass(frozen=True)
class RecordedSpec:
    """The spec of the features, as of `models.spec.Spec`; older builds did not write what is None."""

    digest: str
    backbone: str
    weights_sha256: str
    image_size: tuple[int, int]  # height, width
    pooling: str
    preprocessing: str | None = None
    decoding: str | None = None
    layers_sha256: str | None = None


@dataclass(frozen=True)
class RecordedEngine:
    """What computed the features."""

    name: str
    precision: str
    batch_size: int
    cosine_with_float32: float | None = None  # the least of the first images; None: not compared


@dataclass(frozen=True)
class RecordedPca:
    """How the basis came about; older builds did not write what is None."""

    refit: bool  # whether it was fitted in this build
    why: str
    fitted_in: str  # the generation
    fitted_images: int
    new_images: int | None = None
    unexplained: float | None = None  # the mean share of the new images' variance
    tolerated: float | None = None
    cut: int | None = None  # components that whitening left out
    scale_ratio: float | None = None  # of the last dimension to the first, where it is whitened


@dataclass(frozen=True)
class MeasuredRecall:
    """Recall@k against exact search; older builds measured it with copies and did not write what is None."""

    k: int
    recall: float
    queries: int | None = None
    distinct: int | None = None  # images that they were drawn from


@dataclass(frozen=True)
class Shard:
    """An Annoy file, and the metadata file whose row i describes its item i."""

    index: str  # the path of the file below the generation
    metadata: str
    items: int
    trees: int


@dataclass(frozen=True)
class Manifest:
    """All that a generation says of itself. Paths are relative to the generation."""

    generation: str  # its name
    previous: str | None
    spec: RecordedSpec
    engine: RecordedEngine
    input_root: str  # the directory that uris are relative to
    config: Mapping[str, Any]  # of the build, by section and key; older ones lack some keys
    ledger: Ledger
    feature_dim: int
    dims: int  # of the vectors
    explained_variance_ratio: float
    pca: RecordedPca
    metric: Metric
    search_k: int
    recall: MeasuredRecall
    shards: tuple[Shard, ...]
    basis: str
    failures: tuple[str, ...]  # the lists of them
    files: tuple[WrittenFile, ...]
    timings: Mapping[str, float]  # seconds by stage, and in `total`
    created: str = ""  # the time, as of ISO 8601
    forced: tuple[str, ...] = ()  # the checks that could not refuse
    failures_digest: str = ""  # of which images failed and why; older builds did not write it
    libraries: Mapping[str, str] = field(default_factory=dict)  # their versions
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the JSON that it was read from

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def items(self) -> int:
        """How many images are indexed."""
        return sum(shard.items for shard in self.shards)


def encode(manifest: Manifest) -> bytes:
    """A manifest's bytes. Raises ValueError where no reader would accept them."""
    content = asdict(replace(manifest, content={}))
    del content["content"]
    data = seal({"schema_version": SCHEMA_VERSION, **content})
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is of {len(data)} bytes, more than the {MAX_BYTES} that are read")
    decode(data, manifest.generation)
    return data


def decode(data: bytes, generation: str) -> Manifest:
    """Reads the bytes of the manifest of `generation`.

    Raises ValueError for whatever `encode` has not written, and for values that nothing has which a build
    publishes, such as a path that leads elsewhere.
    """
    content = unseal(data)
    if content.get("schema_version") != SCHEMA_VERSION:
        schema = reprlib.repr(content.get("schema_version"))
        raise ValueError(f"it has schema {schema}, of another imgindex; this one reads {SCHEMA_VERSION}")
    for fault in _faults(content, _SHAPE, ""):
        raise ValueError(fault)
    for section, shapes in _NEWER.items():
        within = content[section] if section else content
        for key, check in shapes.items():
            if key in within and not check(within[key]):
                raise ValueError(f"{section}.{key} is {reprlib.repr(within[key])}".removeprefix("."))
    manifest = replace(_record(Manifest, content), content=content)
    if manifest.generation != generation:
        raise ValueError(f"it is that of generation {manifest.generation}")
    if not manifest.shards:
        raise ValueError("it has no shards")
    named = [path for shard in manifest.shards for path in (shard.index, shard.metadata)]
    named += [manifest.basis, *manifest.failures]
    described = Counter(file.path for file in manifest.files)
    for path, count in Counter(named).items():
        if (described[path], count) != (1, 1):
            raise ValueError(f"it names {path} {count} times and describes it {described[path]} times")
    return manifest


_T = TypeVar("_T")


def _record(kind: type[_T], content: Mapping[str, Any]) -> _T:
    """The dataclass of checked JSON. What it lacks has its default, and what `kind` lacks is left out."""
    hints = _HINTS[kind]
    names = [item.name for item in fields(kind) if item.name in content]  # type: ignore[arg-type]
    return kind(**{name: _typed(hints[name], content[name]) for name in names})


# Looked up once: a manifest of 100,000 shards asks for those of a shard as often.
_HINTS: dict[type, dict[str, Any]] = {
    kind: get_type_hints(kind)
    for kind in (
        Manifest, Ledger, RecordedSpec, RecordedEngine, RecordedPca, MeasuredRecall, Shard, WrittenFile,
    )
}  # fmt: skip


def _typed(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return _record(hint, value)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        return tuple(_typed(get_args(hint)[0], item) for item in value)
    return value


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


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


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
        "name": lambda value: _text(value) and is_engine_name(value),  # registered here or not
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
        "images": {"max_bytes": _whole(1, 2**40), "max_pixels": _whole(1, 2**63)},
        "pca": {"dims": _number, "whiten": lambda value: _switch(value) or (_number(value) and value <= 1)},
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

# What older builds do not write, by section; those of no section are at the top.
_NEWER: dict[str, dict[str, _Check]] = {
    "": {"created": _text, "failures_digest": _text, "forced": _texts, "libraries": _each(_text)},
    "spec": dict.fromkeys(("preprocessing", "decoding", "layers_sha256"), _optional(_text)),
    "engine": {"cosine_with_float32": _optional(_number)},
    "ledger": {"environmental": _count, "skipped": _each(_count)},
    "recall": dict.fromkeys(("queries", "distinct"), _optional(_count)),
    "pca": {
        **dict.fromkeys(("cut", "new_images"), _optional(_count)),
        **dict.fromkeys(("scale_ratio", "unexplained", "tolerated"), _optional(_number)),
    },
}
