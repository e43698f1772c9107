"""imgindex turns a directory of images into a search index.

``imgindex.build(config, options)`` builds or refreshes one, ``imgindex.Index.open(output).search(images)``
asks it; the transforms are for pipelines of one's own. Names load their modules when they are first
used, so that importing the package loads neither Beam nor TensorFlow.
"""

import importlib
from typing import Any

_EXPORTS = {
    "BackboneConfig": "config",
    "Config": "config",
    "DiffAgainstStore": "transforms",
    "EmbedImages": "transforms",
    "EngineChoice": "models.engines",
    "EngineConfig": "config",
    "Failure": "records",
    "FitPca": "transforms",
    "ImageFile": "records",
    "ImagesConfig": "config",
    "ImgindexError": "errors",
    "Index": "search",
    "IndexConfig": "config",
    "ListImages": "transforms",
    "Neighbor": "search",
    "PcaConfig": "config",
    "ProjectFeatures": "transforms",
    "PublishConfig": "config",
    "ReadFeatures": "transforms",
    "Result": "search",
    "WriteIndex": "transforms",
    "build": "launch",
    "load_config": "config",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("imgindex")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'imgindex' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"imgindex.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
