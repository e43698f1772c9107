"""What is foreseeable ends a command with one sentence; a traceback is left to bugs."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgindex.cli import main
from imgindex.errors import InputError, MachineError, OutputError, UsageError, foreseen
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.models.preprocess import decode
from imgindex.models.resizing import Resizing
from imgindex.search.queries import Recipe, each_query, load
from imgindex.search.results import QueryError, describe_error

# Runs `inspect`, whose work is replaced by a line of Python.
SCRIPT = (
    "import sys; from imgindex import cli; from imgindex.commands import inspect; "
    "from imgindex.runtime import signals; "
    "inspect.run = lambda known: {}; cli.run()"
)


def command(work: str, redirections: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`imgindex inspect OUT` in a shell that redirects its streams."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" inspect OUT {redirections}', sys.executable, SCRIPT.format(work)],
        env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_changes_no_exit_code(closed: str) -> None:
    assert command("print('fine')", closed).returncode == 0
    assert command("open('/no/such')", closed).returncode == 3


def test_files_that_are_opened_do_not_get_what_is_meant_for_a_closed_stream(tmp_path: Path) -> None:
    path = tmp_path / "file"
    done = command(f"(open({str(path)!r}, 'w'), sys.stderr.write('x'), print('x', flush=True))", ">&- 2>&-")
    assert done.returncode == 0
    assert path.read_text() == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_below_standard_output(unbuffered: str) -> None:
    done = command("print('x')", "> /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 3
    assert done.stderr == "imgindex: cannot write to standard output: No space left on device\n"


def test_a_full_disk_below_standard_output_after_a_generation_went_live() -> None:
    work = "(signals.done('generation 7 is live'), print('x'))"
    done = command(work, "> /dev/full")
    assert done.returncode == 0
    assert done.stderr == (
        "imgindex: generation 7 is live; cannot write to standard output: No space left on device\n"
    )


def test_what_is_not_to_be_buffered_is_written_at_once() -> None:
    done = command("(print('x'), __import__('os')._exit(0))", PYTHONUNBUFFERED="1")
    assert done.stdout == "x\n"


def test_an_encoding_that_lacks_characters() -> None:
    done = command("print('\u732b')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "\\u732b\n")
    done = command(
        "print(__import__('imgindex.runtime.standard_streams').runtime.standard_streams.encodable('[\"\U0001f408\"]'))",
        PYTHONIOENCODING="ascii",
    )
    assert json.loads(done.stdout) == ["\U0001f408"]


def test_a_current_directory_that_no_longer_exists(tmp_path: Path) -> None:
    script = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
    script += "from imgindex import cli; cli.run()"
    arguments = ["build", "--input", "in", "--output", "out"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stderr == "imgindex: the current directory no longer exists; change to another one\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied", b"/x"), "/x: Permission denied"),
        (
            OSError(errno.EMFILE, "Too many open files", "/x"),
            "/x: Too many open files; raise the limit (ulimit -n",
        ),
        (MemoryError(), "the memory ran out"),
        (RuntimeError("can't start new thread"), "cannot start another thread"),
    ],
)
def test_what_the_machine_refuses_is_said_in_a_sentence(error: Exception, message: str) -> None:
    told = foreseen(error)
    assert isinstance(told, MachineError)
    assert str(told).startswith(message)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x"), OSError("x")])
def test_other_errors_are_bugs(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert foreseen(error) is None

    def work(known: object) -> None:
        raise error

    monkeypatch.setattr("imgindex.commands.inspect.run", work)
    with pytest.raises(type(error)):
        main(["inspect", "OUT"])


def test_errors_of_ours_are_what_they_are() -> None:
    error = OutputError("x")
    assert foreseen(error) is error


@pytest.mark.parametrize(
    "query", [bytearray(b"a.jpg"), memoryview(b"a.jpg"), None, 7, [bytearray()], ["a.jpg", None]]
)
def test_what_is_no_query(query: object) -> None:
    with pytest.raises(
        UsageError, match="a query must be the path of an image, the bytes of its file, a PIL image or an a"
    ):
        each_query(query)  # type: ignore[arg-type]


def test_a_query_of_a_name_that_no_filesystem_takes() -> None:
    loaded = load("a\0.jpg", Recipe(Resizing((32, 32)), "srgb", 1000), decode)
    assert isinstance(loaded.value, QueryError)
    assert describe_error(loaded.value) == "cannot be read: embedded null byte"


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_a_list_with_a_nul(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"list{suffix}"
    path.write_bytes(b"path\na\0.jpg\n")
    with pytest.raises(InputError, match=r"names 'a\\x00\.jpg', and no path holds a NUL"):
        list(list_images(str(path), Selection((".jpg",))))


@pytest.mark.parametrize("name", ["build", "search OUT x.jpg", "doctor", "demo"])
@pytest.mark.parametrize(("flag", "needed"), [("-v", 4), ("-d", 3)])
def test_a_limit_under_which_libraries_would_wait_for_ever(
    name: str, flag: str, needed: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["sh", "-c", f'ulimit {flag} 2000000; exec "$0" -m imgindex {name}', sys.executable],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr == (
        f"imgindex: ulimit {flag} allows 1.9 GiB, and running a model takes {needed} GiB; raise it, or limit "
        "the memory by a control group instead\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_may_have_no_second_thread(tmp_path: Path) -> None:
    code = """
import threading
from imgindex import cli

def start(self):
    raise RuntimeError("can't start new thread")

threading.Thread.start = start
cli.run()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        3,
        "imgindex: cannot start another thread; raise the limit (ulimit -u and -v, or the container's)\n",
    )


# What runs a model has threads, which a fork lacks: it would wait for them for ever.
FORKS = """
import os, signal, sys
from multiprocessing import get_context
from imgindex.errors import MachineError
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import EngineChoice
from fake_engine import register_quarters

def load(_=None):
    signal.alarm(60)
    try:
        return load_engine(choice, 1).name
    except MachineError as error:
        return str(error)

register_quarters()
choice = EngineChoice("MobileNetV2", "none", "avg", 32, "quarters", "float32", 1)
if sys.argv[1] == "before":
    with get_context("fork").Pool(1) as pool:
        print(pool.map(load, [None]))
else:
    print(load())
    with get_context("fork").Pool(1) as pool:
        print(pool.map(load, [None]))
"""


def forked(when: str) -> list[str]:
    command = [sys.executable, "-c", FORKS, when]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_a_fork_of_a_process_that_has_loaded_a_model_is_refused() -> None:
    assert forked("before") == ["['quarters']"]
    before, after = forked("after")
    assert before == "quarters"
    assert after.startswith(
        '["this process was forked from one that had loaded a model, which cannot run in a'
    )
