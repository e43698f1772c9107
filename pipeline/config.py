"""The config: every setting with its default and its limits, and how files and flags change it."""

import difflib
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from imgindex import presets
from imgindex.errors import UsageError
from imgindex.io import filesystem
from imgindex.io.paths import absolute
from imgindex.io.patterns import compiled
from imgindex.models.annoy_index import METRICS, Metric
from imgindex.models.backbones import check_backbone
from imgindex.models.color import COLOR_PROFILES, can_convert
from imgindex.models.engines import ENGINES, PRECISIONS
from imgindex.models.preprocess import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS
from imgindex.models.saved_models import is_saved_model
from imgindex.text import printable


@dataclass(frozen=True)
class BackboneConfig:
    """What computes the features."""

    name: str = "ResNet50"  # a keras.applications model, or the path of a saved .keras model
    weights: str = "imagenet"  # imagenet | bundled | none | path
    pooling: str = "avg"
    image_size: int | None = None  # null: the backbone's own
    output: str | None = None  # which output or layer of a saved model; null: its only output

    def __post_init__(self) -> None:
        # A process elsewhere, or a search next year, has another current directory.
        if is_saved_model(self.name):
            object.__setattr__(self, "name", absolute(self.name))
        if self.weights.endswith(".h5"):
            object.__setattr__(self, "weights", absolute(self.weights))
        check_backbone(self.name, self.weights, self.pooling, self.image_size, self.output)


@dataclass(frozen=True)
class EngineConfig:
    """What executes the backbone."""

    name: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None  # null: the engine's own

    def __post_init__(self) -> None:
        _check_choice("engine.name", self.name, ENGINES)
        _check_choice("engine.precision", self.precision, PRECISIONS)
        if self.batch_size is not None:
            _check_range("engine.batch_size", self.batch_size, 1, 4096)


TRUNCATED = ("fail", "accept")


@dataclass(frozen=True)
class ImagesConfig:
    """Which files are images, and how large one may be."""

    extensions: tuple[str, ...] = (
        ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jxl", ".png",
        ".tif", ".tiff", ".webp",
    )  # fmt: skip
    include: tuple[str, ...] = ()  # patterns as of .gitignore; only what they match, where there are any
    exclude: tuple[str, ...] = ()  # and not what these match
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_bytes: int = 268_435_456
    color_profile: str = "srgb"
    truncated: str = "fail"

    def __post_init__(self) -> None:
        if not self.extensions:
            raise UsageError("images.extensions is empty; name at least one, such as .jpg")
        for extension in self.extensions:
            if not extension.startswith("."):
                raise UsageError(
                    f"images.extensions: {extension!r} has no leading dot; write {'.' + extension!r}"
                )
        for key, patterns in (("images.include", self.include), ("images.exclude", self.exclude)):
            for pattern in patterns:
                _check_pattern(key, pattern)
        _check_range("images.max_pixels", self.max_pixels, 1, LARGEST_MAX_PIXELS)
        _check_range("images.max_bytes", self.max_bytes, 1, 2**40)
        _check_choice("images.color_profile", self.color_profile, COLOR_PROFILES)
        _check_choice("images.truncated", self.truncated, TRUNCATED)
        if self.color_profile == "srgb" and not can_convert():
            raise UsageError(
                "images.color_profile is 'srgb', but this Pillow is built without LittleCMS: install "
                "Pillow's own wheel, or set images.color_profile=ignore"
            )


def _check_pattern(key: str, pattern: str) -> None:
    try:
        compiled([pattern])
    except ValueError as error:
        raise UsageError(
            f"{key}: {_shown(pattern)} is no pattern; write one as in a .gitignore, such as drafts/ or *.gif"
        ) from error


REFITS = ("auto", "always", "never")


