"""How a config is read: the defaults, changed by a YAML file, then by assignments."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imgindex import presets
from imgindex.config.messages import brief, shown
from imgindex.config.settings import Config, named
from imgindex.errors import UsageError
from imgindex.io import filesystem
from imgindex.io.paths import absolute


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
            raise UsageError(f"--set {brief(assignment)}: expected section.key=value, as in pca.dims=64")
        if settings.get(section) is None:  # as in a file that says `pca:` and no more
            settings[section] = {}
        values = settings[section]
        if not isinstance(values, dict):
            raise UsageError(f"--set {brief(assignment)}: {shown(section)} is no config section")
        try:
            values[name] = yaml.load(text, _Loader)
        except _YAML_ERRORS as error:
            raise UsageError(
                f"--set {brief(assignment)}: the value is not valid YAML; put texts with : # [ {{ or * in "
                "quotes"
            ) from error
    return parse_config(settings)


# Beside its own errors PyYAML lets out what its constructors trip over, such as the date 2024-99-99.
_YAML_ERRORS = (
    yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError,
)  # fmt: skip

# Bytes of a config file, keys of a section.
_MAX_FILE, _MAX_KEYS = 1 << 16, 100


class _Loader(yaml.SafeLoader):
    """PyYAML's own, but mappings stay small: before 6.0.4 `<<` of aliases of aliases fills the memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Puts what the node merges into it. Raises YAMLError for more than `_MAX_KEYS` keys."""
        super().flatten_mapping(node)
        if len(node.value) > _MAX_KEYS:
            what = f"found a mapping of more than {_MAX_KEYS} keys"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)


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
        raise UsageError(f"--config {path}: is not valid YAML: {brief(str(error))}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: expected sections such as `pca:`, got {shown(content)}")
    return content


def parse_config(settings: Mapping[str, Any]) -> Config:
    """A config of `settings` by section and key; whatever they leave out has its default."""
    return Config(**named(settings))
