"""Recall for unseen queries: images that are held out, asked of an index of all others."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgindex.evaluation import annoy_search
from imgindex.evaluation.collection import Collection
from imgindex.evaluation.feature_search import search_vectors
from imgindex.evaluation.judging import recalls
from imgindex.evaluation.results import UnseenRecall
from imgindex.indexing.shard_backend import SHARD_BACKEND
from imgindex.models.ann.recall import RECALL_K
from imgindex.models.ann.shard_index import ShardIndex
from imgindex.models.retrieval_metrics import mean_interval
from imgindex.runtime.temporary_folder import TemporaryFolder

Items = npt.NDArray[np.int64]

# Images that are held out: at most so many, and at most this share of the distinct ones.
_HELD_OUT = 1000
_SHARE = 0.1
_BLOCK_ROWS = 1 << 14
# Shards of more images are built on several threads: not on as many as there are cores, for the trees depend
# on their number.
_MANY = 100_000
_THREADS = 4
# Larger files are built in a file that is mapped, whose pages the system can take back.
_IN_MEMORY = 1 << 30


def measure_unseen(collection: Collection, seed: int) -> UnseenRecall | None:
    """Recall@10 of a sample of images that `seed` draws, in an index of the others.

    It has as many trees as the shards. Copies of a held-out image are held out, too. Vectors stay as they
    are: a refresh projects new images on the basis of the index, too. Gives None where there are fewer than
    three distinct images.
    """
    contents = collection.contents
    distinct, first = np.unique(contents, return_index=True)
    if len(distinct) < 3:
        return None
    most = min(_HELD_OUT, annoy_search.most_asked(collection.manifest, RECALL_K))
    count = min(most, max(1, int(len(distinct) * _SHARE)))
    drawn = np.random.default_rng(seed).choice(distinct, count, replace=False)
    queries = np.sort(first[drawn])
    kept = np.flatnonzero(~np.isin(contents, drawn))
    with TemporaryFolder() as folder:
        started = time.perf_counter()
        shards = _build(collection, kept, Path(folder), seed)
        seconds = time.perf_counter() - started
        found = annoy_search.answers(
            shards,
            kept,
            collection.vectors[queries],
            left_out=contents[queries],
            contents=contents,
            copies=np.zeros(len(queries), np.int64),
            ranks=RECALL_K,
            search_k=collection.manifest.search_k,
        )
    exact = search_vectors(collection, collection.vectors, queries, RECALL_K, kept)
    each = recalls(collection, found, exact)
    recall = collection.manifest.recall
    return UnseenRecall(
        queries=len(queries),
        recall=float(each.mean()),
        interval=mean_interval(each, seed),
        seen=recall.recall,
        seen_queries=recall.queries,
        build_seconds=seconds,
    )


def _build(collection: Collection, kept: Items, folder: Path, seed: int) -> list[ShardIndex]:
    """Annoy's files of the images `kept`, shard by shard, with the trees of the shards."""
    manifest, starts = collection.manifest, collection.starts
    shards: list[ShardIndex] = []
    for number, shard in enumerate(manifest.shards):
        images = kept[(kept >= starts[number]) & (kept < starts[number + 1])]
        if not len(images):
            continue
        path = folder / f"{number}.ann"
        blocks = (images[start : start + _BLOCK_ROWS] for start in range(0, len(images), _BLOCK_ROWS))
        SHARD_BACKEND.build_blocks(
            ((np.searchsorted(images, block), collection.vectors[block]) for block in blocks),
            path,
            items=len(images),
            dims=manifest.dims,
            metric=manifest.metric,
            settings={"trees": shard.trees, "seed": seed},
            threads=_THREADS if len(images) > _MANY else 1,
            on_disk=len(images) * manifest.dims * 4 > _IN_MEMORY,
        )
        shards.append(SHARD_BACKEND.open(path, metric=manifest.metric, dims=manifest.dims, items=len(images)))
    return shards
