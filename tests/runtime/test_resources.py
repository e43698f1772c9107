"""How many cores and how much memory a process may use, and that threads keep to a budget of memory."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.runtime.resources import MemoryBudget, available_cores, available_memory, budget_of

UNLIMITED = str(2**63 - 4096)


def machine(folder: Path, groups: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """The folders /proc and /sys/fs/cgroup of a machine of 1000 KiB whose control groups have `limits`."""
    proc, cgroup = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        1000 kB\nMemFree:   10 kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    for path, text in limits.items():
        (cgroup / path).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / path).write_text(f"{text}\n")
    return proc, cgroup


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
def test_the_least_limit_of_memory_counts(
    groups: str, limits: dict[str, str], expected: int, tmp_path: Path
) -> None:
    assert available_memory(*machine(tmp_path, groups, limits)) == expected


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


UNIT = "system.slice/imgindex.service"  # where systemd puts CPUQuota=


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/\n", {"cpu.max": "1600000 100000"}, 8),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        (f"0::/{UNIT}\n", {f"{UNIT}/cpu.max": "400000 100000"}, 4),
        (f"0::/{UNIT}\n", {f"{UNIT}/cpu.max": "max 100000", "system.slice/cpu.max": "200000 100000"}, 2),
        (f"0::/{UNIT}\n", {f"{UNIT}/cpu.max": "100000 50000", "system.slice/cpu.max": "500000 100000"}, 2),
        ("0::/not/seen\n", {"cpu.max": "200000 100000"}, 2),
        ("3:cpu:/a\n0::/\n", v1("cpu/a", 300_000), 3),
        ("3:cpu:/a/b\n", {**v1("cpu/a/b", -1), **v1("cpu/a", 200_000)}, 2),
        ("3:cpu:/a\n", v1("cpu/a", -1), 8),
        ("3:cpu,cpuacct:/a\n", v1("cpu,cpuacct/a", 300_000), 3),
        ("3:cpu,cpuacct:/not/seen\n", v1("cpu", 20_000, 10_000), 2),
        ("3:cpuset:/a\n2:cpuacct:/a\n", v1("cpu/a", 300_000), 8),
        ("", {"cpu.max": "300000 100000"}, 8),
    ],
)
def test_the_least_quota_of_the_cpu_counts(
    groups: str, limits: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert available_cores(*machine(tmp_path, groups, limits)) == expected


def test_the_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert available_cores(*machine(tmp_path, "0::/\n", {"cpu.max": "400000 100000"})) == 2


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 7 kB\n")
    assert available_cores(tmp_path, tmp_path / "none") == len(os.sched_getaffinity(0))
    assert available_memory(tmp_path, tmp_path / "none") == 7168


def test_this_machine() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
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
