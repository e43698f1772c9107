"""SIGINT and SIGTERM: real ones, to real builds, at places where they would stay for ever."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imgindex.features import feature_store
from imgindex.generations.layout import Output, current_name, generation_names
from imgindex.io import content_addressed
from imgindex.io.output_lock import writer_lock

STUBS = Path(__file__).parents[1] / "stubs"
IMAGES = 40

# What a terminal's shell does not do for what runs in the background of a script.
HEED = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
CLI = HEED + "from imgindex.cli import run; run()"
PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]

# What no build under test takes when it is told to end; a build that is not told to stays for ever.
PATIENCE = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        (folder / f"{number:02}.png").write_bytes(image_bytes(number, (20, 16 + number)))
    return folder


class Build:
    """A build in a process of its own, and those that it starts."""

    def __init__(self, photos: Path, output: Path, stop: str = "", flags: list[str] | None = None) -> None:
        self.reached = output.parent / "reached"
        if not self.reached.exists():
            os.mkfifo(self.reached)
        self._fifo = os.open(self.reached, os.O_RDONLY | os.O_NONBLOCK)
        arguments = ["build", "--input", str(photos), "--output", str(output), *(flags or [])]
        for setting in ("name=MobileNetV2", "weights=none"):
            arguments += ["--set", f"backbone.{setting}"]
        for setting in ("engine.name=quarters", "pca.dims=3", "publish.min_recall=0"):
            arguments += ["--set", setting]
        environment = {
            "PYTHONPATH": str(STUBS), "IMGINDEX_TEST_STOP": stop, "IMGINDEX_TEST_REACHED": str(self.reached),
            "IMGINDEX_TEST_STORE": str(output / "store"),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLI, *arguments], env={**os.environ, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def wait_until_it_stays(self) -> None:
        there, _, _ = select.select([self._fifo], [], [], PATIENCE)
        if not there:
            self.process.kill()
            pytest.fail(f"it did not get there: {self.process.communicate()}")

    def end(self) -> tuple[int, str]:
        """The exit code and what was written to standard error."""
        try:
            _, errors = self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
            os.close(self._fifo)
        return self.process.returncode, errors


def descendants(process: int) -> Iterator[int]:
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, thread.read_text().split()):
            yield child
            yield from descendants(child)


def stored(output: Path) -> int:
    """How many images the store holds."""
    return sum(
        sum(1 for _ in feature_store.read_keys(str(directory), name))
        for directory in (output / "store").glob("*")
        for name in content_addressed.names(str(directory))
    )


@pytest.mark.parametrize(
    ("stop", "number", "flags"),
    [
        ("embed", signal.SIGINT, []),
        ("annoy", signal.SIGTERM, PROCESSES),
        ("list", signal.SIGINT, []),
        ("embed", signal.SIGTERM, []),
        ("pca", signal.SIGTERM, []),
        ("annoy", signal.SIGINT, []),
        ("embed", signal.SIGINT, PROCESSES),
    ],
)
@pytest.mark.long
def test_a_build_ends_and_the_next_one_goes_on(
    stop: str, number: signal.Signals, flags: list[str], photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    layout = Output(str(output))
    build = Build(photos, output, stop, flags)
    build.wait_until_it_stays()
    children = list(descendants(build.process.pid))
    assert children or not flags
    with ExitStack() as stack:
        handles = [os.pidfd_open(child) for child in children]
        for handle in handles:
            stack.callback(os.close, handle)
        build.process.send_signal(number)
        code, errors = build.end()
        ended = [handle for handle in handles if select.select([handle], [], [], PATIENCE)[0]]
    assert ended == handles
    assert code == 128 + number
    lines = [line for line in errors.splitlines() if "building the index" not in line]
    assert lines == [
        f"imgindex: stopped by {number.name}; features that a build has stored are kept, and the next build "
        "goes on from them"
    ]
    assert current_name(layout) is None
    assert generation_names(layout) == []
    with writer_lock(str(output)):
        held = stored(output)
    assert {"list": held == 0, "embed": 0 < held < IMAGES}.get(stop, held == IMAGES)

    code, errors = Build(photos, output, "", flags).end()
    assert code == 0, errors
    ledger = json.loads(Path(layout.manifest(str(current_name(layout)))).read_text())["ledger"]
    assert (ledger["indexed"], ledger["embedded"], ledger["reused"]) == (IMAGES, IMAGES - held, held)
    # Whatever was unfinished is gone.
    assert generation_names(layout) == [path.name for path in (output / "generations").iterdir()]
    assert list(output.rglob("*.partial")) == []


@pytest.mark.long
def test_a_build_that_is_stopped_after_its_generation_went_live_ends_well(
    photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    build = Build(photos, output, "live")
    build.wait_until_it_stays()
    name = current_name(Output(str(output)))
    assert name is not None
    build.process.send_signal(signal.SIGTERM)
    code, errors = build.end()
    assert code == 0
    assert errors.splitlines()[-1] == f"imgindex: generation {name} is live; the signal came after that"
    with writer_lock(str(output)):
        pass


@pytest.mark.long
def test_a_build_whose_generation_cannot_be_read_after_it_went_live_ends_well(
    photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    code, errors = Build(photos, output, "unread").end()
    name = current_name(Output(str(output)))
    assert code == 0
    assert errors.splitlines()[-1] == (
        f"imgindex: generation {name} is live, but what was to follow has failed: cannot read the manifest: "
        "Connection reset by peer"
    )


@pytest.mark.long
def test_the_python_api_leaves_signals_alone(photos: Path, tmp_path: Path) -> None:
    script = (
        "import signal, sys\n"
        "def refuse(*arguments): raise AssertionError(arguments)\n"
        "import imgindex.job.launch\n"
        "signal.signal = signal.set_wakeup_fd = refuse\n"
        "imgindex.build(imgindex.Config(input=sys.argv[1], output=sys.argv[2],\n"
        "    engine=imgindex.EngineConfig(name='quarters'),\n"
        "    publish=imgindex.PublishConfig(min_recall=0.0)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(STUBS)}
    command = [sys.executable, "-c", script, str(photos), str(tmp_path / "output")]
    subprocess.run(command, env=environment, check=True)
    assert current_name(Output(str(tmp_path / "output"))) is not None


def start(body: str) -> subprocess.Popen[str]:
    """Runs `body` as the command of a process, and waits for its first line of output."""
    script = (
        f"{HEED}import time\nfrom imgindex.runtime import signals\ndef command():\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + "sys.exit(signals.run(command))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    return process


AT_WORK = "print('at work', flush=True); time.sleep(600)\n"


def test_a_second_signal_ends_at_once() -> None:
    process = start(
        "def undo(): print('undoing', flush=True); time.sleep(600)\n"
        f"with signals.undone(undo): {AT_WORK}"
    )  # fmt: skip
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "undoing\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130


def test_a_signal_finds_a_generation_live_or_not(tmp_path: Path) -> None:
    # The block stands for the replacement of CURRENT, which takes a second here.
    process = start(
        "from pathlib import Path\n"
        f"current = Path({str(tmp_path / 'CURRENT')!r})\n"
        "with signals.undone(lambda: current.exists() and signals.done('it is live')):\n"
        "    with signals.switching():\n"
        "        print('at work', flush=True); time.sleep(1); current.touch()\n"
        "    time.sleep(600)\n"
    )
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert errors.splitlines()[-1] == "imgindex: it is live; the signal came after that"


def test_a_generation_does_not_go_live_after_the_signal_was_answered(tmp_path: Path) -> None:
    process = start(
        "from pathlib import Path\n"
        f"current = Path({str(tmp_path / 'CURRENT')!r})\n"
        "def undo(): time.sleep(1)\n"
        "with signals.undone(undo):\n"
        "    print('at work', flush=True)\n"
        "    while not signals._switch.locked(): time.sleep(0.01)\n"
        "    with signals.switching(): current.touch()\n"
    )
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert not (tmp_path / "CURRENT").exists()


def test_a_signal_that_another_thread_is_given_ends_it_too() -> None:
    process = start(
        "import threading\n"
        "print('at work', flush=True)\n"
        "signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "time.sleep(1000)\n"
    )
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 143


@pytest.mark.long
def test_a_lease_is_given_back() -> None:
    process = start(
        "from conftest import MemoryFileSystem\n"
        "from imgindex.io import output_lock, object_protocol, filesystem\n"
        "object_protocol.SETTLE_SECONDS = 0\n"
        "release = output_lock.Lease.release\n"
        "def say(lease): release(lease); print(filesystem.read_bytes('mem://bucket/output/.lock').decode())\n"
        "output_lock.Lease.release = say\n"
        f"with output_lock.writer_lock('mem://bucket/output'): {AT_WORK}"
    )
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert json.loads(printed)["released"] is True


def test_what_cannot_be_undone_is_said_even_where_standard_error_is_turned_away() -> None:
    process = start(
        "def undo(): 1 / 0\n"
        "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"
        f"with signals.undone(undo): {AT_WORK}"
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors.splitlines()[1:] == ["imgindex: could not clean up: division by zero"]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    # As nohup and a script's background have it for SIGINT.
    script = (
        "import signal, sys\nfrom imgindex.runtime import signals\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "def command(): signal.raise_signal(signal.SIGINT); return 7\n"
        "sys.exit(signals.run(command))\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 7


def test_what_the_command_raises_is_raised() -> None:
    script = "from imgindex.runtime import signals\nsignals.run(lambda: 1 / 0)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
