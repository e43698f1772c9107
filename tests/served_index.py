"""The index that tests of the service search in."""

from pathlib import Path

import imgindex


def build(folder: Path) -> str:
    """Builds the index of ``photos`` in `folder`; gives the generation's name."""
    config = imgindex.Config(
        input=str(folder / "photos"),
        output=str(folder / "index"),
        backbone=imgindex.BackboneConfig(name="MobileNetV2", weights="none"),
        engine=imgindex.EngineConfig(name="served"),
        pca=imgindex.PcaConfig(dims=6),
        publish=imgindex.PublishConfig(min_recall=0.0),
    )
    return str(imgindex.build(config)["generation"])
