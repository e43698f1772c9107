"""Parquet is read in the thread that asks for it: Arrow's own threads hold nothing of Python's."""

import io
import threading
from collections.abc import Iterator
from typing import ClassVar

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
