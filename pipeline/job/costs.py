"""What a build costs: core-seconds, bytes, shards and memory, as formulas of a few numbers.

Seconds are of one core. benchmarks/stages.py and whole_job.py have measured them on two cores of a Xeon with
AMX; docs/scaling.md says when, and how far whole builds were from what is predicted here. Another machine
has others.
"""

import math
from dataclasses import dataclass

from imgindex.config import IndexConfig
from imgindex.indexing import shard_budget
from imgindex.indexing.shard_backend import SHARD_BACKEND
from imgindex.indexing.shards import shard_count_of
from imgindex.records import JOIN_BUCKETS

# Seconds of a core.
LIST_SECONDS = 1.2e-5  # a file of a local directory
JOIN_SECONDS = 7.7e-5  # an image: its key, the joins with store and generation
WRITE_SECONDS = 2.3e-8  # a value of a feature, into a chunk
READ_SECONDS = 8.7e-9  # a value of a feature, out of a chunk
MOMENTS_SECONDS = 1.87e-11  # a product of two values of a feature
FIT_SECONDS = 1.11e-10  # a cube of feature_dim: the eigenvectors
PROJECT_SECONDS = 7.9e-11  # a product of a value of a feature and one of a component
PART_SECONDS = 2.3e-8  # a value of a vector, into a part
ITEM_SECONDS = 1.89e-7  # a value of a vector: part read, item added, metadata, recall, checks
TREE_SECONDS = 5.7e-8  # an item in a tree and a level of it, at 150 dimensions
START_SECONDS = 6.0  # a build: imports, the engine's choice, the graph, publishing

# Seconds of a core for an image that is read, decoded and embedded, by backbone and precision.
EMBED_SECONDS = {
    ("ResNet50", "bfloat16"): 2 / 125,
    ("ResNet50", "float32"): 2 / 28,
    ("InceptionV3", "bfloat16"): 2 / 77,
    ("InceptionV3", "float32"): 2 / 18,
    ("MobileNetV2", "float32"): 2 / 217,
}

# Bytes beside the texts of a row.
_CHUNK_ROW_BYTES = 120
_METADATA_ROW_BYTES = 66
# Bytes of files beside their rows.
_METADATA_BYTES = 3_000  # of each shard's
_MANIFEST_BYTES, _MANIFEST_SHARD_BYTES = 3_750, 550
_BASIS_BYTES = 1_500
_LISTED_BYTES, _STORED_BYTES, _INDEXED_BYTES = 65, 173, 79  # in a shuffle; a listed image has two paths
_LISTED_OBJECT_BYTES, _STORED_OBJECT_BYTES = 535, 620  # in memory, with a path of some 60 bytes

# Peak of a worker that embeds: libraries, the engine, images under way (benchmarks/README.md).
WORKER_BYTES = 1 << 30
# What the in-process runner keeps of each image (benchmarks/memory.py).
IN_PROCESS_BYTES = 8_400


