"""Loading one listed file: pixels, or a stable reason why not, whatever has become of it since."""

import errno
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgindex.config import ImagesConfig
from imgindex.errors import InputError
from imgindex.inputs import image_reader
from imgindex.inputs.image_reader import hashed, load_image
from imgindex.inputs.local_files import local_version
from imgindex.io import circuit_breaker
from imgindex.io.circuit_breaker import Reads
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodeError
from imgindex.models.resizing import Resizing
from imgindex.records import Failure, ImageFile

SIZE = Resizing((8, 8))
LIMITS = ImagesConfig(max_bytes=10_000)
DECODER = DecoderProcess()


@pytest.fixture(scope="module", autouse=True)
def _ends_decoder() -> Iterator[None]:
    yield
    DECODER.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept; and no failed read of another test counts in this one."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(image_reader, "READS", Reads())
    return slept


@pytest.fixture
def file(tmp_path: Path, image_bytes: Callable[..., bytes]) -> ImageFile:
    """A good image as it was listed."""
    data = image_bytes(1)
    (tmp_path / "a.png").write_bytes(data)
    return listed(tmp_path / "a.png")


def listed(path: Path) -> ImageFile:
    """A file as a listing finds it now."""
    status = path.stat()
    return ImageFile(path.name, str(path), status.st_size, local_version(status))


def load(file: ImageFile) -> Any:
    """What loading gives; a load that hangs fails the test instead of stopping it."""
    loaded: list[Any] = []
    thread = threading.Thread(
        target=lambda: loaded.append(load_image(file, SIZE, LIMITS, DECODER)), daemon=True
    )
    thread.start()
    thread.join(60)
    assert loaded, "it waits"
    return loaded[0]


def failure_of(file: ImageFile) -> tuple[str, str, str]:
    failure = load(file)
    assert isinstance(failure, Failure)
    assert failure.uri == file.uri
    assert hashed(file, LIMITS) is None
    return failure.stage, failure.reason, failure.message


def test_a_good_image(file: ImageFile) -> None:
    (row,), pixels = load(file)
    data = Path(file.path).read_bytes()
    assert (row.uri, row.size, row.sha256) == ("a.png", len(data), hashlib.sha256(data).hexdigest())
    assert pixels.shape == (*SIZE.size, 3)
    assert hashed(file, LIMITS) == replace(file, sha256=row.sha256)


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(path.parent)  # for a socket's path is short
        listening.bind(path.name)


NO_FILE = ("read", "not_a_file", "it is no regular file")


