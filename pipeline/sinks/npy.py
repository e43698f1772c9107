"""Arrays of NumPy beside Parquet files: the layout of autofaiss, embedding-reader and clip-retrieval."""

from itertools import groupby

import numpy as np
import pyarrow.parquet as pq

from imgindex.sinks.folder import NewFiles
from imgindex.sinks.options import ExportOptions
from imgindex.sinks.source import IMAGES, Source


def write(files: NewFiles, source: Source, options: ExportOptions) -> None:
    """Writes ``img_emb/img_emb_0000.npy`` and ``metadata/metadata_0000.parquet`` for each shard.

    Row i of both is one image. An array is float32 [n, dims]. Readers pair files in the order of their names.
    """
    shards = source.manifest.shards
    digits = max(4, len(str(len(shards) - 1)))
    for shard, batches in groupby(source.batches(), lambda batch: batch.shard):
        number = f"{shard:0{digits}}"
        header = {
            "descr": "<f4",
            "fortran_order": False,
            "shape": (shards[shard].items, source.manifest.dims),
        }
        with (
            files.open(f"img_emb/img_emb_{number}.npy") as vectors,
            files.open(f"metadata/metadata_{number}.parquet") as images,
            pq.ParquetWriter(images, IMAGES) as rows,
        ):
            np.lib.format.write_array_header_1_0(vectors, header)
            for batch in batches:
                vectors.write(batch.vectors.data)
                rows.write_table(batch.images)
