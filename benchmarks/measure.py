"""Runs a command and tells how long it took and how much memory it held at its peak."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One run of a command."""

    seconds: float
    peak_mib: float  # of the process and of those that it waited for, whichever is largest
    output: str


def run(command: Sequence[str]) -> Run:
    """Runs `command` with this Python's environment. Ends the benchmark where it fails."""
    with tempfile.TemporaryFile("w+") as captured:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=captured, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        captured.seek(0)
        output = captured.read()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{output}")
    return Run(seconds, usage.ru_maxrss / 1024, output)


def machine() -> str:
    """CPU, cores and library versions, for the record."""
    import platform
    from importlib.metadata import version

    with open("/proc/cpuinfo") as file:
        lines = file.read().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "?")
    flags = next((line for line in lines if line.startswith("flags")), "")
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if kind in flags]
    libraries = [
        f"{name} {version(name)}"
        for name in ("keras", "openvino", "apache-beam", "numpy", "scikit-learn", "pillow", "annoy")
    ]
    cores = len(os.sched_getaffinity(0))
    python = f"Python {platform.python_version()}"
    return f"{model}, {cores} cores, {' '.join(kinds)}; {', '.join([python, *libraries])}"
