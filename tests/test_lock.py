"""One writer at a time, and no lock that outlives its holder."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgindex import lock, storage
from imgindex.errors import OutputError
from imgindex.lock import writer_lock


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.01)


def test_the_second_writer_is_refused_and_the_next_one_is_not(place: str) -> None:
    output = storage.join(place, "out")
    with (
        writer_lock(output),
        pytest.raises(OutputError, match=rf"{output} is being written by process \d+ on .* since 20"),
        writer_lock(output),
    ):
        pass
    with writer_lock(output):
        pass


def test_an_error_inside_frees_the_lock(place: str) -> None:
    with pytest.raises(ZeroDivisionError), writer_lock(place):
        raise ZeroDivisionError
    with writer_lock(place):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom imgindex.lock import writer_lock\n"
        "with writer_lock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match=f"process {holder.pid} "), writer_lock(str(tmp_path)):
        pass
    holder.kill()
    holder.wait()
    with writer_lock(str(tmp_path)):
        pass


def lease(output: str, renewed: float) -> None:
    content = {"owner": "other", "host": "there", "pid": 7, "since": renewed, "renewed": renewed}
    storage.write_bytes(f"{output}/.lock", json.dumps(content).encode())


def test_a_lease_that_is_not_renewed_lapses(memory: object) -> None:
    output = "mem://bucket/out"
    lease(output, time.time() - lock.LEASE_SECONDS / 2)
    with pytest.raises(OutputError, match="process 7 on there"), writer_lock(output):
        pass
    lease(output, time.time() - lock.LEASE_SECONDS - 1)
    with writer_lock(output):
        pass


def test_a_lease_is_renewed_while_it_is_held(memory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.2)
    with writer_lock("mem://bucket/out"):
        for _ in range(5):
            time.sleep(0.1)
            with pytest.raises(OutputError, match="is being written"), writer_lock("mem://bucket/out"):
                pass


def test_of_two_that_take_a_lease_at_once_one_gets_it(
    memory: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = "mem://bucket/out"
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: lease(output, time.time()))
    with pytest.raises(OutputError, match="process 7 on there"), writer_lock(output):
        pass


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"renewed": 1e300}'[:9]])
def test_a_lock_that_says_nothing_can_be_taken(content: bytes, place: str) -> None:
    storage.write_bytes(storage.join(place, ".lock"), content)
    with writer_lock(place):
        pass


def test_an_output_that_cannot_be_written(tmp_path: Path, memory: object) -> None:
    (tmp_path / "file").write_bytes(b"")
    for output in (f"{tmp_path}/file/out", "mem://readonly/out"):
        with pytest.raises(OutputError, match="cannot write"), writer_lock(output):
            pass
