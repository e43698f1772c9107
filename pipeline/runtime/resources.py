"""What a process may use: its cores, its memory, and a budget of memory that its threads share."""

import contextlib
import functools
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

from imgindex.errors import MachineError

_BRIEFLY_OPEN = 256

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_cores(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """The CPU cores that this process may use: its affinity, or the least quota of its control groups."""
    cores = len(os.sched_getaffinity(0))
    for group in control_groups("cpu", proc, cgroup):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            quota, period = _cpu_quota(group)
            if quota > 0:
                cores = min(cores, quota // period)
    return max(1, cores)


def _cpu_quota(group: Path) -> tuple[int, int]:
    """How long a group may use the CPU in each period, and the period; without a quota -1 or a ValueError."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except FileNotFoundError:  # version 1
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota), int(period)


def available_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """The bytes that this process may use: the machine's, or the least limit of its control groups."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    limits = [int(fields["MemTotal"].split()[0]) << 10]
    for group in control_groups("memory", proc, cgroup):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                limits.append(int((group / name).read_text()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return min(limits)


def ulimits() -> dict[str, int]:
    """The bytes that this process may reserve, by the flag of ``ulimit``, without those that are unlimited.

    They are ``-v``, of address space, and ``-d``, of what it may write to.
    """
    limits = {"-v": resource.RLIMIT_AS, "-d": resource.RLIMIT_DATA}
    soft = {flag: resource.getrlimit(number)[0] for flag, number in limits.items()}
    return {flag: limit for flag, limit in soft.items() if limit != resource.RLIM_INFINITY}


def allow_open_files(count: int) -> None:
    """Has this process open `count` more files at once, by a higher limit where that takes one.

    Raises MachineError where the hard limit does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(list(Path("/proc/self/fd").iterdir())) + count
    if wanted > hard:
        raise MachineError(
            f"{wanted:,} files must be open at once, and {hard:,} may be: raise the limit (ulimit -n, or the "
            "container's)"
        )
    # Threads, and libraries that load, open some for a while.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted + _BRIEFLY_OPEN, hard)), hard))


def control_groups(controller: str, proc: Path = _PROC, cgroup: Path = _CGROUP) -> Iterator[Path]:
    """The folders where the limits of `controller` on this process may stand, the process's own group first.

    Its ancestors bind it too, so theirs follow. Version 2 of control groups and version 1 have folders of
    their own; not all of them need exist.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [cgroup, cgroup / "unified"]
        elif controller in controllers.split(","):
            # Version 1 may mount several controllers together, as in cpu,cpuacct.
            roots = [cgroup / controller, cgroup / controllers]
        else:
            continue
        # A container may see its own group as the root, whatever the path.
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield from (root / folder for root in dict.fromkeys(roots))


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
