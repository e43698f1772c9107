"""Progress: what is counted, and what a terminal or a log shows of it."""

import io
import logging
import sys
import threading
import time

import pytest

from imgindex.runtime.progress import Progress, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_counts_add_up_and_start_over() -> None:
    progress = Progress()
    progress.expect(3)
    progress.expect(2)
    progress.advance(4)
    assert progress.snapshot() == (4, 5)
    progress.reset()
    assert progress.snapshot() == (0, 0)


def test_threads_lose_no_count() -> None:
    progress = Progress()

    def work() -> None:
        for _ in range(2000):
            progress.expect(1)
            progress.advance(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.snapshot() == (8000, 8000)


def test_a_terminal_shows_a_bar_that_ends_at_the_last_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress()
    progress.expect(100)  # left from a run before
    with shown(progress):
        progress.expect(7)
        progress.advance(5)
    last = sys.stderr.getvalue().split("\r")[-1]  # type: ignore[attr-defined]
    assert "embedding" in last
    assert "5/7" in last


def test_elsewhere_the_log_tells_the_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imgindex.runtime.progress._LOG_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "imgindex.runtime.progress")
    progress = Progress()
    with shown(progress):
        progress.expect(8)
        progress.advance(6)
        deadline = time.monotonic() + 10
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # nothing new to tell
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("embedded 6 of 8 images, ")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_it_ends_with_its_block_even_in_an_error(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    before = set(threading.enumerate())

    def fail() -> None:
        with shown(Progress()):
            assert len(set(threading.enumerate()) - before) == 1
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    # tqdm keeps a monitor of its own.
    assert [t.name for t in set(threading.enumerate()) - before if type(t).__name__ != "TMonitor"] == []
