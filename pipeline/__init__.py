"""imgindex turns a directory of images into a search index.

``imgindex.build(config, options)`` builds or refreshes one, ``imgindex.Index.open(output).search(images)``
asks it, ``imgindex.compare(output, a, b)`` compares two images, ``imgindex.duplicates(output)`` finds images
that are duplicates of each other, ``imgindex.export(output, format, folder)`` writes it for other tools,
``imgindex.push(output, database, uri)`` puts it into a vector database, ``imgindex.asgi_app(output)`` serves
it; ``imgindex.train(directory, output, method=…)`` trains a backbone for it; the transforms are for pipelines
of one's own. Names load their modules when they are first used, so that importing the package loads neither
Beam nor TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgindex.config import (
        BackboneConfig,
        Config,
        EngineConfig,
        ImagesConfig,
        IndexConfig,
        PcaConfig,
        PublishConfig,
        ReportConfig,
        load_config,
    )
    from imgindex.errors import ImgindexError
    from imgindex.evaluation.duplicates.find import duplicates
    from imgindex.evaluation.duplicates.results import Duplicates
    from imgindex.evaluation.evaluate import evaluate
    from imgindex.evaluation.results import Evaluation
    from imgindex.features.transforms import DiffAgainstStore, EmbedImages, GroupByChunk, ReadFeatures
    from imgindex.generations.transforms import CompareGenerations
    from imgindex.indexing.transforms import FitPca, ProjectFeatures, WriteIndex
    from imgindex.inputs.transforms import ListImages
    from imgindex.job.launch import build, refresh, submit
    from imgindex.models.engines.protocol import EngineChoice
    from imgindex.models.training.results import TrainingResult
    from imgindex.records import Failure, ImageFile
    from imgindex.search.comparison import Comparison, compare
    from imgindex.search.index import Index
    from imgindex.search.neighbors import Neighbor
    from imgindex.search.results import QueryError, Result
    from imgindex.serving.app import asgi_app
    from imgindex.serving.settings import ServiceSettings
    from imgindex.sinks.databases.push import push
    from imgindex.sinks.export import export
    from imgindex.sinks.transforms import PushGeneration
    from imgindex.training.train import train

__all__ = [
    "BackboneConfig",
    "CompareGenerations",
    "Comparison",
    "Config",
    "DiffAgainstStore",
    "Duplicates",
    "EmbedImages",
    "EngineChoice",
    "EngineConfig",
    "Evaluation",
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
    "PushGeneration",
    "QueryError",
    "ReadFeatures",
    "ReportConfig",
    "Result",
    "ServiceSettings",
    "TrainingResult",
    "WriteIndex",
    "asgi_app",
    "build",
    "compare",
    "duplicates",
    "evaluate",
    "export",
    "load_config",
    "push",
    "refresh",
    "submit",
    "train",
]

_MODULES = {
    "config": [
        "BackboneConfig",
        "Config",
        "EngineConfig",
        "ImagesConfig",
        "IndexConfig",
        "PcaConfig",
        "PublishConfig",
        "ReportConfig",
        "load_config",
    ],
    "errors": ["ImgindexError"],
    "evaluation.duplicates.find": ["duplicates"],
    "evaluation.duplicates.results": ["Duplicates"],
    "evaluation.evaluate": ["evaluate"],
    "evaluation.results": ["Evaluation"],
    "features.transforms": ["DiffAgainstStore", "EmbedImages", "GroupByChunk", "ReadFeatures"],
    "generations.transforms": ["CompareGenerations"],
    "indexing.transforms": ["FitPca", "ProjectFeatures", "WriteIndex"],
    "inputs.transforms": ["ListImages"],
    "job.launch": ["build", "refresh", "submit"],
    "models.engines.protocol": ["EngineChoice"],
    "models.training.results": ["TrainingResult"],
    "records": ["Failure", "ImageFile"],
    "search.comparison": ["Comparison", "compare"],
    "search.index": ["Index"],
    "search.neighbors": ["Neighbor"],
    "search.results": ["QueryError", "Result"],
    "serving.app": ["asgi_app"],
    "serving.settings": ["ServiceSettings"],
    "sinks.databases.push": ["push"],
    "sinks.export": ["export"],
    "sinks.transforms": ["PushGeneration"],
    "training.train": ["train"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("imgindex")
    if name not in __all__:
        raise AttributeError(f"module 'imgindex' has no attribute {name!r}")
    module = importlib.import_module(f"imgindex.{_MODULE_OF[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
