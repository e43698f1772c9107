"""A copy of an input and its index that is as if it had been built where it lies."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imgindex.inputs.local_files import local_version
from imgindex.io import content_addressed
from imgindex.io.digest_json import seal


def relocate(base: Path, copy: Path) -> None:
    """Copies ``photos`` and the ``index`` of them. Nothing can copy the times of files' attributes."""
    shutil.copytree(base, copy, symlinks=True)
    (manifest,) = copy.rglob("manifest.json")
    manifest.write_bytes(seal(json.loads(manifest.read_text().replace(str(base), str(copy)))))
    for path in (copy / "index" / "store").glob("*/*.parquet"):
        table = pq.read_table(path)
        versions = [local_version((copy / "photos" / uri.as_py()).stat()) for uri in table["uri"]]
        column = table.column_names.index("etag_or_mtime")
        table = table.set_column(column, "etag_or_mtime", pa.array(versions))
        path.unlink()
        content_addressed.write(str(path.parent), table, path.name.partition("-")[0])
