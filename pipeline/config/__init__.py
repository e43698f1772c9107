"""The config: every setting with its default and its limits, and how files and flags change it."""

from imgindex.config.loading import load_config, parse_config
from imgindex.config.settings import (
    BackboneConfig,
    Config,
    EngineConfig,
    ImagesConfig,
    IndexConfig,
    PcaConfig,
    PublishConfig,
    ReportConfig,
)

__all__ = [
    "BackboneConfig",
    "Config",
    "EngineConfig",
    "ImagesConfig",
    "IndexConfig",
    "PcaConfig",
    "PublishConfig",
    "ReportConfig",
    "load_config",
    "parse_config",
]
