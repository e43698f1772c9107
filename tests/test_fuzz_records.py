"""What parts of a run count adds up in any order; uris fall into buckets; JSON that is sealed comes back."""

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgindex.features import known_failures
from imgindex.features.feature_store import read_keys, read_rows, write_rows
from imgindex.generations.counters import Counters
from imgindex.io import filesystem
from imgindex.io.digest_json import seal, unseal
from imgindex.records import Failure, ImageRow, KnownFailure, bucket_of

# Whole numbers of seconds up to a year 10,000: their sums are exact.
SECONDS = st.integers(0, 2**38).map(float)
TALLIES = st.builds(
    Counters,
    st.dictionaries(
        st.sampled_from(["listed", "embedded", "copied", "reused", "failed"]), st.integers(0, 2**62)
    ),
    st.none() | st.tuples(SECONDS, SECONDS).map(lambda span: (min(span), max(span))),
    SECONDS,
    SECONDS,
)


@given(st.lists(TALLIES, max_size=8), st.data())
def test_tallies_add_up_in_any_order_and_any_grouping(counters: list[Counters], data: Any) -> None:
    total = sum(counters, Counters())
    assert sum(data.draw(st.permutations(counters)), Counters()) == total
    cut = data.draw(st.integers(0, len(counters)))
    assert sum(counters[:cut], Counters()) + sum(counters[cut:], Counters()) == total
    assert total + Counters() == Counters() + total == total
    # By hand.
    for name in {name for counters in counters for name in counters.counts}:
        assert total.counts[name] == sum(counters.counts.get(name, 0) for counters in counters)
    assert total.held == sum(counters.held for counters in counters)
    spans = [counters.span for counters in counters if counters.span]
    assert total.span == ((min(start for start, _ in spans), max(end for _, end in spans)) if spans else None)
    assert total.engine_seconds == sum(Fraction(counters.engine_seconds) for counters in counters)
    assert total.diffed == max((counters.diffed for counters in counters), default=0.0)


# What `uris.uri_of` makes of any name: text without lone surrogates.
URIS = st.text(max_size=20)


@given(URIS, st.integers(1, 2**40))
def test_a_uri_falls_into_one_of_the_buckets(uri: str, buckets: int) -> None:
    bucket = bucket_of(uri, buckets)
    assert 0 <= bucket < buckets
    assert bucket_of(uri, buckets) == bucket
    # A hash whose remainders these are, so that buckets of a divisor are those of the whole, put together.
    assert bucket_of(uri, 2 * buckets) % buckets == bucket
    assert bucket_of(uri, 1) == 0


def test_buckets_are_the_same_everywhere() -> None:
    assert [bucket_of(uri, 1000) for uri in ("", "a.jpg", "ä 猫/b.png")] == [876, 449, 344]


# JSON's own values; its numbers are Python's.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CONTENTS = st.dictionaries(st.text(max_size=6).filter(lambda key: key != "digest"), JSON, max_size=5)


@given(CONTENTS)
def test_what_is_sealed_comes_back_however_it_is_laid_out(content: dict[str, Any]) -> None:
    data = seal(content)
    found = unseal(data)
    digest = found.pop("digest")
    assert found == content
    again = json.dumps({"digest": digest, **dict(reversed(content.items()))}, ensure_ascii=True, indent=1)
    assert {key: value for key, value in unseal(again.encode()).items() if key != "digest"} == content


@given(CONTENTS, st.data())
@example({"a": 1}, None)
def test_what_is_sealed_is_not_altered_unnoticed(content: dict[str, Any], data: Any) -> None:
    if data is None:
        with pytest.raises(ValueError, match="digest"):
            unseal(seal(content).replace(b"1", b"1.0", 1))
        return
    stored = bytearray(seal(content))
    position = data.draw(st.integers(0, len(stored) - 1))
    stored[position] ^= data.draw(st.integers(1, 255))
    try:
        found = unseal(bytes(stored))
    except ValueError:
        return
    assert {key: value for key, value in found.items() if key != "digest"} == content


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"digest": "' + b"0" * 64 + b'"}')
@example(b"[" * 100_000)
@example(b'{"a": ' * 100_000)
@example(b"9" * 5000)
@example(b"NaN")
def test_nothing_else_is_unsealed(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        unseal(data)


ROWS = st.builds(
    ImageRow,
    URIS,
    st.integers(0, 2**63 - 1),
    st.text(max_size=10),
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.integers(1, 2**31 - 1),
    st.integers(1, 2**31 - 1),
)


@given(st.lists(ROWS, min_size=1, max_size=5))
def test_rows_of_the_store_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[ImageRow]) -> None:
    directory = str(tmp_path_factory.getbasetemp() / "rows")
    features = np.linspace(-1, 1, 3 * len(rows), dtype=np.float16).reshape(-1, 3)
    chunk = write_rows(directory, rows, features)[0].chunk
    images, found = read_rows(directory, chunk, list(range(len(rows))))
    keys = list(read_keys(directory, chunk))
    back = [
        ImageRow(key.uri, key.size, key.version, key.sha256, row["width"], row["height"])
        for key, row in zip(keys, images.to_pylist(), strict=True)
    ]
    assert back == rows
    np.testing.assert_array_equal(found, features, strict=True)


@given(st.lists(ROWS, min_size=1, max_size=5), st.text(max_size=30))
def test_remembered_failures_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[ImageRow], message: str
) -> None:
    directory = str(tmp_path_factory.mktemp("failed"))
    known = [
        KnownFailure(Failure(row.uri, "decode", "truncated", message, row.sha256), row.size, row.version)
        for row in rows
    ]
    known_failures.write(directory, known)
    (name,) = known_failures.names(directory)
    assert sorted(known_failures.read(directory, name), key=repr) == sorted(known, key=repr)
    # The same failures make the same file, in whatever order they come.
    before = filesystem.read_bytes(filesystem.join(directory, name))
    known_failures.write(directory, known[::-1])
    assert known_failures.names(directory) == [name]
    assert filesystem.read_bytes(filesystem.join(directory, name)) == before
