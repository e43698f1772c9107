"""The library that shards are written with, which is Annoy, and how the config sets it."""

from imgindex.config import IndexConfig
from imgindex.models.ann.annoy import AUTO_TREES, Annoy, AnnoyShard

SHARD_BACKEND = Annoy()

# The searches that recall is measured of, the quickest first.
SEARCHES = AnnoyShard.searches


def settings_to_try(config: IndexConfig) -> list[dict[str, int]]:
    """What a shard is built with, the smallest index first; of several the one that does best is kept."""
    counts = (config.trees,) if isinstance(config.trees, int) else AUTO_TREES
    return [{"trees": trees, "seed": config.seed} for trees in counts]
