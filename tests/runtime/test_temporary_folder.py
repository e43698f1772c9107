"""Temporary folders: gone when their work has ended, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from outputs import publish_features

from imgindex.runtime.temporary_folder import TemporaryFolder


def run_until_ready(script: str, temporary: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def test_it_ends_with_its_block(temporary: Path) -> None:
    with TemporaryFolder(place=temporary) as folder:
        Path(folder, "file").touch()
    assert list(temporary.iterdir()) == []


def test_it_ends_when_nobody_holds_it(temporary: Path) -> None:
    folder = TemporaryFolder(place=temporary)
    Path(folder.name, "file").touch()
    with pytest.warns(ResourceWarning, match="Implicitly cleaning up"):
        del folder
    assert list(temporary.iterdir()) == []


# The command keeps making files in its folder.
BUSY = """
import signal
import sys
from pathlib import Path
from imgindex.runtime import signals
from imgindex.runtime.temporary_folder import TemporaryFolder

# A shell that starts tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def command():
    folder = TemporaryFolder()
    number = 0
    while True:
        try:
            Path(folder.name, str(number)).write_bytes(b"data")
        except FileNotFoundError:
            pass
        number += 1
        if number == 100:
            print("ready", flush=True)

signals.run(command)
"""


def test_it_ends_with_a_signal_while_a_thread_makes_files_in_it(temporary: Path) -> None:
    process = run_until_ready(BUSY, temporary)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert list(temporary.iterdir()) == []


# Stays where it has written the index of the images that are not held out.
EVALUATE = """
import time
from imgindex import cli
from imgindex.indexing.shard_backend import SHARD_BACKEND

build = SHARD_BACKEND.build_blocks

def build_and_stay(blocks, path, **settings):
    build(blocks, path, **settings)
    print("ready", flush=True)
    time.sleep(600)

SHARD_BACKEND.build_blocks = build_and_stay
cli.run()
"""


def test_an_evaluation_that_is_stopped_leaves_none(temporary: Path, tmp_path: Path) -> None:
    features = np.random.default_rng(0).random((60, 8)).astype(np.float32)
    publish_features(tmp_path / "output", features, [f"{n:02}.jpg" for n in range(60)])
    process = run_until_ready(EVALUATE, temporary, "evaluate", str(tmp_path / "output"))
    assert list(temporary.rglob("*.ann")) != []
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143
    assert said.splitlines()[-1] == "imgindex: stopped by SIGTERM"
    assert list(temporary.iterdir()) == []
