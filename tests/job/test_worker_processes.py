"""Worker processes on this machine: they start whatever is around them, and a job ends with them."""

import os
import signal
import sys
from pathlib import Path

import pytest
from apache_beam import Create, Map, Pipeline
from apache_beam.options.pipeline_options import PipelineOptions

from imgindex.errors import WorkerError
from imgindex.job import worker_processes
from imgindex.job.runners import new_runner


def run(deed: str) -> None:
    """Runs a pipeline whose only element is `deed`, for a worker to do."""
    options = PipelineOptions(["--direct_running_mode=multi_processing", "--direct_num_workers=1"])
    pipeline = Pipeline(runner=new_runner(options), options=options)
    _ = pipeline | Create([deed]) | Map(lambda text: exec(text))
    pipeline.run().wait_until_finish()


def test_neither_a_proxy_nor_a_file_named_as_a_module_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random.py", "types.py"):
        (tmp_path / name).write_text("raise SystemExit('this is no module')")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    run(f"import pathlib; pathlib.Path({str(tmp_path / 'done')!r}).touch()")
    assert (tmp_path / "done").exists()


def test_hosts_that_need_no_proxy_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    variable = "no_grpc_proxy"
    for _ in range(2):
        new_runner(PipelineOptions([]))
        assert os.environ[variable] == "example.org,localhost,127.0.0.1,::1"


def test_a_worker_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    command = (sys.executable, "-c", "print('starting'); raise ImportError('no such library')")
    monkeypatch.setattr(worker_processes, "_COMMAND", command)
    with pytest.raises(WorkerError) as caught:
        run("")
    assert str(caught.value) == ("a worker process ended with exit code 1: ImportError: no such library")


def test_a_worker_that_never_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "_COMMAND", (sys.executable, "-c", "import time; time.sleep(600)"))
    monkeypatch.setattr(worker_processes, "_START_LIMIT", 1)
    with pytest.raises(WorkerError, match="has not connected to the build within 1 seconds"):
        run("")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            signal.SIGKILL,
            "a worker process was killed, as Linux does where memory runs out; run fewer workers",
        ),
        pytest.param(signal.SIGSEGV, "a worker process ended with SIGSEGV", marks=pytest.mark.long),
    ],
)
def test_a_worker_that_dies_at_work(number: signal.Signals, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        run(f"import os; os.kill(os.getpid(), {int(number)})")


@pytest.mark.long
def test_what_a_worker_raises_is_what_the_job_raises() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run("1 / 0")