@pytest.mark.parametrize(
    ("put", "expected"),
    [
        (lambda path: None, ("read", "vanished", "No such file or directory")),
        (lambda path: path.symlink_to("nowhere"), ("read", "vanished", "No such file or directory")),
        (
            lambda path: path.symlink_to(path.name),
            ("read", "unreadable", "Too many levels of symbolic links"),
        ),
        (lambda path: path.mkdir(), NO_FILE),
        (put_pipe, NO_FILE),
        (put_socket, ("read", "not_a_file", "No such device or address")),
        (lambda path: path.symlink_to("/dev/zero"), NO_FILE),
        (lambda path: path.symlink_to("/dev/null"), NO_FILE),
    ],
    ids=["nothing", "dangling link", "loop", "directory", "pipe", "socket", "endless device", "empty device"],
)
def test_what_has_taken_the_place_of_a_file(
    put: Callable[[Path], None], expected: tuple[str, str, str],
    file: ImageFile, waits: list[float], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir("/")
    Path(file.path).unlink()
    put(Path(file.path))
    assert failure_of(file) == expected
    assert waits == []


def test_a_folder_that_became_a_file(file: ImageFile, waits: list[float]) -> None:
    below = replace(file, path=f"{file.path}/b.png")
    assert failure_of(below) == ("read", "unreadable", "Not a directory")
    assert waits == []


def test_a_name_that_is_too_long(file: ImageFile, waits: list[float]) -> None:
    longer = replace(file, path=f"{file.path}{'x' * 255}")
    assert failure_of(longer) == ("read", "unreadable", "File name too long")
    assert waits == []


def refuse(error: OSError, monkeypatch: pytest.MonkeyPatch, times: int = 10**6) -> list[str]:
    """Has the next opens of a .png fail; gives their paths as they come."""
    opened: list[str] = []
    open_file = os.open

    def refusing(path: str, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".png") and len(opened) < times:
            opened.append(path)
            raise error
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    return opened


def test_a_file_that_may_not_be_read(file: ImageFile, waits: list[float], monkeypatch: Any) -> None:
    # Root, as which tests may run, reads everything.
    refuse(PermissionError(errno.EACCES, "Permission denied"), monkeypatch)
    assert failure_of(file) == ("read", "permission_denied", "Permission denied")
    assert waits == []


def test_a_disk_that_fails_for_a_moment(file: ImageFile, waits: list[float], monkeypatch: Any) -> None:
    opened = refuse(OSError(errno.EIO, "Input/output error"), monkeypatch, times=3)
    (row,), _ = load(file)
    assert row.uri == "a.png"
    assert (len(opened), len(waits)) == (3, 3)


def test_a_disk_that_fails_for_good(file: ImageFile, waits: list[float], monkeypatch: Any) -> None:
    opened = refuse(OSError(errno.EIO, "Input/output error"), monkeypatch)
    failure = load(file)
    assert (failure.stage, failure.reason, failure.message) == ("read", "unreadable", "Input/output error")
    assert (len(opened), len(waits)) == (5, 4)


def test_an_empty_file(file: ImageFile) -> None:
    Path(file.path).write_bytes(b"")
    failure = load(listed(Path(file.path)))
    assert (failure.stage, failure.reason) == ("decode", "empty")
    assert failure.sha256 == hashlib.sha256(b"").hexdigest()


def test_a_file_that_is_too_large_is_not_read(file: ImageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = refuse(OSError(errno.EIO, "not to be read"), monkeypatch)
    failure = load(replace(file, size=10_001))
    assert (failure.stage, failure.reason, failure.sha256) == ("read", "too_many_bytes", None)
    assert failure.message == "10001 bytes are more than images.max_bytes (10000)"
    assert opened == []


def test_of_a_file_that_has_grown_too_large_little_is_read(file: ImageFile) -> None:
    os.truncate(file.path, 2**40)  # a hole: to read all of it takes more memory than there is
    message = f"it has grown from {file.size} bytes to more than images.max_bytes (10000)"
    assert failure_of(file) == ("read", "too_many_bytes", message)


def test_an_object_that_has_grown_too_large(memory: Any) -> None:
    memory["mem://bucket/a.png"] = bytes(10_001), 1.0
    small = ImageFile("a.png", "mem://bucket/a.png", 5, "1")
    assert failure_of(small)[:2] == ("read", "too_many_bytes")


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_is_not_all_there_yet(size: int, file: ImageFile) -> None:
    # Nothing is said of its bytes, which are others by now.
    os.truncate(file.path, size)
    failure = load(file)
    assert (failure.stage, failure.reason, failure.sha256) == ("read", "changed", None)
    settled = load(listed(Path(file.path)))
    assert (settled.stage, settled.reason) == ("decode", "truncated" if size else "empty")


CHANGED = ("read", "changed", "it changed during the build; the next one takes it")


def test_a_file_that_has_become_another_good_image(file: ImageFile, image_bytes: Any) -> None:
    Path(file.path).write_bytes(image_bytes(2, (50, 40)))
    assert failure_of(file) == CHANGED
    (row,), _ = load(listed(Path(file.path)))
    assert (row.width, row.height) == (50, 40)


def test_a_file_in_whose_place_another_of_its_size_is(file: ImageFile) -> None:
    # Stored under what was listed, it would be taken for that when that comes back.
    os.utime(file.path, ns=(1, 1))
    assert failure_of(file) == CHANGED


def test_a_file_whose_attributes_alone_have_changed_is_known_by_the_new_ones(file: ImageFile) -> None:
    Path(file.path).chmod(0o600)
    os.link(file.path, f"{file.path} too")
    now = listed(Path(file.path))
    assert now.version != file.version
    (row,), _ = load(file)
    assert row.version == now.version
    assert hashed(file, LIMITS) == replace(now, sha256=row.sha256)


def test_a_file_whose_attributes_change_all_the_time_is_given_up(
    file: ImageFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(100))
    modified = Path(file.path).stat().st_mtime_ns
    monkeypatch.setattr(
        "imgindex.inputs.local_files.local_version", lambda status: f"{modified}-{next(ticks)}"
    )
    assert failure_of(file) == CHANGED


def test_a_decoder_that_something_else_has_killed_is_asked_again(file: ImageFile) -> None:
    class Killed(DecoderProcess):
        deaths = 0

        def decode(self, *arguments: Any) -> Any:
            Killed.deaths += 1
            if Killed.deaths <= kills:
                raise DecodeError("killed", "the decoder died: signal 9 (Killed), from outside")
            return DECODER.decode(*arguments)

    kills = 1
    (row,), _ = load_image(file, SIZE, LIMITS, Killed())
    assert row.uri == "a.png"
    kills, Killed.deaths = 9, 0
    failure = load_image(file, SIZE, LIMITS, Killed())
    assert isinstance(failure, Failure)
    assert (failure.reason, Killed.deaths) == ("killed", 2)


class TestOutage:
    def test_many_reads_in_a_row_that_fail_end_the_run(self, file: ImageFile, monkeypatch: Any) -> None:
        refuse(OSError(errno.ENOTCONN, "Transport endpoint is not connected"), monkeypatch)
        reasons = [load_image(file, SIZE, LIMITS, DECODER) for _ in range(circuit_breaker.LIMIT - 1)]
        assert {failure.reason for failure in reasons if isinstance(failure, Failure)} == {"unreadable"}
        with pytest.raises(
            InputError, match=rf"{file.path}, with Transport endpoint.*what was embedded is kept"
        ):
            load_image(file, SIZE, LIMITS, DECODER)
        # A run that begins when it is back begins anew.
        assert isinstance(load_image(file, SIZE, LIMITS, DECODER), Failure)

    def test_hashing_counts_too(self, file: ImageFile, monkeypatch: Any) -> None:
        refuse(OSError(errno.EIO, "Input/output error"), monkeypatch)
        for _ in range(circuit_breaker.LIMIT - 1):
            assert hashed(file, LIMITS) is None
        with pytest.raises(InputError):
            hashed(file, LIMITS)

    def test_one_success_between_is_enough(self, file: ImageFile, monkeypatch: Any) -> None:
        for _ in range(3):
            with monkeypatch.context() as patch:
                refuse(OSError(errno.EIO, "Input/output error"), patch)
                for _ in range(circuit_breaker.LIMIT - 1):
                    assert isinstance(load_image(file, SIZE, LIMITS, DECODER), Failure)
            assert not isinstance(load_image(file, SIZE, LIMITS, DECODER), Failure)

    @pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), PermissionError(13, "no")])
    def test_what_is_wrong_with_the_files_is_no_outage(
        self, error: OSError, file: ImageFile, monkeypatch: Any
    ) -> None:
        refuse(error, monkeypatch)
        for _ in range(3 * circuit_breaker.LIMIT):
            assert isinstance(load_image(file, SIZE, LIMITS, DECODER), Failure)
