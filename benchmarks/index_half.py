"""The index half on synthetic features, against the bare NumPy, SciPy and Annoy calls that it consists of.

Both read the same Parquet store. Each side runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from measure import machine, run

FEATURE_DIM = 2048
DIMS = 150
TREES = 40
CHUNK_ROWS = 512


def synthesize(store: Path, images: int) -> None:
    """Writes `images` features that look like a ReLU's pooled output to chunks of a store."""
    from imgindex.features.feature_store import write_rows
    from imgindex.models.pca import normalize
    from imgindex.records import ImageRow

    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((256, FEATURE_DIM), dtype=np.float32)
    for start in range(0, images, CHUNK_ROWS):
        count = min(CHUNK_ROWS, images - start)
        latent = rng.standard_normal((count, 256), dtype=np.float32)
        features, _ = normalize(np.maximum(latent @ mixing, 0))
        rows = [
            ImageRow(f"{n % 997:03}/{n:09}.jpg", 1, "1", "0" * 64, 1, 1) for n in range(start, start + count)
        ]
        write_rows(str(store), rows, features)


def ours(store: Path, output: Path) -> None:
    """Runs the index half of the pipeline, as `imgindex build` does, and prints its seconds by stage."""
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from imgindex.config import Config, IndexConfig, PcaConfig
    from imgindex.generations.layout import Output
    from imgindex.job.graph import frozen_or_fitted, index_half
    from imgindex.job.plan import Plan
    from imgindex.models.engines.protocol import EngineChoice
    from imgindex.models.spec import Spec

    started = time.time()
    plan = Plan(
        config=Config(pca=PcaConfig(dims=DIMS), index=IndexConfig(trees=TREES)),
        input="",
        output=Output(str(output)),
        generation="benchmark",
        previous=None,
        spec=Spec("synthetic", "", (1, 1), "avg", "", "", ""),
        feature_dim=FEATURE_DIM,
        engine=EngineChoice("synthetic", "none", "avg", None, "openvino", "float32", 16),
        threads=None,
        started=started,
        prepared=started,
    )
    Path(plan.store).parent.mkdir(parents=True)
    Path(plan.store).symlink_to(store.resolve())
    chunks = [(path.name, pq.read_metadata(path).num_rows) for path in sorted(store.iterdir())]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        selection = pipeline | beam.Create(chunks) | beam.MapTuple(lambda name, n: (name, list(range(n))))
        news = pipeline | "NoNews" >> beam.Create([])
        basis, _ = frozen_or_fitted(selection, news, plan)
        rows = pipeline | "Rows" >> beam.Create([sum(count for _, count in chunks)])
        bases, shards = index_half(selection, rows, basis, plan)
        bases | "Fitted" >> beam.Map(lambda basis: print(f"pca {basis.finished - started:.1f}", flush=True))
        shards | "Built" >> beam.Map(lambda shard: print(f"shard {shard.finished - started:.1f}", flush=True))
    print(f"total {time.time() - started:.1f}")


def bare(store: Path, output: Path) -> None:
    """The same with nothing around it, one pass after the other; prints its seconds by stage."""
    import scipy.linalg
    from annoy import AnnoyIndex

    started = time.time()

    def blocks() -> object:
        for path in sorted(store.iterdir()):
            column = pq.read_table(path, columns=["feature"])["feature"].combine_chunks()
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, FEATURE_DIM)

    total, gram, count, waiting = np.zeros(FEATURE_DIM), np.zeros((FEATURE_DIM, FEATURE_DIM)), 0, []
    for block in blocks():
        waiting.append(block)
        count += len(block)
        if len(waiting) == 8:
            rows = np.concatenate(waiting).astype(np.float64)
            total += rows.sum(axis=0)
            gram += rows.T @ rows
            waiting.clear()
    if waiting:
        rows = np.concatenate(waiting).astype(np.float64)
        total += rows.sum(axis=0)
        gram += rows.T @ rows
    mean = total / count
    covariance = (gram - count * np.outer(mean, mean)) / (count - 1)
    _, vectors = scipy.linalg.eigh(covariance, subset_by_index=[FEATURE_DIM - DIMS, FEATURE_DIM - 1])
    components = vectors[:, ::-1]
    print(f"pca {time.time() - started:.1f}", flush=True)
    projected = np.empty((count, DIMS), np.float32)
    start = 0
    for block in blocks():
        projected[start : start + len(block)] = (block.astype(np.float64) - mean) @ components
        start += len(block)
    print(f"project {time.time() - started:.1f}", flush=True)
    index = AnnoyIndex(DIMS, "angular")
    index.set_seed(0)
    for item, vector in enumerate(projected):
        index.add_item(item, vector)
    index.build(TREES, n_jobs=1)
    index.save(str(output / "index.ann"))
    print(f"total {time.time() - started:.1f}")


def main() -> None:
    """Prints seconds by stage, the ratio and the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int, nargs="?", default=100_000)
    parser.add_argument("--side", choices=["ours", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        {"ours": ours, "bare": bare}[arguments.side](*arguments.folders)
        return
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        store.mkdir()
        synthesize(store, arguments.images)
        seconds = {}
        for side in ("bare", "ours"):
            output = Path(folder) / side
            output.mkdir()
            done = run([sys.executable, __file__, "--side", side, "--folders", str(store), str(output)])
            stages = ", ".join(line for line in done.output.splitlines() if line.split()[0] in STAGES)
            seconds[side] = done.seconds
            print(f"{side}: {done.seconds:.1f} s ({stages}), peak {done.peak_mib:.0f} MiB", flush=True)
        print(f"{arguments.images} features: {seconds['ours'] / seconds['bare']:.2f} x the bare calls")


STAGES = ("pca", "project", "shard", "total")


if __name__ == "__main__":
    main()
