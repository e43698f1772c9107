"""How much memory a process may use, and that threads keep to a budget of it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.models.memory import MemoryBudget, available_memory, budget_of

UNLIMITED = str(2**63 - 4096)


def machine(folder: Path, groups: str, **limits: str) -> int:
    """The memory that a process of a machine of 1000 KiB finds, whose control groups have `limits`."""
    proc, cgroup = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        1000 kB\nMemFree:   10 kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    for path, text in limits.items():
        (cgroup / path).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / path).write_text(f"{text}\n")
    return available_memory(proc, cgroup)


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, 1_024_000),
        ("0::/\n", {"memory.max": "max"}, 1_024_000),
        ("0::/\n", {"memory.max": "4096"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "8192"}, 8192),
        ("0::/a/b\n", {"a/b/memory.max": "5000", "a/memory.max": "8192"}, 5000),
        ("0::/not/seen\n", {"memory.max": "4096"}, 4096),
        ("9:cpu:/x\n4:memory:/x\n", {"memory/x/memory.limit_in_bytes": "4096"}, 4096),
        ("4:hugetlb,memory:/x\n0::/\n", {"memory/memory.limit_in_bytes": "6000"}, 6000),
        ("4:memory:/x\n", {"memory/x/memory.limit_in_bytes": UNLIMITED}, 1_024_000),
        ("9:cpu:/x\n", {"memory/x/memory.limit_in_bytes": "4096"}, 1_024_000),
        ("", {"memory.max": "4096"}, 1_024_000),
    ],
)
def test_the_least_limit_counts(groups: str, limits: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert machine(tmp_path, groups, **limits) == expected


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 7 kB\n")
    assert available_memory(tmp_path, tmp_path / "none") == 7168


def test_this_machine() -> None:
    assert 2**26 < available_memory() < 2**50


@settings(max_examples=30)
@given(st.integers(1, 20), st.lists(st.integers(0, 30), max_size=30))
def test_tasks_never_hold_more_than_the_budget(limit: int, wanted: list[int]) -> None:
    budget, lock = MemoryBudget(limit), threading.Lock()
    held = [0]
    peaks = []

    def task(amount: int) -> None:
        with budget.held(amount):
            with lock:
                held[0] += amount
                peaks.append((held[0], amount))
            with lock:
                held[0] -= amount

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(task, wanted))
    assert len(peaks) == len(wanted)
    # What is larger than the whole budget runs beside nothing but what takes none.
    assert all(total <= max(limit, amount) for total, amount in peaks)


def test_what_a_failed_task_held_is_given_back() -> None:
    budget = MemoryBudget(10)
    with pytest.raises(KeyError), budget.held(10):
        raise KeyError
    with budget.held(10):
        pass


def test_a_process_has_one_budget_of_a_size() -> None:
    assert budget_of(1 << 30) is budget_of(1 << 30)
    assert budget_of(1 << 30) is not budget_of(1 << 29)
