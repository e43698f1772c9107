"""Batches of vectors that other processes search for, against what this one finds."""

import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from imgindex.models.ann.annoy import Annoy, AnnoyShard
from imgindex.search.search_processes import SearchProcesses

SETTINGS = {"search_k": 50}
VECTORS = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)


@pytest.fixture
def shards(tmp_path: Path) -> list[AnnoyShard]:
    """Two shards, the second of the last two vectors alone."""
    opened = []
    for name, vectors in (("0.ann", VECTORS), ("1.ann", VECTORS[-2:])):
        Annoy().build(vectors, tmp_path / name, metric="angular", settings={"trees": 5, "seed": 1})
        opened.append(Annoy().open(tmp_path / name, metric="angular", dims=6, items=len(vectors)))
    return opened


def here(shard: AnnoyShard) -> list[list[int]]:
    return [shard.candidates(query, 7, SETTINGS).tolist() for query in QUERIES]


def there(processes: SearchProcesses, shard: int) -> list[list[int]] | None:
    found = processes.candidates(shard, QUERIES, 7, SETTINGS)
    return None if found is None else [items.tolist() for items in found]


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pids: list[int]) -> None:
    ended = time.monotonic() + 60
    while any(map(is_alive, pids)):
        assert time.monotonic() < ended, f"some of {pids} are still alive"
        time.sleep(0.05)


def test_processes_find_what_this_one_finds(shards):
    processes = SearchProcesses(shards, 2)
    asked = [0, 1] * 10
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda shard: there(processes, shard), asked))
    assert found == [here(shards[shard]) for shard in asked]


def test_one_that_dies_is_told_and_another_takes_its_place(shards, caplog):
    before = set(children(os.getpid()))
    processes = SearchProcesses(shards, 1)
    assert there(processes, 0) == here(shards[0])
    (child,) = set(children(os.getpid())) - before
    os.kill(child, signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        assert there(processes, 0) is None
    assert "a search process gave no answer" in caplog.text
    assert there(processes, 0) == here(shards[0])


def test_a_file_that_is_gone_by_then_is_no_answer(shards, tmp_path):
    (tmp_path / "0.ann").unlink()
    assert there(SearchProcesses(shards, 1), 0) is None


def test_they_end_when_nobody_holds_them(shards):
    before = set(children(os.getpid()))
    processes = SearchProcesses(shards, 2)
    assert there(processes, 0) == here(shards[0])
    started = list(set(children(os.getpid())) - before)
    assert len(started) == 1
    del processes
    wait_until_gone(started)


@pytest.mark.usefixtures("shards")
def test_they_end_with_the_process_that_started_them(tmp_path):
    script = """
import sys, time
from pathlib import Path
import numpy as np
from imgindex.search.search_processes import SearchProcesses
from imgindex.models.ann.annoy import Annoy
shard = Annoy().open(Path(sys.argv[1]), metric="angular", dims=6, items=300)
kept = SearchProcesses([shard], 1)
print(len(kept.candidates(0, np.ones((1, 6), np.float32), 7, {"search_k": 50})), flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "0.ann")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"1\n"
        started = children(parent.pid)
        parent.kill()
    assert len(started) == 1
    wait_until_gone(started)
