"""Whether the installed Annoy can be trusted: some builds of it cannot."""

import json
import signal
import subprocess
import sys

from imgindex.commands.doctor.findings import Finding
from imgindex.models.ann.annoy_probe import NEIGHBORS, Probed
from imgindex.models.frameworks import version_of

# What takes a fraction of a second where Annoy works.
_TIMEOUT_SECONDS = 60

# Annoy's own flags are -march=native, which only CPUs like the compiling one run, and -ffast-math, with which
# newer compilers make it forget all but one neighbor (spotify/annoy #679).
_REINSTALL = (
    "compile it here without its risky flags: "
    "ANNOY_COMPILER_ARGS=-O3,-std=c++14,-fpermissive,-DANNOYLIB_MULTITHREADED_BUILD "
    "pip install --force-reinstall --no-deps --no-cache-dir --no-binary annoy annoy"
)


def check_annoy() -> Finding:
    """Builds and searches small indexes in a process of its own."""
    # -P: a file in the current directory may be named as one of Python's modules.
    command = [sys.executable, "-P", "-m", "imgindex.models.ann.annoy_probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding("problem", "annoy", f"does not end within {_TIMEOUT_SECONDS} seconds", _REINSTALL)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return Finding("problem", "annoy", f"ends its process with {name}", _REINSTALL)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Finding("problem", "annoy", f"cannot be used: {lines[-1]}", _REINSTALL)
    return _judge(Probed(**json.loads(done.stdout)))


def _judge(probed: Probed) -> Finding:
    faults = []
    if probed.neighbors < NEIGHBORS:
        faults.append(f"gives {probed.neighbors} neighbors where {NEIGHBORS} are asked for")
    if probed.recall < 1:
        faults.append(f"finds {probed.recall:.0%} of the nearest when it inspects all")
    if not probed.repeatable:
        faults.append("makes other bytes of the same vectors and seed")
    if faults:
        return Finding("problem", "annoy", "; ".join(faults), _REINSTALL)
    return Finding(
        "ok", "annoy", f"{version_of('annoy')} finds what it should, and builds the same bytes twice"
    )
