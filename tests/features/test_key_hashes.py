"""Keys of eight bytes: found exactly where they are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imgindex.features.key_hashes import key_of, places, sorted_keys


@given(st.sets(st.text(max_size=5)), st.lists(st.text(max_size=5)))
def test_places(held: set[str], asked: list[str]) -> None:
    among = sorted_keys(map(key_of, [*held, *held]))
    assert len(among) == len(held)
    found = places(np.array([key_of(text) for text in asked], np.uint64), among)
    assert [place >= 0 for place in found] == [text in held for text in asked]
    for text, place in zip(asked, found, strict=True):
        assert place < 0 or among[place] == key_of(text)


@given(st.integers(), st.integers(), st.text(), st.integers(), st.integers(), st.text())
def test_keys_differ_where_what_they_say_does(a: int, b: int, c: str, d: int, e: int, f: str) -> None:
    assert (key_of(a, b, c) == key_of(d, e, f)) == ((a, b, c) == (d, e, f))
