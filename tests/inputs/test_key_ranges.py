"""Cutting an object store's listing: the parts hold every key once, whatever the keys are like."""

import bisect
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.inputs.key_ranges import KeyRange, cut, objects_of
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.io import object_stores
from imgindex.io.object_protocol import Found, Page

BUCKET = "paged://bucket/"


class Paged:
    """A store that gives a few keys a request, and counts requests."""

    def __init__(self, keys: Any, page: int) -> None:
        self.keys = sorted(keys)
        self.size = page
        self.requests = 0

    def page(self, prefix: str, after: str, limit: int | None = None) -> Page:
        self.requests += 1
        start = max(bisect.bisect_left(self.keys, prefix), bisect.bisect_right(self.keys, after))
        found = []
        for key in self.keys[start:]:
            if not key.startswith(prefix):
                return Page(found, False)
            if len(found) == min(self.size, limit or self.size):
                return Page(found, True)
            found.append(Found(key, 1, 1.0, "1"))
        return Page(found, False)


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a store of given keys, and pages of a given size, behind ``paged://``."""

    def serve(keys: Any, page: int) -> Paged:
        store = Paged([BUCKET + key for key in keys], page)
        monkeypatch.setattr(object_stores, "_store_of", lambda path: store)
        return store

    return serve


def listed(parts: list[KeyRange]) -> list[str]:
    return [found.path.removeprefix(BUCKET) for part in parts for found in objects_of(part)]


CHARACTERS = st.sampled_from(["a", "b", "/", ".", "\u00e9", "\u732b", "\U0010ffff", " "])
KEYS = st.sets(st.text(CHARACTERS, min_size=1, max_size=6))


@given(KEYS, st.integers(1, 4), st.integers(1, 20))
def test_the_parts_hold_every_key_once(keys: set[str], page: int, parts: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        store = Paged([BUCKET + key for key in keys], page)
        patch.setattr(object_stores, "_store_of", lambda path: store)
        assert sorted(listed(cut(KeyRange(BUCKET), parts))) == sorted(keys)
        below = sorted(key for key in keys if key.startswith("a"))
        assert sorted(listed(cut(KeyRange(f"{BUCKET}a"), parts))) == below


@pytest.mark.parametrize(
    "keys",
    [
        [f"{n:06}.jpg" for n in range(20_000)],  # one folder
        [f"photos/n{n % 500:08}/{n:06}.jpg" for n in range(20_000)],
        [f"{'deep/' * 40}{n:06}.jpg" for n in range(20_000)],
    ],
    ids=["flat", "folders", "deep"],
)
def test_a_large_listing_is_cut_evenly_by_few_requests(keys: list[str], paged: Any) -> None:
    store = paged(keys, 100)
    parts = cut(KeyRange(BUCKET), 64)
    assert len(parts) >= 64
    assert store.requests < 20_000 / 100 * 6
    assert max(len(listed([part])) for part in parts) <= 2000
    assert listed(sorted(parts, key=lambda part: part.after)) == sorted(keys)


def test_what_a_request_lists_is_not_cut(paged: Any) -> None:
    store = paged(["a.jpg", "b/c.jpg"], 1000)
    assert cut(KeyRange(BUCKET)) == [KeyRange(BUCKET)]
    assert store.requests == 1
    assert cut(KeyRange(f"{BUCKET}nowhere/")) == [KeyRange(f"{BUCKET}nowhere/")]


def test_who_wants_the_first_images_asks_for_a_page(paged: Any) -> None:
    store = paged([f"photos/{n:06}.jpg" for n in range(20_000)], 100)
    images = list_images(f"{BUCKET}photos", Selection((".jpg",)))
    assert [next(images).uri for _ in range(8)] == [f"{n:06}.jpg" for n in range(8)]
    assert store.requests == 1
