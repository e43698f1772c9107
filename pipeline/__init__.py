"""imgindex turns a directory of images into a search index.

``imgindex.build(config, options)`` builds or refreshes one, ``imgindex.Index.open(output).search(images)``
asks it; the transforms are for pipelines of one's own. Names load their modules when they are first
used, so that importing the package loads neither Beam nor TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgindex.comparison import CompareGenerations, GroupByChunk
    from imgindex.config import (
        BackboneConfig,
        Config,
        EngineConfig,
        ImagesConfig,
        IndexConfig,
        PcaConfig,
        PublishConfig,
        load_config,
    )
    from imgindex.delta import DiffAgainstStore
    from imgindex.errors import ImgindexError
    from imgindex.fitting import FitPca
    from imgindex.inputs import ListImages
    from imgindex.launch import build, refresh, submit
    from imgindex.models.engines import EngineChoice
    from imgindex.records import Failure, ImageFile
    from imgindex.results import Neighbor, QueryError, Result
    from imgindex.search import Index
    from imgindex.transforms import EmbedImages, ProjectFeatures, ReadFeatures, WriteIndex

__all__ = [
    "BackboneConfig",
    "CompareGenerations",
    "Config",
    "DiffAgainstStore",
    "EmbedImages",
    "EngineChoice",
    "EngineConfig",
    "Failure",
    "FitPca",
    "GroupByChunk",
    "ImageFile",
    "ImagesConfig",
    "ImgindexError",
    "Index",
    "IndexConfig",
    "ListImages",
    "Neighbor",
    "PcaConfig",
    "ProjectFeatures",
    "PublishConfig",
    "QueryError",
    "ReadFeatures",
    "Result",
    "WriteIndex",
    "build",
    "load_config",
    "refresh",
    "submit",
]

_MODULES = {
    "comparison": ["CompareGenerations", "GroupByChunk"],
    "config": [name for name in __all__ if name.endswith("Config")] + ["load_config"],
    "delta": ["DiffAgainstStore"],
    "errors": ["ImgindexError"],
    "fitting": ["FitPca"],
    "inputs": ["ListImages"],
    "launch": ["build", "refresh", "submit"],
    "models.engines": ["EngineChoice"],
    "records": ["Failure", "ImageFile"],
    "results": ["Neighbor", "QueryError", "Result"],
    "search": ["Index"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("imgindex")
    if name not in __all__:
        raise AttributeError(f"module 'imgindex' has no attribute {name!r}")
    module = importlib.import_module(f"imgindex.{_MODULE_OF.get(name, 'transforms')}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
