"""The kinds of indexes that can be compared, each with settings to try."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

# As in the protocol, whose module loads NumPy: `--help`, which lists the names, need not wait for it.
SearchSettings = Mapping[str, int]
# An index, and the searches to try in it.
Trial = tuple[Mapping[str, int | str], tuple[SearchSettings, ...]]


@dataclass(frozen=True)
class Family:
    """A kind of index that a library offers."""

    library: str  # as people call it
    package: str  # what Python imports
    backend: str  # the module of `imgindex.models.ann` or another one, and the class in it
    trials: Callable[[int, int], tuple[Trial, ...]]  # for a number of items and of dimensions
    extra: str | None = None  # of imgindex, which brings the library; None where every installation has it


def _powers(name: str, *values: int, most: int | None = None) -> tuple[SearchSettings, ...]:
    """Searches with `values` of one setting, but none above `most`."""
    kept = dict.fromkeys(value if most is None else min(value, most) for value in values)
    return tuple({name: value} for value in kept)


def _annoy(items: int, dims: int) -> tuple[Trial, ...]:
    searches = _powers("search_k", 100, 400, 1600, 6400)
    return tuple(({"trees": trees, "seed": 0}, searches) for trees in (10, 40))


def _flat(items: int, dims: int) -> tuple[Trial, ...]:
    return (({"factory": "Flat"}, ({},)),)


def _clusters(items: int) -> int:
    """As many clusters as they have items, which makes the fewest comparisons when one is searched."""
    return max(1, round(math.sqrt(items)))


def _ivf(items: int, dims: int) -> tuple[Trial, ...]:
    lists = _clusters(items)
    counts = dict.fromkeys((lists, min(4 * lists, items)))
    return tuple(
        ({"factory": f"IVF{count},Flat"}, _powers("nprobe", 1, 4, 16, 64, most=count)) for count in counts
    )


def _pq(items: int, dims: int) -> tuple[Trial, ...]:
    """Two dimensions in four bits, and five in eight; exact distances of what is near by them.

    Dimensions are filled up to a multiple. ``np`` leaves out the polysemous training, which takes minutes and
    serves searches by Hamming distance alone.
    """
    reranked = _powers("k_factor_rf", 1, 4, 16)
    pairs, fives = -(-dims // 2), -(-dims // 5)
    return (
        ({"factory": f"Pad{2 * pairs},PQ{pairs}x4fs"}, ({},)),
        ({"factory": f"Pad{2 * pairs},PQ{pairs}x4fs,RFlat"}, reranked),
        ({"factory": f"Pad{5 * fives},PQ{fives}x8np"}, ({},)),
    )


def _faiss_hnsw(items: int, dims: int) -> tuple[Trial, ...]:
    searches = _powers("efSearch", 16, 64, 256)
    return tuple(({"factory": f"HNSW{neighbors}"}, searches) for neighbors in (16, 32))


def _lsh(items: int, dims: int) -> tuple[Trial, ...]:
    searches = _powers("k_factor_rf", 1, 4, 16, 64)
    return tuple(({"factory": f"LSH{bits}r,RFlat"}, searches) for bits in (128, 512))


def _scann(items: int, dims: int) -> tuple[Trial, ...]:
    leaves = _clusters(items)
    searches = tuple(
        {"leaves_to_search": each["leaves_to_search"], "reorder": reorder}
        for each in _powers("leaves_to_search", 4, 16, 64, most=leaves)
        for reorder in (30, 100)
    )
    return (({"leaves": leaves}, searches),)


def _voyager(items: int, dims: int) -> tuple[Trial, ...]:
    searches = _powers("query_ef", 16, 64, 256)
    return tuple(({"M": neighbors, "ef_construction": 200}, searches) for neighbors in (8, 16))


def _usearch(items: int, dims: int) -> tuple[Trial, ...]:
    searches = _powers("expansion_search", 16, 64, 256)
    return tuple(({"connectivity": neighbors, "expansion_add": 128}, searches) for neighbors in (16, 32))


def _tree(items: int, dims: int) -> tuple[Trial, ...]:
    return tuple(({"leaf_size": size}, ({},)) for size in (20, 200))


def _of_faiss(trials: Callable[[int, int], tuple[Trial, ...]]) -> Family:
    return Family("FAISS", "faiss", "imgindex.models.ann.faiss:Faiss", trials, "compare")


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "annoy": Family("Annoy", "annoy", "imgindex.models.ann.annoy:Annoy", _annoy),
        "faiss-flat": _of_faiss(_flat),
        "faiss-ivf": _of_faiss(_ivf),
        "faiss-pq": _of_faiss(_pq),
        "faiss-hnsw": _of_faiss(_faiss_hnsw),
        "faiss-lsh": _of_faiss(_lsh),
        "scann": Family("ScaNN", "scann", "imgindex.models.ann.scann:Scann", _scann, "compare"),
        "voyager": Family("Voyager", "voyager", "imgindex.models.ann.voyager:Voyager", _voyager, "compare"),
        "usearch": Family(
            "USearch", "usearch.index", "imgindex.models.ann.usearch:USearch", _usearch, "compare"
        ),
        "kdtree": Family("scikit-learn", "sklearn.neighbors", "imgindex.models.ann.trees:KDTree", _tree),
        "balltree": Family("scikit-learn", "sklearn.neighbors", "imgindex.models.ann.trees:BallTree", _tree),
    }
)
