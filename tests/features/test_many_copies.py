"""Very many copies of one image: no unit, no chunk and nothing that prune reads grows with their number."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline as BeamTestPipeline
from fake_engine import factory_of, registered

from imgindex.features import feature_store
from imgindex.features.embedder import EmbeddedUnit
from imgindex.features.transforms import DiffAgainstStore, EmbedImages
from imgindex.generations import prune, verify
from imgindex.generations.layout import Output, current_name, read_manifest
from imgindex.inputs.local_files import local_version
from imgindex.io import content_addressed
from imgindex.models.engines.protocol import EngineChoice
from imgindex.records import ImageFile, ImageRow

# More of them take more time and show the same bounds.
COPIES = int(os.environ.get("IMGINDEX_COPIES", "10000"))

COMMAND = (sys.executable, str(Path(__file__).parents[1] / "quick_command.py"))
CHOICE = EngineChoice("MobileNetV2", "none", "avg", 32, "quarters", "float32", 4)
UNITS: list[EmbeddedUnit] = []


def keep(unit: EmbeddedUnit) -> None:
    UNITS.append(unit)  # by workers, which run in this process


def copies_of(data: bytes, folder: Path, count: int) -> list[ImageFile]:
    files = []
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:06}.png"
        path.write_bytes(data)
        files.append(ImageFile(path.name, str(path), len(data), local_version(path.stat())))
    return files


def test_a_unit_and_its_chunk_are_bounded(tmp_path: Path, image_bytes: Callable[..., bytes]) -> None:
    files = copies_of(image_bytes(1), tmp_path / "photos", 2 * feature_store.CHUNK_ROWS + 100)
    directory = str(tmp_path / "store")
    UNITS.clear()
    with registered("quarters", factory_of()), BeamTestPipeline(runner=FnApiRunner()) as pipeline:
        delta = pipeline | beam.Create(files) | DiffAgainstStore(directory, threads=2)
        units = delta.new | EmbedImages(directory, CHOICE, threads=2)
        _ = units | "Keep" >> beam.Map(keep)
    assert sorted(image.uri for unit in UNITS for image in unit.images) == [file.uri for file in files]
    assert max(len(unit.images) for unit in UNITS) <= feature_store.CHUNK_ROWS
    # Whichever leads it, each copy has the same bits.
    features = [
        content_addressed.matrix(content_addressed.read(directory, name), "feature")
        for name in content_addressed.names(directory)
    ]
    assert len({feature.tobytes() for some in features for feature in some}) == 1


def test_prune_reads_a_large_chunk_no_more_often_than_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As earlier versions of imgindex have written them.
    rows = [ImageRow(f"{n:05}", 1, "1", f"{n:064}", 5, 6) for n in range(9 * feature_store.CHUNK_ROWS)]
    directory = str(tmp_path)
    (first, *_) = feature_store.write_rows(
        directory, rows, np.eye(1, 4, dtype=np.float16).repeat(len(rows), axis=0)
    )
    read: Counter[str] = Counter()
    read_chunk = content_addressed.read

    def count(directory: str, name: str, *arguments: Any) -> Any:
        read[name] += 1
        return read_chunk(directory, name, *arguments)

    monkeypatch.setattr(content_addressed, "read", count)
    used = prune._keys((row.uri, row.sha256) for row in rows[1:])
    assert prune._compact(directory, used, before=float("inf")) == (1, 1)
    assert read[first.chunk] <= 3
    left = [
        image.uri
        for name in content_addressed.names(directory)
        for image in feature_store.read_keys(directory, name)
    ]
    assert sorted(left) == [row.uri for row in rows[1:]]
    sizes = [pq.read_metadata(tmp_path / name).num_rows for name in content_addressed.names(directory)]
    assert max(sizes) == feature_store.CHUNK_ROWS


@pytest.mark.long
@pytest.mark.timeout(600 + COPIES // 100)
def test_a_collection_of_copies(tmp_path: Path, image_bytes: Callable[..., bytes]) -> None:
    files = copies_of(image_bytes(1, (8, 6)), tmp_path / "photos", COPIES)
    output = tmp_path / "index"
    settings = ["backbone.name=MobileNetV2", "backbone.weights=none", "engine.name=quarters"]
    settings += ["pca.dims=4", "publish.min_recall=0", "index.trees=1", "publish.max_shrink=1"]

    def build() -> dict[str, Any]:
        arguments = ["build", f"--input={tmp_path / 'photos'}", f"--output={output}"]
        subprocess.run([*COMMAND, *arguments, *(f"--set={one}" for one in settings)], check=True)
        return dict(read_manifest(layout).content)

    def sizes() -> list[int]:
        return [pq.read_metadata(path).num_rows for path in output.glob("store/*/chunk-*.parquet")]

    layout = Output(str(output))
    assert build()["ledger"]["indexed"] == COPIES
    assert max(sizes()) <= feature_store.CHUNK_ROWS
    # All get another time, and some go: they are copied from the store in its own chunks.
    for file in files:
        os.utime(file.path, (1e9, 1e9))
    for file in files[: COPIES // 2]:
        Path(file.path).unlink()
    ledger = build()["ledger"]
    assert (ledger["indexed"], ledger["embedded"]) == (COPIES - COPIES // 2, 0)
    assert max(sizes()) <= feature_store.CHUNK_ROWS
    pruned = prune.prune(str(output), keep=1, grace_seconds=-60)
    assert len(pruned.generations) == 1
    assert sum(sizes()) == COPIES - COPIES // 2
    assert max(sizes()) <= feature_store.CHUNK_ROWS
    assert verify.verify(str(output)).problems == ()
    assert current_name(layout) is not None
