"""Work in threads beside other work."""

import threading
from collections.abc import Iterator

import pytest

from imgindex.runtime import background
from imgindex.runtime.background import in_order, threads_in_order


def test_results_come_in_the_order_of_the_items() -> None:
    later = threading.Event()

    def work(item: int) -> int:
        if item == 0 and threads_in_order() > 1:
            later.wait(10)  # the next one is done first
        later.set()
        return item * item

    assert list(in_order(work, range(50))) == [item * item for item in range(50)]
    assert list(in_order(work, [])) == []


@pytest.mark.parametrize("cores", [1, 3, 100])
def test_few_items_are_taken_ahead(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "available_cores", lambda: cores)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    for count, _ in enumerate(in_order(str, items())):
        assert len(taken) <= count + min(cores, 4) + 2


def test_an_error_is_raised_where_its_result_would_come() -> None:
    found: list[float] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(in_order(lambda item: 1 / item, iter([1, 2, 0, 4])))
    assert found == [1, 0.5]