@dataclass(frozen=True)
class PcaConfig:
    """How features are compressed."""

    dims: int | float = 150  # a count, or a share of variance in (0, 1)
    whiten: bool = False
    refit: str = "auto"  # auto | always | never

    def __post_init__(self) -> None:
        _check_choice("pca.refit", self.refit, REFITS)
        if isinstance(self.dims, int):
            _check_range("pca.dims", self.dims, 1, 65_536)
        elif not 0 < self.dims < 1:
            raise UsageError(
                f"pca.dims is {self.dims}; expected a whole number of dimensions, or a share of the "
                "variance between 0 and 1"
            )


@dataclass(frozen=True)
class IndexConfig:
    """How vectors are indexed."""

    metric: Metric = "angular"
    trees: int | str = 40  # a count, or auto
    items_per_shard: int = 1_000_000
    seed: int = 0
    target_recall: float = 0.95
    memory: int | str = "auto"  # bytes that a worker's shards in the making take, or auto

    def __post_init__(self) -> None:
        _check_choice("index.metric", self.metric, METRICS)
        if isinstance(self.trees, int):
            _check_range("index.trees", self.trees, 1, 10_000)
        elif self.trees != "auto":
            raise UsageError(f"index.trees is {_shown(self.trees)}; expected a whole number or auto")
        _check_range("index.items_per_shard", self.items_per_shard, 1, 1_000_000_000)
        _check_range("index.seed", self.seed, 0, 2**31 - 1)
        _check_range("index.target_recall", self.target_recall, 0.0, 1.0)
        if isinstance(self.memory, int):
            _check_range("index.memory", self.memory, 1 << 20, 1 << 50)
        elif self.memory != "auto":
            raise UsageError(f"index.memory is {self.memory!r}; expected a whole number of bytes or auto")


@dataclass(frozen=True)
class PublishConfig:
    """What an index must fulfil before it replaces the one that is served."""

    max_failure_rate: float = 0.05
    max_shrink: float = 0.5
    min_recall: float = 0.9
    check_live: int = 4_294_967_296  # bytes of the live generation that a build compares with their digests

    def __post_init__(self) -> None:
        _check_range("publish.max_failure_rate", self.max_failure_rate, 0.0, 1.0)
        _check_range("publish.max_shrink", self.max_shrink, 0.0, 1.0)
        _check_range("publish.min_recall", self.min_recall, 0.0, 1.0)
        _check_range("publish.check_live", self.check_live, 0, 1 << 50)


@dataclass(frozen=True)
class Config:
    """All settings of a build. Construction refuses with UsageError what is out of range."""

    input: str | None = None  # a directory, a glob, a tar, or a file that lists images
    output: str | None = None  # a directory
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    pca: PcaConfig = field(default_factory=PcaConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)


def load_config(path: str | Path | None = None, assignments: Sequence[str] = ()) -> Config:
    """The defaults, changed by the YAML file at `path`, then by `assignments` ``section.key=value``.

    `path` may also be the name of a config that is shipped with the package, such as ``mobilenetv2``.

    Raises:
      UsageError: the file cannot be read, or a key or value is not valid; names the nearest valid key.
    """
    settings = {} if path is None else _read_yaml(path)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (separator and dot):
            raise UsageError(f"--set {_brief(assignment)}: expected section.key=value, as in pca.dims=64")
        if settings.get(section) is None:  # as in a file that says `pca:` and no more
            settings[section] = {}
        values = settings[section]
        if not isinstance(values, dict):
            raise UsageError(f"--set {_brief(assignment)}: {_shown(section)} is no config section")
        try:
            values[name] = yaml.load(text, _Loader)
        except _YAML_ERRORS as error:
            raise UsageError(
                f"--set {_brief(assignment)}: the value is not valid YAML; put texts with : # [ {{ or * in "
                "quotes"
            ) from error
    return parse_config(settings)


# Beside its own errors PyYAML lets out what its constructors trip over, such as the date 2024-99-99.
_YAML_ERRORS = (
    yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError,
)  # fmt: skip

# Bytes of a config file, keys of a section, characters of a text (as many as of a path on Linux).
_MAX_FILE, _MAX_KEYS, _MAX_TEXT = 1 << 16, 100, 4096


