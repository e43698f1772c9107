"""The configs that are shipped with the package, which `--config` takes by name."""

from pathlib import Path

# Those that say how features are made, the quickest first; their section `backbone` fits any backbone.
FEATURE_PRESETS = ("fast", "keras", "recommended", "accurate")

_FOLDER = Path(__file__).parent / "configs"


def shipped() -> list[str]:
    """The names of the configs that are in the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def config_path(given: str) -> str:
    """The file that `given` names: one of that path, or else the shipped config of that name."""
    path = _FOLDER / f"{given}.yaml"
    return str(path) if given in shipped() and not Path(given).is_file() else given
