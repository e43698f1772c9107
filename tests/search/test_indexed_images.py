"""What is known of indexed images, against a walk through all of them."""

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from imgindex.search.indexed_images import IndexedImages

# Names that are near each other in the order of bytes, and in that of other alphabets.
URIS = st.text(st.sampled_from("a0/\u00e9\u5199\U0001f600"), min_size=1, max_size=4)

SCHEMA = pa.schema(
    [("uri", "string"), ("label", "string"), ("sha256", "string"), ("width", "int32"), ("height", "int32")]
)


def digest_of(content: int) -> str:
    # Half of them have the same end.
    digest = hashlib.sha256(bytes([content])).hexdigest()
    return digest[:-8] + "0" * 8 if content % 2 else digest


@st.composite
def shards_of_images(draw):
    uris = draw(st.lists(URIS, min_size=1, max_size=30, unique=True))
    count = draw(st.integers(1, 3))
    rows = [
        {
            "uri": uri,
            "label": draw(st.sampled_from([None, "x", "y"])),
            "sha256": digest_of(draw(st.integers(0, 9))),
            "width": number + 1,
            "height": number + 2,
        }
        for number, uri in enumerate(sorted(uris))
    ]
    shards = [rows[number::count] for number in range(count) if rows[number::count]]
    return shards, [pa.Table.from_pylist(shard, SCHEMA) for shard in shards]


@given(shards_of_images(), URIS, st.integers(0, 9))
def test_all_that_is_asked_is_what_a_walk_finds(given_shards, other, content):
    shards, tables = given_shards
    images = IndexedImages(tables)
    places = {row["uri"]: (s, i) for s, shard in enumerate(shards) for i, row in enumerate(shard)}
    for uri in [*places, other]:
        assert images.with_uri(uri) == places.get(uri)
    for uri, place in places.items():
        assert images.row(place)["uri"] == uri

    digest = digest_of(content)
    holders = sorted(row["uri"] for shard in shards for row in shard if row["sha256"] == digest)
    assert images.known([digest]) == ({digest: holders[0]} if holders else {})

    rows = [(s, i, row) for s, shard in enumerate(shards) for i, row in enumerate(shard)][::-1]
    told = images.told(np.array([s for s, _, _ in rows]), np.array([i for _, i, _ in rows]))
    assert [tuple(column.to_pylist()) for column in told] == [
        tuple(row[name] for _, _, row in rows) for name in ("uri", "label", "sha256", "width", "height")
    ]

    digests = [row["sha256"] for shard in shards for row in shard]
    for s, i, row in rows:
        assert images.counts[images.contents[s][i]] == digests.count(row["sha256"])
    assert images.distinct == [len({row["sha256"] for row in shard}) for shard in shards]
    numbers = {row["sha256"]: int(images.contents[s][i]) for s, i, row in rows}
    assert images.contents_named([other, digest]) == {
        number
        for held, number in numbers.items()
        if held == digest
        or (other in places and held == shards[places[other][0]][places[other][1]]["sha256"])
    }
    labels = [row["label"] for shard in shards for row in shard if row["label"]]
    assert images.labels() == {label: labels.count(label) for label in labels}


def test_what_is_no_digest_is_not_found():
    images = IndexedImages([SCHEMA.empty_table()])
    for name in ("", "short", "写" * 64):
        assert images.with_digest(name) == []
