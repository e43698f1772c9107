"""What fails for a reason that passes is tried again, with growing waits and not for ever."""

import errno
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from imgindex.errors import OutputError
from imgindex.io import filesystem
from imgindex.io.retries import is_transient, retried

PASSING = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    TimeoutError("timed out"),
    OSError("of no known kind"),
]
LASTING = [
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    PermissionError(errno.EACCES, "Permission denied"),
    IsADirectoryError(errno.EISDIR, "Is a directory"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    OSError(errno.ELOOP, "Too many levels of symbolic links"),
    OSError(errno.ENAMETOOLONG, "File name too long"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system"),
]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


class Attempts:
    """Fails with each of `errors` in turn, then gives "done"."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = iter(errors)
        self.count = 0

    def __call__(self, *arguments: Any) -> str:
        self.count += 1
        for error in self.errors:
            raise error
        return "done"


@pytest.mark.parametrize("error", PASSING, ids=str)
@pytest.mark.parametrize("failing", [0, 1, 4])
def test_what_passes_is_tried_again(error: OSError, failing: int, waits: list[float]) -> None:
    call = Attempts(*[error] * failing)
    assert retried(call) == "done"
    assert (call.count, len(waits)) == (failing + 1, failing)


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_lasts_is_not(error: OSError, waits: list[float]) -> None:
    call = Attempts(error)
    with pytest.raises(OSError, match=str(error.strerror)) as raised:
        retried(call)
    assert raised.value is error
    assert (call.count, waits) == (1, [])


def test_waits_grow_and_end(waits: list[float]) -> None:
    call = Attempts(*[OSError(errno.EIO, f"error {n}") for n in range(99)])
    with pytest.raises(OSError, match="error 4"):
        retried(call)
    assert call.count == 5
    for wait, longest in zip(waits, (0.5, 1, 2, 4), strict=True):
        assert longest / 2 <= wait <= longest


def test_what_a_client_has_repeated_for_long_is_not_repeated(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", itertools.count(0, 31).__next__)
    call = Attempts(OSError(errno.EIO, "after ten minutes"))
    with pytest.raises(OSError, match="after ten minutes"):
        retried(call)
    assert (call.count, waits) == (1, [])


def test_bugs_are_not_tried_again(waits: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        retried(Attempts(ZeroDivisionError()))
    assert waits == []


class ClientError(Exception):
    """As S3ClientError: no OSError, and an HTTP status or none."""

    def __init__(self, message: str, code: int | None) -> None:
        self.message = message
        self.code = code


class CloudError(Exception):
    """As those of Google and Azure."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


CLIENT_ERRORS = [
    (ClientError("Slow Down", 503), True),
    (ClientError("cannot connect", None), True),
    (ClientError("Too Many Requests", 429), True),
    (ClientError("Request Timeout", 408), True),
    (ClientError("Forbidden", 403), False),
    (ClientError("Bad Request", 400), False),
    (CloudError("unavailable", 503), True),
    (CloudError("no such object", 404), False),
    (BeamIOError("List operation failed", {"mem://x": ClientError("Forbidden", 403)}), False),
    (BeamIOError("List operation failed", {"mem://x": ClientError("Internal", 500)}), True),
    (BeamIOError("List operation failed"), True),
]
KINDS = {403: PermissionError, 404: FileNotFoundError}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Attempts]:
    """Makes one of Beam's operations fail with each of the given errors before it does what it does."""

    def fail(operation: str, *errors: Exception) -> Attempts:
        original = getattr(FileSystems, operation)
        attempts = Attempts(*errors)

        def operate(*arguments: Any, **options: Any) -> Any:
            attempts()
            return original(*arguments, **options)

        monkeypatch.setattr(FileSystems, operation, staticmethod(operate))
        return attempts

    return fail


@pytest.mark.parametrize(("error", "passes"), CLIENT_ERRORS, ids=repr)
def test_errors_of_clients_are_told_apart_by_their_http_status(
    error: Exception, passes: bool, memory: Any, waits: list[float], failing: Callable[..., Attempts]
) -> None:
    memory["mem://bucket/file"] = b"data", 1.0
    attempts = failing("open", error)
    if passes:
        assert filesystem.read_bytes("mem://bucket/file") == b"data"
        assert (attempts.count, len(waits)) == (2, 1)
        return
    with pytest.raises(OSError, match="HTTP status 40") as raised:
        filesystem.read_bytes("mem://bucket/file")
    status = next(code for code in (400, 403, 404) if f"HTTP status {code}" in str(raised.value))
    assert type(raised.value) is KINDS.get(status, OSError)
    assert not is_transient(raised.value)
    assert (attempts.count, waits) == (1, [])


PATH = "mem://bucket/place/file.txt"
# What storage does on another filesystem, and the one of Beam's operations that it needs for it.
OPERATIONS: list[tuple[str, Callable[[], Any], Any]] = [
    ("open", lambda: filesystem.read_bytes(PATH), b"data"),
    ("open", lambda: filesystem.read_written(PATH, 1 << 20), b"data"),
    ("open", lambda: filesystem.read_regular(PATH, 2), b"dat"),
    ("match", lambda: filesystem.list_names("mem://bucket/place", ".txt"), ["file.txt"]),
    ("match", lambda: filesystem.list_folders("mem://bucket"), ["place"]),
    ("match", lambda: filesystem.modified(PATH), 1.0),
    ("match", lambda: filesystem.exists(PATH), True),
    ("create", lambda: filesystem.write_bytes(PATH, b"new"), None),
    ("delete", lambda: filesystem.delete(PATH), None),
    ("delete", lambda: filesystem.delete_tree("mem://bucket"), None),
]


@pytest.mark.parametrize(("operation", "call", "expected"), OPERATIONS)
def test_every_operation_on_another_filesystem_survives_a_bad_moment(
    operation: str, call: Callable[[], Any], expected: Any,
    memory: Any, waits: list[float], failing: Callable[..., Attempts],
) -> None:  # fmt: skip
    memory[PATH] = b"data", 1.0
    attempts = failing(operation, ClientError("Slow Down", 503), ConnectionResetError(104, "reset"))
    assert call() == expected
    assert (attempts.count, len(waits)) == (3, 2)
    if operation == "create":
        assert memory[PATH][0] == b"new"
    if operation == "delete":
        assert memory == {}


def test_an_output_that_stays_away_is_said_in_one_line(
    memory: Any, waits: list[float], failing: Callable[..., Attempts]
) -> None:
    failing("create", *[ClientError("Slow Down", 503)] * 99)
    with pytest.raises(OutputError, match=r"^cannot write mem://bucket/x: Slow Down \(HTTP status 503\)$"):
        filesystem.write_bytes("mem://bucket/x", b"data")
    assert len(waits) == 4
    assert memory == {}


def test_a_local_read_survives_a_bad_moment(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"data")
    read_bytes, attempts = Path.read_bytes, Attempts(OSError(errno.ESTALE, "Stale file handle"))

    def read(path: Path) -> bytes:
        attempts()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert filesystem.read_bytes(f"{tmp_path}/file") == b"data"
    assert (attempts.count, len(waits)) == (2, 1)