@dataclass(frozen=True)
class Workload:
    """A build: how much of what it does."""

    images: int  # that are listed
    new: int  # of them, to be embedded
    embed_seconds: float  # of a core, to read, decode and embed an image
    feature_dim: int = 2048
    dims: int = 150
    trees: int = 40
    items_per_shard: int = 1_000_000
    uri_bytes: float = 60.0  # of a path below the input, on average
    fitted: bool = True  # whether a basis is fitted to all images, or the one before kept

    @property
    def shards(self) -> int:
        """How many shards the index has."""
        return shard_count_of(self.images, self.items_per_shard)

    @property
    def shard_items(self) -> int:
        """How many images the largest shard holds, about."""
        return -(-self.images // self.shards)


def core_seconds(work: Workload) -> dict[str, float]:
    """Seconds of one core by stage. Joins, features and shards are those of all images, also in a refresh.

    A tree has log2(items of the shard) levels; moments are d**2 products an image, of which BLAS computes
    half; the eigenvectors take d**3; a projection d * dims.
    """
    images, d, dims = work.images, work.feature_dim, work.dims
    levels = math.log2(max(2, work.shard_items))
    return {
        "start": START_SECONDS,
        "list": images * LIST_SECONDS,
        # Whole chunks are read for their keys.
        "join": images * JOIN_SECONDS + (images - work.new) * d * READ_SECONDS,
        "embed": work.new * work.embed_seconds,
        "store": work.new * d * WRITE_SECONDS,
        # Once for the moments, once to be projected.
        "read": images * d * READ_SECONDS * (2 if work.fitted else 1),
        "moments": images * d**2 * MOMENTS_SECONDS if work.fitted else 0.0,
        "fit": d**3 * FIT_SECONDS if work.fitted else 0.0,
        "project": images * dims * (d * PROJECT_SECONDS + PART_SECONDS),
        "shards": images * (dims * ITEM_SECONDS + work.trees * levels * TREE_SECONDS * dims / 150),
    }


def elapsed_seconds(work: Workload, cores: int, in_process: bool = False) -> dict[str, float]:
    """Seconds on the clock by stage, on workers with `cores` together that share work evenly.

    The launcher starts, one worker lists and one fits, whatever there is. The in-process runner runs Python
    on one core; several decode and embed, multiply matrices and build shards.
    """
    python = 1 if in_process else cores
    parallel = {
        "start": 1, "list": 1, "join": python, "embed": cores, "store": cores, "read": python,
        "moments": cores, "fit": 1, "project": python, "shards": min(cores, work.shards),
    }  # fmt: skip
    return {stage: seconds / parallel[stage] for stage, seconds in core_seconds(work).items()}


def stored_bytes(work: Workload) -> dict[str, int]:
    """Bytes of storage: the store's, the generation's, and what its parts take until it is published."""
    chunk_row = 2 * work.feature_dim + work.uri_bytes + _CHUNK_ROW_BYTES
    part_row = 4 * work.dims + work.uri_bytes + _CHUNK_ROW_BYTES
    index = work.shards * SHARD_BACKEND.file_bytes(work.shard_items, work.dims, {"trees": work.trees})
    return {
        "store": round(work.images * chunk_row),
        "index": index,
        "metadata": round(work.images * (work.uri_bytes + _METADATA_ROW_BYTES))
        + work.shards * _METADATA_BYTES,
        # Mean and components, float32, and the figures of each component.
        "basis": 4 * work.feature_dim * (work.dims + 1) + 8 * work.dims + _BASIS_BYTES,
        "manifest": _MANIFEST_BYTES + work.shards * _MANIFEST_SHARD_BYTES,
        "parts": round(work.images * part_row),
    }


def shuffled_bytes(work: Workload) -> int:
    """Bytes that cross a shuffle: names and digests. No pixel or feature does; vectors go through files."""
    listed = 2 * work.uri_bytes + _LISTED_BYTES
    stored, indexed = work.uri_bytes + _STORED_BYTES, work.uri_bytes + _INDEXED_BYTES
    held = work.images - work.new
    by_uri = work.images * listed + held * stored
    by_size = work.new * listed + held * stored
    against_generation = work.images * stored + held * indexed
    units = work.new * listed
    return round(by_uri + by_size + against_generation + units)


def nodes_asked(work: Workload, search_k: int) -> int:
    """How many nodes of Annoy's trees a query inspects: `search_k` in every shard."""
    return work.shards * search_k


def worker_bytes(work: Workload) -> dict[str, int]:
    """Memory that a worker of a cluster needs at its peak, by what for; it does one at a time.

    `embed` is its libraries and engine too; a join's part is of the whole listing and the whole store.
    """
    config = IndexConfig(trees=work.trees)
    held = work.images - work.new
    bucket = (work.images * _LISTED_OBJECT_BYTES + held * _STORED_OBJECT_BYTES) / JOIN_BUCKETS
    return {
        "embed": WORKER_BYTES,
        "join": round(bucket),
        "shard": shard_budget.bytes_in_memory(work.shard_items, work.dims, config),
        "shard on disk": shard_budget.bytes_on_disk(work.shard_items),
    }


def in_process_bytes(work: Workload) -> int:
    """Memory of a build inside one process, where Beam's runner keeps what a cluster would shuffle."""
    return WORKER_BYTES + work.images * IN_PROCESS_BYTES
