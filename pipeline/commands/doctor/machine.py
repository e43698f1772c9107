"""What a build would find on this machine: libraries, image formats, cores and memory."""

import contextlib
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from PIL import features

from imgindex.commands.doctor.findings import Finding
from imgindex.generations.layout import library_versions
from imgindex.runtime.resources import available_cores, control_groups

# A build's peak is about 1 GiB (docs/limits.md); a shard of a million images takes more.
_SCARCE_BYTES, _AMPLE_BYTES = 1 << 30, 2 << 30

# What Pillow needs for a format, as it calls it. All are in its own wheels, and any may lack elsewhere.
_FORMATS = {"avif": "AVIF", "jpg": "JPEG", "libtiff": "TIFF", "webp": "WebP", "zlib": "PNG"}


def check_libraries() -> Finding:
    """The versions of the libraries that an index depends on."""
    try:
        versions = library_versions()
    except PackageNotFoundError as error:
        return Finding("problem", "libraries", f"{error.name} is not installed", f"pip install {error.name}")
    if "tensorflow" not in versions:
        return Finding("problem", "libraries", "tensorflow is not installed", "pip install tensorflow")
    return Finding("ok", "libraries", ", ".join(f"{name} {text}" for name, text in versions.items()))


def check_formats() -> Finding:
    """The image formats that Pillow was built with."""
    missing = [name for feature, name in _FORMATS.items() if not features.check(feature)]
    if not missing:
        return Finding("ok", "formats", f"Pillow reads {', '.join(_FORMATS.values())} and more")
    return Finding(
        "warning", "formats", f"Pillow reads no {' and no '.join(missing)}: such images would fail",
        "pip install --force-reinstall --only-binary :all: pillow",
    )  # fmt: skip


def check_cores() -> Finding:
    """How many cores a build may use."""
    return Finding("ok", "cores", f"{available_cores()} of {os.cpu_count()} may be used")


def _page_cache(group: Path) -> int:
    """Bytes that a control group's use counts and that the kernel gives back when they are needed."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split() for line in lines)
    # Version 1 of control groups gives sums with the groups below under names of their own.
    return sum(
        int(fields.get(f"total_{name}", fields.get(name, "0"))) for name in ("inactive_file", "active_file")
    )


def check_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Finding:
    """How much memory is left, of the machine's and of its control groups'."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    left = int(fields["MemAvailable"].split()[0]) << 10
    whose = "of the machine"
    for group in control_groups("memory", proc, cgroup):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                taken = int((group / used).read_text()) - _page_cache(group)
                unused = max(0, int((group / limit).read_text()) - taken)
                if unused < left:
                    left, whose = unused, "within the control group's limit"
    found = f"{left / 2**30:.1f} GiB are free {whose}"
    if left >= _AMPLE_BYTES:
        return Finding("ok", "memory", found)
    advice = (
        "a build takes about 1 GiB, and more for shards of a million images: free some, or raise the limit"
    )
    return Finding("problem" if left < _SCARCE_BYTES else "warning", "memory", found, advice)
