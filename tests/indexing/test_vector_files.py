"""Parts: every row comes back once, in its own shard, whatever was gathered and flushed between."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.errors import OutputError
from imgindex.indexing import vector_files
from imgindex.indexing.vector_files import Part, Parts, PartWriter, VectorRows
from imgindex.io import content_addressed


def rows_of(first: int, count: int) -> VectorRows:
    uris = [f"{number:06}.jpg" for number in range(first, first + count)]
    vectors = np.arange(first, first + count, dtype=np.float32)[:, np.newaxis] * [1, -1, 0.5]
    return VectorRows(pa.table({"uri": uris}), vectors.astype(np.float32))


@given(
    batches=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=12), limit=st.integers(1, 20)
)
def test_every_row_comes_back_once_in_its_shard(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int]], limit: int
) -> None:
    generation = str(tmp_path_factory.mktemp("generation"))
    written: dict[int, list[Part]] = defaultdict(list)
    expected: dict[int, list[str]] = defaultdict(list)
    first = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgindex.indexing.vector_files._PART_ROWS", limit)
        patch.setattr("imgindex.indexing.vector_files._WAITING_ROWS", 2 * limit)
        writer = PartWriter(generation)
        for shard, count in batches:
            rows = rows_of(first, count)
            expected[shard] += rows.images["uri"].to_pylist()
            for of, part in writer.add(shard, rows):
                written[of].append(part)
            first += count
        for of, part in writer.flush():
            written[of].append(part)
    assert written.keys() == expected.keys()
    for shard, members in written.items():
        found = Parts(generation, members)
        assert (found.rows, found.dims) == (len(expected[shard]), 3)
        for _ in range(2):  # as often as one likes
            uris = [uri for rows in found for uri in rows.images["uri"].to_pylist()]
            assert uris == expected[shard]
            for rows in found:
                numbers = [int(uri[:6]) for uri in rows.images["uri"].to_pylist()]
                np.testing.assert_array_equal(rows.vectors, np.outer(numbers, [1, -1, 0.5]))
                assert rows.vectors.dtype == np.float32


def test_a_batch_is_counted_as_often_whatever_the_number_of_shards(tmp_path: Path) -> None:
    counted = [0]

    class Counted(np.ndarray):
        def __len__(self) -> int:
            counted[0] += 1
            return super().__len__()

    def counts(shards: int) -> int:
        counted[0] = 0
        writer = PartWriter(str(tmp_path))
        for shard in range(shards):
            rows = rows_of(shard, 1)
            assert not [*writer.add(shard, VectorRows(rows.images, rows.vectors.view(Counted)))]
        return counted[0]

    assert counts(500) == 50 * counts(10)


def test_a_damaged_part_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    generation = tmp_path_factory.mktemp("generation")
    ((_, part),) = [*(writer := PartWriter(str(generation))).add(0, rows_of(0, 5)), *writer.flush()]
    name = part.name
    path = generation / "parts" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert content_addressed.names(vector_files.directory(str(generation))) == [name]
    with pytest.raises(OutputError, match=f"{name} is damaged"):
        list(Parts(str(generation), [part]))
