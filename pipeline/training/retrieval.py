"""How well images find each other by the features of a backbone: measured on an index of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from imgindex.config import BackboneConfig, Config, ReportConfig
from imgindex.evaluation.collection import read_collection
from imgindex.evaluation.quality import measure_quality
from imgindex.io import filesystem
from imgindex.io.paths import absolute
from imgindex.job.launch import refresh
from imgindex.runtime.temporary_folder import TemporaryFolder
from imgindex.training.ladder_results import Retrieval
from imgindex.uris import name_of

# Publish checks that say nothing here: the search is exact, and what is no image is left out of the figures.
_NOT_ASKED = ("min_recall", "max_failure_rate")


def measure_retrieval(
    directory: str, uris: Sequence[str], backbone: BackboneConfig, k: int
) -> Retrieval | None:
    """Builds an index of some images of a directory, and evaluates it; None where no two share a label.

    Args:
        directory: The images.
        uris: Their uris in it.
        backbone: What embeds them.
        k: The ranks that P@k looks at.

    Raises:
        ImgindexError: What a build raises.
    """
    with TemporaryFolder() as folder:
        images, output = Path(folder, "images.parquet"), Path(folder, "index")
        paths = [
            filesystem.join(absolute(directory), name_of(uri)).encode(errors="surrogateescape")
            for uri in uris
        ]
        parquet.write_table(pa.table({"path": paths}), images)
        config = Config(
            input=str(images), output=str(output), backbone=backbone, report=ReportConfig(enabled=False)
        )
        refresh(config, force=_NOT_ASKED)
        collection = read_collection(output)
        quality = measure_quality(collection, np.arange(len(collection)), k, 0)
    if quality is None:
        return None
    return Retrieval(quality.p_at_k.micro, quality.p_at_k.best, quality.map_at_r.micro)
