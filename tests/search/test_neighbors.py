"""Neighbors as columns: the objects and the JSON that are made of them."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgindex.search.neighbors import Neighbor, NeighborColumns, Neighbors, shortest_digits
from imgindex.search.results import QueryError, Result, as_json, compact_json

TEXTS = [
    "a/1.jpg",
    'quoted "b"/2.jpg',
    "back\\slash.jpg",
    "tab\tand\nline.jpg",
    "bell\x07.jpg",
    "ключ/🦆.png",
]
LABELS = ["a", 'quoted "b"', None, None, "\x1f", "ключ"]


def columns(with_vectors: bool) -> NeighborColumns:
    count = len(TEXTS)
    images = [pa.array(TEXTS), pa.array(LABELS), pa.array([f"{n:064x}" for n in range(count)])]
    images += [pa.array(np.arange(count) + first, pa.int32()) for first in (300, 200)]
    return NeighborColumns(
        ranks=np.array([1, 2, 1, 2, 3, 4]),
        similarities=np.array([1.0, 0.99999994, 0.3, 1e-8, 0.0, -0.7]),
        distances=np.array([0.0, 5.9604645e-08, 1.18, 1.4, 2**0.5, 1.84]),
        images=images,
        shards=np.array([0, 1, 0, 2, 0, 1]),
        items=np.arange(count) * 10,
        copies=np.array([0, 3, 0, 0, 1, 0]),
        vectors=np.linspace(-1, 1, 3 * count, dtype=np.float32).reshape(count, 3) if with_vectors else None,
    )


@pytest.mark.parametrize("with_vectors", [False, True])
def test_json_of_columns_is_that_of_the_objects(with_vectors):
    found = columns(with_vectors)
    for neighbors in (Neighbors(found, 0, 2), Neighbors(found, 2, 6), Neighbors(found, 2, 2)):
        result = Result("a query", neighbors, known="a/1.jpg", vector=np.float32([0.1, 2]))
        objects = Result("a query", tuple(neighbors), known="a/1.jpg", vector=np.float32([0.1, 2]))
        assert json.loads(compact_json(result)) == as_json(objects) == json.loads(compact_json(objects))


def test_json_of_a_query_without_an_answer():
    result = Result('a "query"\n', (), QueryError("decode", "truncated", "it ends"))
    assert json.loads(compact_json(result)) == as_json(result)


def test_neighbors_are_a_tuple_of_objects():
    found = Neighbors(columns(False), 2, 6)
    expected = tuple(
        Neighbor(
            rank=n - 1, uri=TEXTS[n], similarity=[0.3, 1e-8, 0.0, -0.7][n - 2],
            distance=[1.18, 1.4, 2**0.5, 1.84][n - 2], label=LABELS[n], sha256=f"{n:064x}", width=300 + n,
            height=200 + n, shard=[0, 2, 0, 1][n - 2], item=10 * n, copies=[0, 0, 1, 0][n - 2],
        )
        for n in range(2, 6)
    )  # fmt: skip
    assert found == expected
    assert expected == found
    assert found == Neighbors(columns(False), 2, 6)
    assert found != Neighbors(columns(False), 0, 2)
    assert (len(found), found[-1], found[1:3], tuple(found)) == (4, expected[-1], expected[1:3], expected)
    assert hash(found) == hash(expected)
    assert repr(found) == repr(expected)
    assert expected[1] in found


def test_vectors_belong_to_their_neighbors():
    found = columns(True)
    assert found.vectors is not None
    for n, neighbor in enumerate(Neighbors(found, 2, 6), 2):
        np.testing.assert_array_equal(neighbor.vector, found.vectors[n])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(1.0)
@example(2.0**-149)
@example(float(np.finfo(np.float32).max))
def test_the_digits_of_a_float_give_it_back(value):
    (text,) = shortest_digits(np.array([value]))
    assert np.float32(json.loads(text)) == np.float32(value)
    # No more digits than NumPy takes.
    digits, expected = (
        each.partition("e")[0].strip("-0.").replace(".", "").rstrip("0")
        for each in (text, str(np.float32(value)))
    )
    assert len(digits) <= len(expected)
