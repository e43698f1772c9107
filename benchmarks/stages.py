"""What each stage of a build takes on one core: the constants of `imgindex.job.costs`.

Backbones are not among them: `whole_job.py` measures those.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import machine
from threadpoolctl import threadpool_limits

from imgindex.config import IndexConfig
from imgindex.features import feature_store
from imgindex.indexing.shards import write_shard
from imgindex.indexing.vector_files import Parts, PartWriter, VectorRows
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.models.moments import Moments
from imgindex.models.pca import fit_basis, normalize
from imgindex.records import ImageFile, ImageRow

FEATURE_DIM = 2048
DIMS = 150
TREES = (10, 40)
SHARDS = (10_000, 100_000)
LISTED = 20_000
JOINED = (10_000, 50_000)
ROWS = 4096


def seconds(call: Callable[[], object]) -> float:
    """How long `call` takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def listing(folder: Path) -> float:
    """Seconds a file."""
    for number in range(LISTED):
        path = folder / f"{number % 100:02}" / f"{number:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return seconds(lambda: sum(1 for _ in list_images(str(folder), Selection((".jpg",))))) / LISTED


def joins(folder: Path) -> float:
    """Seconds an image of reading its key and of the joins with store and generation, once they run."""
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from imgindex.features.transforms import DiffAgainstStore
    from imgindex.generations.transforms import CompareGenerations

    def uri(number: int) -> str:
        return f"{number % 997:03}/{number:09}.jpg"

    def files(images: int) -> list[ImageFile]:
        return [ImageFile(uri(number), f"/photos/{uri(number)}", number, "1") for number in range(images)]

    def join(images: int) -> None:
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            listed = pipeline | beam.Create([images]) | beam.FlatMap(files)
            held = (listed | DiffAgainstStore(str(folder / str(images)))).found
            _ = held | CompareGenerations([])

    taken = []
    for images in JOINED:
        for start in range(0, images, 512):
            rows = [
                ImageRow(uri(n), n, "1", f"{n:064}", 1, 1) for n in range(start, min(images, start + 512))
            ]
            feature_store.write_rows(str(folder / str(images)), rows, np.full((len(rows), 1), 1, np.float16))
        taken.append(seconds(lambda images=images: join(images)))
    return (taken[1] - taken[0]) / (JOINED[1] - JOINED[0])


def features(rows: int) -> np.ndarray:
    """Features that look like a ReLU's pooled output."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((256, FEATURE_DIM), dtype=np.float32)
    return normalize(np.maximum(rng.standard_normal((rows, 256), dtype=np.float32) @ mixing, 0))[0]


def shard(folder: Path, items: int, trees: int) -> tuple[float, float]:
    """Seconds of writing a shard's rows as parts, and of building the shard of them."""
    columns = {name: pa.array(range(items), pa.int32()) for name in ("size", "width", "height")}
    uris = [f"{n % 997:03}/{n:09}.jpg" for n in range(items)]
    images = pa.table({"uri": uris, "sha256": [f"{n:064}" for n in range(items)], **columns})
    latent = np.random.default_rng(1).standard_normal((items, DIMS), dtype=np.float32)
    vectors = latent / np.sqrt(np.arange(1, DIMS + 1, dtype=np.float32))  # a spectrum that falls off
    parts = []

    def write() -> None:
        writer = PartWriter(str(folder))
        for start in range(0, items, 512):
            rows = VectorRows(images.slice(start, 512), vectors[start : start + 512])
            parts.extend(part for _, part in writer.add(0, rows))
        parts.extend(part for _, part in writer.flush())

    written = seconds(write)
    config = IndexConfig(trees=trees)
    return written, seconds(lambda: write_shard(str(folder), 0, 1, Parts(str(folder), parts), config))


def main() -> None:
    """Prints seconds."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        folder = Path(name)
        (folder / "listed").mkdir()
        print(f"list {listing(folder / 'listed'):.3g} s a file")
        print(f"join {joins(folder / 'joined'):.3g} s an image", flush=True)
        rows = features(2 * ROWS)
        described = [ImageRow(f"{n:09}.jpg", 1, "1", f"{n:064}", 1, 1) for n in range(512)]
        chunks = []

        def write() -> None:
            for start in range(0, len(rows), 512):
                images = feature_store.write_rows(str(folder / "store"), described, rows[start : start + 512])
                chunks.append(images[0].chunk)

        def read() -> None:
            for chunk in chunks:
                feature_store.read_features(str(folder / "store"), chunk, list(range(512)))

        print(f"write {seconds(write) / len(rows):.3g} s, read {seconds(read) / len(rows):.3g} s a feature")
        moments = Moments.empty(FEATURE_DIM)
        moments.add(rows[:ROWS])
        print(f"moments {seconds(lambda: moments.add(rows)) / len(rows):.3g} s a feature", flush=True)
        bases = []
        print(f"fit {seconds(lambda: bases.append(fit_basis(moments, DIMS))):.3g} s", flush=True)
        projected = seconds(
            lambda: [bases[0].project(rows[at : at + 512]) for at in range(0, len(rows), 512)]
        )
        print(f"project {projected / len(rows):.3g} s a feature", flush=True)
        built = {}
        for items in SHARDS:
            for trees in TREES:
                part, built[items, trees] = shard(folder / f"{items}-{trees}", items, trees)
                print(
                    f"shard of {items}, {trees} trees: parts {part / items:.3g} s an item, "
                    f"built {built[items, trees]:.2f} s",
                    flush=True,
                )
        items, (few, many) = SHARDS[-1], TREES
        slope = (built[items, many] - built[items, few]) / (many - few)
        print(f"tree {slope / items / math.log2(items):.3g} s an item and level")
        print(f"item {(built[items, few] - few * slope) / items:.3g} s an item beside its trees")


if __name__ == "__main__":
    main()
