"""What a search gives: neighbors, or why a query has none; and both as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from json.encoder import encode_basestring
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.search.neighbors import NEIGHBOR_FIELDS, Neighbor, Neighbors, shortest_digits, vector_json
from imgindex.text import printable

_fields_of = attrgetter(*NEIGHBOR_FIELDS)


@dataclass(frozen=True, slots=True)
class QueryError:
    """Why a query has no answer."""

    stage: str  # list, read, decode or embed
    reason: str  # a stable code, as of an image that could not be indexed
    message: str


@dataclass(frozen=True)
class Result:
    """A query's neighbors, nearest first; none where there is an error."""

    query: str  # the path, written as a uri is, or what was given instead of one
    neighbors: Sequence[Neighbor]
    error: QueryError | None = None
    # The uri of the indexed image whose file has the same bytes as the query; of several, the first. None
    # also where the query's bytes are not known.
    known: str | None = None
    vector: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)  # as of neighbors


def describe_error(error: QueryError) -> str:
    """Why a query has no answer, in one sentence."""
    what = "cannot be read" if error.stage in ("list", "read") else error.reason
    return f"{what}: {error.message}"


def to_json(results: Sequence[Result]) -> str:
    """Results as a JSON array of queries, each with its neighbors.

    Cosines and distances have the digits that tell one float32 from the next.
    """
    return json.dumps([as_json(result) for result in results], indent=2, ensure_ascii=False)


def as_json(result: Result) -> dict[str, Any]:
    """A result as what JSON is written of; `known` and vectors only where there are any."""
    described: dict[str, Any] = {
        "query": result.query,
        "neighbors": [_neighbor_as_json(neighbor) for neighbor in result.neighbors],
        "error": None if result.error is None else asdict(result.error),
    }
    if result.known is not None:
        described["known"] = result.known
    return described | _vector_as_json(result.vector)


def compact_json(result: Result) -> str:
    """What `as_json` describes, as text. Neighbors that an index found need no object for each."""
    neighbors = result.neighbors
    listed = (
        neighbors.json
        if isinstance(neighbors, Neighbors)
        else json.dumps([_neighbor_as_json(neighbor) for neighbor in neighbors])
    )
    error = "null" if result.error is None else json.dumps(asdict(result.error))
    known = "" if result.known is None else f',"known":{encode_basestring(result.known)}'
    vector = "" if result.vector is None else f',"vector":{vector_json(result.vector)}'
    query = encode_basestring(result.query)
    return f'{{"query":{query},"neighbors":{listed},"error":{error}{known}{vector}}}'


def _neighbor_as_json(neighbor: Neighbor) -> dict[str, Any]:
    # `asdict` would copy each value, which takes several times as long.
    described = dict(zip(NEIGHBOR_FIELDS, _fields_of(neighbor), strict=True))
    floats = np.array([neighbor.similarity, neighbor.distance])
    described["similarity"], described["distance"] = map(float, shortest_digits(floats))
    return described | _vector_as_json(neighbor.vector)


def _vector_as_json(vector: npt.NDArray[np.float32] | None) -> dict[str, list[float]]:
    return {} if vector is None else {"vector": list(map(float, shortest_digits(vector)))}


def result_table(results: Sequence[Result], metric: str) -> str:
    """One block a query: rank, cosine similarity, copies and path of each neighbor.

    Under another `metric` than angular also the distance, which is then what they are sorted by.
    """
    blocks = []
    for result in results:
        columns = [("rank", [f"{n.rank}" for n in result.neighbors])]
        if metric != "angular":
            columns.append(("distance", [f"{n.distance:.4f}" for n in result.neighbors]))
        columns.append(("cosine", [f"{n.similarity:.3f}" for n in result.neighbors]))
        if all(n.copies is not None for n in result.neighbors):
            columns.append(("copies", [f"{n.copies}" for n in result.neighbors]))
        padded = []
        for name, values in columns:
            width = max(map(len, [name, *values]))
            padded.append([text.rjust(width) for text in (name, *values)])
        paths = ["path", *(printable(n.uri) for n in result.neighbors)]
        lines = ["  ".join(cells) for cells in zip(*padded, paths, strict=True)]
        if result.known is not None:
            lines.append(f"known: the file's bytes are indexed as {printable(result.known)}")
        blocks.append("\n".join([printable(result.query), *lines]))
    return "\n\n".join(blocks)


def one_dimension(dims: int, metric: str) -> list[str]:
    """A warning where cosines of vectors say nothing, as in the index of a single image."""
    if dims > 1 or metric != "angular":
        return []
    return ["the index's vectors have one dimension, in which every cosine is 1 or -1; index more images"]
