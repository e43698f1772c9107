"""One writer at a time, and no lock that outlives its holder."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgindex.errors import OutputError, SupersededError
from imgindex.io import filesystem, object_protocol, output_lock
from imgindex.io.output_lock import writer_lock


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_protocol, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(
        output_lock, "LEASE_SECONDS", 6.0
    )  # of which a watcher waits a twelfth for a living holder


def test_the_second_writer_is_refused_and_the_next_one_is_not(place: str) -> None:
    output = filesystem.join(place, "out")
    with (
        writer_lock(output),
        pytest.raises(OutputError, match=rf"{output} is being written by process \d+ on .* since 20"),
        writer_lock(output),
    ):
        pass
    with writer_lock(output):
        pass


def test_the_second_writer_does_not_name_who_held_it_before(tmp_path: Path) -> None:
    with writer_lock(str(tmp_path)):
        before = (tmp_path / ".lock").read_bytes()
    released = (tmp_path / ".lock").read_bytes()
    with writer_lock(str(tmp_path)):
        for content in (released, b"", before[:9]):  # what its new holder has not written yet
            (tmp_path / ".lock").write_bytes(content)
            with (
                pytest.raises(OutputError, match="is being written by another process; wait"),
                writer_lock(str(tmp_path)),
            ):
                pass


def test_an_error_inside_frees_the_lock(place: str) -> None:
    with pytest.raises(ZeroDivisionError), writer_lock(place):
        raise ZeroDivisionError
    with writer_lock(place):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom imgindex.io.output_lock import writer_lock\n"
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
    content = {"owner": "other", "host": "there", "pid": 7, "since": 1e9, "renewed": renewed}
    filesystem.write_bytes(f"{output}/.lock", json.dumps(content).encode())


@pytest.mark.parametrize("clock", [-1e6, 0, 1e6])
def test_a_lease_that_is_not_renewed_lapses_whatever_its_holder_thought_the_time_was(
    clock: float, memory: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_lock, "LEASE_SECONDS", 0.1)
    lease("mem://bucket/out", time.time() + clock)
    with writer_lock("mem://bucket/out"):
        pass


@pytest.mark.parametrize("clock", [-1e6, 0, 1e6])
def test_a_lease_that_is_renewed_holds_whatever_its_holder_thinks_the_time_is(
    clock: float, memory: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, renewals = "mem://bucket/out", iter(range(10))
    lease(output, time.time() + clock)
    monkeypatch.setattr(
        output_lock.time, "sleep", lambda _: lease(output, time.time() + clock + next(renewals))
    )
    with pytest.raises(OutputError, match="process 7 on there since 2001"), writer_lock(output):
        pass


def test_a_lease_is_renewed_while_it_is_held(memory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer_lock("mem://bucket/out"):
        for _ in range(3):
            with pytest.raises(OutputError, match="is being written"), writer_lock("mem://bucket/out"):
                pass


def test_a_holder_that_was_away_too_long_neither_renews_nor_releases_what_another_has(
    memory: object, caplog: pytest.LogCaptureFixture
) -> None:
    output = "mem://bucket/out"
    holder = output_lock.Lease(f"{output}/.lock", {"owner": "me", "host": "here", "pid": 1, "since": 1e9})
    holder.take()
    lease(output, time.time())
    before = filesystem.read_bytes(f"{output}/.lock")
    assert not holder.renew()
    holder.release()
    assert filesystem.read_bytes(f"{output}/.lock") == before


def test_a_claim_tells_who_has_taken_over(place: str) -> None:
    with writer_lock(place) as claim:
        claim.check()
        lease(place, time.time())
        with pytest.raises(SupersededError, match=rf"process 7 on there took over {place} at 2001-09"):
            claim.check()
        filesystem.delete(f"{place}/.lock")
        with pytest.raises(SupersededError, match=r"\.lock is gone"):
            claim.check()


def test_a_job_that_goes_on_without_the_build_that_started_it_has_no_claim(place: str) -> None:
    with writer_lock(place) as claim:
        pass
    with pytest.raises(SupersededError, match="the build that started this job has ended"):
        claim.check()


def test_a_job_whose_launcher_was_killed_has_a_claim_until_another_writer_comes(tmp_path: Path) -> None:
    script = (
        "import dataclasses, json, os, sys\nfrom imgindex.io.output_lock import writer_lock\n"
        "with writer_lock(sys.argv[1]) as claim:\n"
        "    print(json.dumps(dataclasses.asdict(claim)), flush=True)\n    os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    claim = output_lock.Claim(**json.loads(done.stdout))
    claim.check()
    with writer_lock(str(tmp_path)), pytest.raises(SupersededError, match=rf"took over {tmp_path}"):
        claim.check()


def test_a_lock_that_cannot_be_given_back_is_no_failure_of_what_was_done(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OutputError("cannot write .lock: Input/output error")

    with writer_lock(place):
        monkeypatch.setattr(filesystem, "replace_version", fail)
        monkeypatch.setattr("os.fsync", fail)
    assert "could not give back" in caplog.text
    assert "Input/output error" in caplog.text


def test_a_lease_whose_answer_was_lost_keeps_nobody_waiting(
    memory: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody renews it: the next writer would watch it until it lapses."""
    replace_version = filesystem.replace_version

    def lose_the_answer(path: str, data: bytes, version: str | None) -> str | None:
        replace_version(path, data, version)
        monkeypatch.setattr(filesystem, "replace_version", replace_version)
        raise OutputError(f"cannot write {path}: Connection reset by peer")

    monkeypatch.setattr(filesystem, "replace_version", lose_the_answer)
    with pytest.raises(OutputError, match="reset by peer"), writer_lock("mem://bucket/out"):
        pytest.fail("it does not hold the lease")
    monkeypatch.setattr(output_lock.Lease, "_outwait", lambda *_: pytest.fail("it waits"))
    with writer_lock("mem://bucket/out"):
        pass


def test_of_two_that_take_a_lease_at_once_one_gets_it(
    memory: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = "mem://bucket/out"
    monkeypatch.setattr(object_protocol.time, "sleep", lambda seconds: lease(output, time.time()))
    with pytest.raises(OutputError, match="process 7 on there"), writer_lock(output):
        pass


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"renewed": 1e300}'[:9]])
def test_a_lock_that_says_nothing_can_be_taken(content: bytes, place: str) -> None:
    filesystem.write_bytes(filesystem.join(place, ".lock"), content)
    with writer_lock(place):
        pass


def test_an_output_that_cannot_be_written(tmp_path: Path, memory: object) -> None:
    (tmp_path / "file").write_bytes(b"")
    for output in (f"{tmp_path}/file/out", "mem://readonly/out"):
        with pytest.raises(OutputError, match="cannot write"), writer_lock(output):
            pass