class _Loader(yaml.SafeLoader):
    """PyYAML's own, but mappings stay small: before 6.0.4 `<<` of aliases of aliases fills the memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Puts what the node merges into it. Raises YAMLError for more than `_MAX_KEYS` keys."""
        super().flatten_mapping(node)
        if len(node.value) > _MAX_KEYS:
            what = f"found a mapping of more than {_MAX_KEYS} keys"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)


# A short file of aliases may stand for more than fits into memory.
_abridged = reprlib.Repr()
_abridged.maxlevel, _abridged.maxstring, _abridged.maxother = 2, 200, 200


def _shown(value: Any) -> str:
    """`value` as messages show it."""
    try:
        return _abridged.repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits, but 1:1:1:… makes one
        return "a number of too many digits"


def _brief(text: str) -> str:
    """`text` on one line and not endless."""
    shown = printable(" ".join(text.split()))
    return shown if len(shown) <= 300 else f"{shown[:299]}…"


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        data = filesystem.read_start(absolute(presets.config_path(str(path))), _MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise UsageError(f"--config {path}: is longer than {_MAX_FILE} bytes, which no config is")
        text = data.decode()
    except FileNotFoundError as error:
        names = ", ".join(presets.shipped())
        raise UsageError(
            f"--config {path}: cannot be read: No such file; configs that imgindex ships: {names}"
        ) from error
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: is not UTF-8 text, which a YAML file must be") from error
    try:
        content = yaml.load(text, _Loader)
    except _YAML_ERRORS as error:
        raise UsageError(f"--config {path}: is not valid YAML: {_brief(str(error))}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: expected sections such as `pca:`, got {_shown(content)}")
    return content


def parse_config(settings: Mapping[str, Any]) -> Config:
    """A config of `settings` by section and key; whatever they leave out has its default."""
    hints = typing.get_type_hints(Config)
    parsed = {}
    for name, value in settings.items():
        if name not in hints:
            raise UsageError(f"unknown config section {_shown(name)}{_nearest(_key(name), hints)}")
        if is_dataclass(hints[name]):
            parsed[name] = _parse_section(name, hints[name], value)
        elif not _is_a(value, hints[name]):
            raise UsageError(f"{name} is {_shown(value)}; expected {_describe(hints[name])}")
        else:
            parsed[name] = value
    return Config(**parsed)


def _parse_section(section: str, kind: type[Any], values: Any) -> Any:
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UsageError(f"config section {section!r} must hold keys, got {_shown(values)}")
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            valid, given = [f"{section}.{name}" for name in hints], f"{section}.{_key(key)}"
            raise UsageError(f"unknown config key {_shown(given)}{_nearest(given, valid)}")
        if isinstance(value, list):
            values = {**values, key: tuple(value)}
        elif hints[key] is float and isinstance(value, int) and not isinstance(value, bool):
            values = {**values, key: _as_float(value)}
        if not _is_a(values[key], hints[key]):
            raise UsageError(f"{section}.{key} is {_shown(value)}; expected {_describe(hints[key])}")
    return kind(**values)


def _key(key: Any) -> str:
    """A key as text; YAML's may be of any type."""
    return key if isinstance(key, str) else _shown(key)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # out of every key's range


def _is_a(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, str) for item in value)
    # bool is a subclass of int, but `trees: true` is a mistake.
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)
    if hint is str:
        return isinstance(value, str) and _is_text(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _is_text(value: str) -> bool:
    """Whether `value` can be written down, in a manifest as in a path."""
    try:
        return len(value.encode()) <= _MAX_TEXT and "\0" not in value
    except UnicodeEncodeError:
        return False


_DESCRIPTIONS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}


def _describe(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    return _DESCRIPTIONS.get(hint, "a list of texts")


def _nearest(given: str, valid: typing.Iterable[str]) -> str:
    valid = list(valid)
    matches = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; expected one of {', '.join(valid)}"


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{key} is {_shown(value)}; expected one of {', '.join(choices)}")


def _check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{key} is {_shown(value)}; expected a value from {low} to {high}")
