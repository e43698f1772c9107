"""How much memory a process may use, and a budget of it that a process's threads share."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from pathlib import Path


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The bytes that this process may use: the machine's, or the least limit of its control groups."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    limits = [int(fields["MemTotal"].split()[0]) << 10]
    for file in _limit_files(proc, cgroup):
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)


def _limit_files(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Where the limits of this process's control groups may stand, of version 1 and of version 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots, name = [cgroup, cgroup / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            roots, name = [cgroup / "memory"], "memory.limit_in_bytes"
        else:
            continue
        # A group's ancestors bind it too. A container may see its own group as the root, whatever the path.
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield from (root / folder / name for root in roots)


class MemoryBudget:
    """Bytes that tasks in the threads of one process take and give back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, wanted: int) -> Iterator[None]:
        """Waits until `wanted` bytes are left, and holds them; what wants more than the limit runs alone."""
        wanted = min(wanted, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._held + wanted <= self._limit)
            self._held += wanted
        try:
            yield
        finally:
            with self._changed:
                self._held -= wanted
                self._changed.notify_all()


@functools.cache
def budget_of(limit: int) -> MemoryBudget:
    """This process's one budget of `limit` bytes."""
    return MemoryBudget(limit)
