"""What `make` runs ends, and names the test at fault, where a test blocks or ends its process."""

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


@pytest.mark.long
def test_a_test_that_blocks_or_crashes_fails_by_its_name_and_the_others_run(tmp_path: Path) -> None:
    for name, text in {"a": BLOCKS, "b": BLOCKS_IN_NATIVE_CODE, "c": CRASHES}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    (line,) = re.findall(
        "^.*/pytest (.*)--cov=", subprocess.check_output(["make", "-n", "test"], cwd=ROOT, text=True), re.M
    )
    flags = shlex.split(line.replace("faulthandler_timeout=900", "faulthandler_timeout=8"))
    assert "faulthandler_timeout=8" in flags
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", *flags, "--timeout=2", tmp_path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "::test_blocks - Failed: Timeout (>2.0s) from pytest-timeout." in done.stdout
    assert re.search(r"worker 'gw\d' crashed while running '\S+::test_is_deaf'", done.stdout)
    assert re.search(r"worker 'gw\d' crashed while running '\S+::test_crashes'", done.stdout)
    assert "3 failed, 2 passed" in done.stdout
