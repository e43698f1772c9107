"""What `make test` runs ends, and names the test at fault, where a test blocks or ends its process."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BLOCKS = """
import threading

def test_blocks(): threading.Event().wait()
def test_after(): pass
"""
# A mutex that is locked twice; it holds the interpreter's lock, so that no signal is heeded.
BLOCKS_IN_NATIVE_CODE = """
import ctypes

def test_is_deaf():
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    while True: library.pthread_mutex_lock(mutex)
"""
CRASHES = """
import os

def test_crashes(): os._exit(3)
def test_behind(): pass
"""
CRASHED = r"worker 'gw\d' crashed while running '\S+::"
END = {
    BLOCKS: r"::test_blocks - Failed: Timeout \(>2.0s\) from pytest-timeout.",
    BLOCKS_IN_NATIVE_CODE: f"{CRASHED}test_is_deaf'",
    CRASHES: f"{CRASHED}test_crashes'",
}


@pytest.mark.long
@pytest.mark.parametrize("fault", [BLOCKS, BLOCKS_IN_NATIVE_CODE, CRASHES], ids=["blocks", "deaf", "crashes"])
def test_the_test_at_fault_fails_by_its_name(fault: str, tmp_path: Path) -> None:
    (tmp_path / "test_fault.py").write_text(fault)
    for name in "abcd":
        (tmp_path / f"test_{name}.py").write_text("def test_well(): pass\n")
    printed = subprocess.check_output(["make", "-n", "test"], cwd=ROOT, text=True)
    (line,) = re.findall("^.*/pytest (.*)$", printed, re.M)
    flags = shlex.split(line.replace("faulthandler_timeout=900", "faulthandler_timeout=8"))
    assert "faulthandler_timeout=8" in flags
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", *flags, "--timeout=2", tmp_path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(END[fault], done.stdout), done.stdout
    if fault == BLOCKS:
        assert "1 failed, 5 passed" in done.stdout
