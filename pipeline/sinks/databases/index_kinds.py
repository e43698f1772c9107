"""How the vectors of a collection are indexed, in the words of its database."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class IndexKind:
    """A kind of index with its parameters."""

    name: str
    build: Mapping[str, int] = field(default_factory=dict)
    search: Mapping[str, int] = field(default_factory=dict)


def lists_of(rows: int) -> int:
    """Into how many lists an inverted file divides so many rows: the advice of pgvector's README."""
    return max(1, rows // 1000 if rows <= 1_000_000 else math.isqrt(rows))


def probes_of(lists: int) -> int:
    """How many lists a search looks through: twice the square root, which pgvector's README begins with."""
    return min(lists, math.ceil(2 * math.sqrt(lists)))
