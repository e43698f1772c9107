"""Shards within a budget of memory: how much one takes, and when it has to be built on disk."""

from imgindex.config import IndexConfig
from imgindex.indexing.shard_backend import SHARD_BACKEND, settings_to_try
from imgindex.indexing.shards import ShardSummary, write_shard
from imgindex.indexing.vector_files import Parts
from imgindex.runtime.resources import available_cores, available_memory, budget_of

# What is in memory of each row beside its vector: the metadata, as it is gathered, sorted and written, of
# paths of some hundred bytes.
_METADATA_BYTES = 600


def default_limit(threads: int) -> int:
    """What shards in the making may take on a worker of `threads`: half of its share of the memory."""
    return available_memory() // 2 * threads // max(threads, available_cores())


def bytes_in_memory(items: int, dims: int, config: IndexConfig) -> int:
    """What a shard takes that is built in memory."""
    largest = settings_to_try(config)[-1]
    return SHARD_BACKEND.build_bytes(items, dims, largest) + bytes_on_disk(items)


def bytes_on_disk(items: int) -> int:
    """What a shard takes that is built on disk, without the file's pages, which need not stay."""
    return _METADATA_BYTES * items


def write_within(
    limit: int, generation: str, shard: int, shard_count: int, parts: Parts, config: IndexConfig
) -> ShardSummary:
    """`write_shard` of `parts`, once this process has the memory left of `limit` bytes for all its shards."""
    wanted = bytes_in_memory(parts.rows, parts.dims, config)
    on_disk = wanted > limit
    with budget_of(limit).held(bytes_on_disk(parts.rows) if on_disk else wanted):
        return write_shard(generation, shard, shard_count, parts, config, on_disk=on_disk)
