"""Parquet is read whole or in pieces, in the thread that asks: Arrow's threads hold nothing of Python's."""

import io
import threading
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgindex.inputs import image_lists
from imgindex.io import parquet_tables


class Traced(bytes):
    """Bytes that note which thread lets go of them last."""

    freed_by: ClassVar[list[int]] = []

    def __del__(self) -> None:
        self.freed_by.append(threading.get_ident())


@pytest.fixture(autouse=True)
def freed_by() -> Iterator[list[int]]:
    Traced.freed_by.clear()
    # So many that several are at work, whatever the machine.
    before = pa.cpu_count()
    pa.set_cpu_count(8)
    yield Traced.freed_by
    pa.set_cpu_count(before)


def test_a_table(freed_by: list[int]) -> None:
    """A process that ends while another thread frees what is Python's aborts."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: ["x" * 100] * 50 for name in "abcdef"}), sink, compression="none")
    data = sink.getvalue().to_pybytes()
    for _ in range(1000):
        parquet_tables.read(pa.BufferReader(Traced(data)), dict.fromkeys("ab", pa.types.is_string))
    assert freed_by == [threading.get_ident()] * 1000


COLUMNS: parquet_tables.Columns = {"uri": pa.types.is_string, "size": pa.types.is_int64}


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return cast(bytes, sink.getvalue().to_pybytes())


TABLE = pa.table({"size": range(100), "uri": [f"{n}.jpg" for n in range(100)], "other": [None] * 100})


@pytest.mark.parametrize("most", [1, 7, 64, 100, 1000])
@pytest.mark.parametrize("group", [9, 1000])
def test_batches_are_the_table_in_pieces(most: int, group: int) -> None:
    data = parquet(TABLE, row_group_size=group)
    batches = list(parquet_tables.batches(pa.BufferReader(data), COLUMNS, rows=100, most=most))
    assert max(map(len, batches)) <= most
    assert pa.concat_tables(batches).equals(parquet_tables.read(pa.BufferReader(data), COLUMNS))


@pytest.mark.parametrize(
    ("data", "rows", "message"),
    [
        (parquet(TABLE), 99, "it has 100 rows and not 99"),
        (parquet(TABLE.drop_columns(["uri"])), 100, "it has 0 columns uri"),
        (parquet(TABLE.set_column(0, "size", [["x"] * 100])), 100, "its column size is of type string"),
        (
            parquet(TABLE.set_column(0, "size", [pa.array([*range(99), None])])),
            100,
            "its column size has rows without a value",
        ),
        (parquet(TABLE)[:-9], 100, "it is no Parquet file that can be read"),
    ],
)
def test_batches_of_another_table_are_refused(data: bytes, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(parquet_tables.batches(pa.BufferReader(data), COLUMNS, rows=rows, most=10))


def test_a_list(freed_by: list[int]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": ["x.jpg"] * 50}), sink)
    data = sink.getvalue().to_pybytes()

    class Source(io.BytesIO):
        def __del__(self) -> None:
            freed_by.append(threading.get_ident())

    for _ in range(300):
        assert list(image_lists._parquet_rows(Source(data))) == ["x.jpg"] * 50
    assert freed_by == [threading.get_ident()] * 300
