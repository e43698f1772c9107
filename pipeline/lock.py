"""One writer at a time: a lock on a local output, a lease on an object store."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from imgindex import storage
from imgindex.background import beside
from imgindex.errors import OutputError
from imgindex.interrupt import undone

_NAME = ".lock"
_NAMES, _TIMES = ("owner", "host"), ("since", "renewed")
_LAST_DATE = 1e11  # that time.localtime takes; in seconds

# An object store has no locks. A writer renews its lease; one that has not been renewed for so long is void.
LEASE_SECONDS = 120.0
# How long a new lease must stand before it holds: of two writers at once the later one has overwritten it.
_SETTLE_SECONDS = 1.0


@contextlib.contextmanager
def writer_lock(output: str) -> Iterator[None]:
    """Holds the output's lock until the block ends. Raises OutputError where another writer has it.

    The lock of a process that has died is void: at once on a local filesystem, after `LEASE_SECONDS` on an
    object store.
    """
    holder = {
        "owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time(),
    }  # fmt: skip
    held = _local_lock if storage.is_local(output) else _lease
    with held(storage.join(output, _NAME), holder):
        yield


def _refuse(path: str, holder: dict[str, Any]) -> OutputError:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", 0)))
    return OutputError(
        f"{path.rpartition('/')[0]} is being written by process {holder.get('pid')} on {holder.get('host')} "
        f"since {since}; wait until it has ended"
    )


def _parse(data: bytes) -> dict[str, Any]:
    """What a lock says of its holder; nothing where it cannot be read, as while it is being written."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or not all(isinstance(content.get(name), str) for name in _NAMES):
        return {}
    times = [content.get(name, 0) for name in _TIMES]
    return content if all(isinstance(at, int | float) and 0 <= at < _LAST_DATE for at in times) else {}


@contextlib.contextmanager
def _local_lock(path: str, holder: dict[str, Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(Path(path).open("a+b"))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _refuse(path, _parse(file.read())) from error
        except OSError as error:
            raise OutputError(f"cannot lock {path}: {error.strerror}; its filesystem has no locks") from error
        try:
            file.truncate(0)
            file.write(json.dumps(holder).encode())
            file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        yield


@contextlib.contextmanager
def _lease(path: str, holder: dict[str, Any]) -> Iterator[None]:
    other = _read_lease(path)
    if other and time.time() - other.get("renewed", 0) < LEASE_SECONDS:
        raise _refuse(path, other)
    _renew(path, holder)
    time.sleep(_SETTLE_SECONDS)
    winner = _read_lease(path)
    if winner.get("owner") != holder["owner"]:
        raise _refuse(path, winner)

    def keep(stop: threading.Event) -> None:
        while not stop.wait(LEASE_SECONDS / 4):
            # A failed renewal is made up for by the next: there are three before the lease is void.
            with contextlib.suppress(OutputError):
                _renew(path, holder)

    try:
        with beside(keep), undone(partial(storage.delete, path)):
            yield
    finally:
        storage.delete(path)


def _renew(path: str, holder: dict[str, Any]) -> None:
    storage.write_bytes(path, json.dumps({**holder, "renewed": time.time()}).encode())


def _read_lease(path: str) -> dict[str, Any]:
    try:
        return _parse(storage.read_bytes(path)) if storage.exists(path) else {}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error}") from error
