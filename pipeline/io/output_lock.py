"""One writer at a time: a lock on a local output, a lease on an object store.

The lease is a small object. Its holder renews it. A writer that wants it watches it, and takes it over once
it has not changed for `LEASE_SECONDS` by the watcher's own monotonic clock. Clocks of different machines are
never compared. Every write of the lease is conditional on the version that was read before, so that of two
writers at once one is refused, however late a request arrives.

A job may outlive its lock: the launcher of a Flink or Dataflow job is killed, a machine sleeps. So a build
carries a `Claim`, and asks it again before it makes anything live.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from imgindex.errors import OutputError, SupersededError
from imgindex.io import filesystem
from imgindex.io.object_protocol import Versioned
from imgindex.runtime.background import beside
from imgindex.runtime.signals import undone

logger = logging.getLogger(__name__)

_NAME = ".lock"
_NAMES, _TIMES = ("owner", "host"), ("since", "renewed")
# How often a lock is opened that is deleted meanwhile.
_OPENINGS = 100
_LAST_DATE = 1e11  # that time.localtime takes; in seconds

# A lease that has not been renewed for so long is void.
LEASE_SECONDS = 120.0
# So many renewals, of which one must succeed, does a holder try meanwhile, and so often does a watcher look.
_RENEWALS, _LOOKS = 12, 24


@dataclass(frozen=True)
class Claim:
    """What a writer that holds an output shows before it makes anything live."""

    output: str
    owner: str
    taken: float  # when it began, by the clock of the output's storage; seconds since the epoch

    def check(self) -> None:
        """Raises SupersededError where the writer has lost the output, OutputError where it cannot tell."""
        path = filesystem.join(self.output, _NAME)
        found = filesystem.read_versioned(path)
        holder = _parse(found.data) if found else {}
        if holder.get("owner") == self.owner and not holder.get("released"):
            return
        if holder.get("owner") == self.owner:
            why = "the build that started this job has ended without it"
        elif holder:
            why = f"{_name(holder)} took over {self.output} at {_date(holder)}"
        else:
            why = f"{path} is gone or damaged"
        raise SupersededError(f"{why}; this process changes nothing more there")


@contextlib.contextmanager
def writer_lock(output: str) -> Iterator[Claim]:
    """Holds the output's lock until the block ends. Raises OutputError where another writer has it.

    The lock of a process that has died is void: at once on a local filesystem; on an object store the next
    writer waits `LEASE_SECONDS` before it takes over.
    """
    holder = {
        "owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time(),
    }  # fmt: skip
    path = filesystem.join(output, _NAME)
    with (_local_lock if filesystem.is_local(output) else _lease)(path, holder):
        yield Claim(output, str(holder["owner"]), filesystem.modified(path))


def _refuse(path: str, holder: dict[str, Any]) -> OutputError:
    # Else it says who held it before, or nothing: a new holder has not written to it yet.
    is_known = bool(holder) and not holder.get("released")
    who = f"{_name(holder)} since {_date(holder)}" if is_known else "another process"
    return OutputError(f"{path.rpartition('/')[0]} is being written by {who}; wait until it has ended")


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _date(holder: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since", 0)))


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


def _released(holder: dict[str, Any]) -> bytes:
    # A version of imgindex that goes by the time of the last renewal takes this for void, too.
    return json.dumps({**holder, "renewed": 0, "released": True}).encode()


@contextlib.contextmanager
def _given_back(path: str) -> Iterator[None]:
    """Says where a lock cannot be given back: what its holder has done is done all the same."""
    try:
        yield
    except (OSError, OutputError) as error:
        logger.warning("could not give back %s, which is void once this process has ended: %s", path, error)


@contextlib.contextmanager
def _local_lock(path: str, holder: dict[str, Any]) -> Iterator[None]:
    folder = Path(path).parent
    made = [place for place in (folder, *folder.parents) if not filesystem.exists(str(place))]
    with _locked(path) as file:
        file.seek(0)
        content = file.read()
        is_ours = not content or bool(_parse(content))
        release = partial(_overwrite, file, _released(holder))
        try:
            try:
                _overwrite(file, json.dumps(holder).encode())
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}") from error
            with undone(release):
                yield
        except BaseException:
            # Before it is given back, so that whoever has it open finds it gone, and makes another.
            with _given_back(path):
                if is_ours and _is_at(path, file):
                    _leave_nothing(Path(path), made)
            raise
        finally:
            with _given_back(path):
                release()


@contextlib.contextmanager
def _locked(path: str) -> Iterator[BinaryIO]:
    """Yields the file at `path`, locked. Raises OutputError where another process has it."""
    why: str | None = "other processes delete it again and again"
    for _ in range(_OPENINGS):
        with contextlib.ExitStack() as stack:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(path, "a+b", opener=_open_no_link))
            except FileNotFoundError as error:  # a build that has failed may have just taken the folder away
                why = error.strerror
                continue
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}") from error
            _lock(file, path)
            if _is_at(path, file):
                yield file
                return
    raise OutputError(f"cannot write {path}: {why}")


def _open_no_link(path: str, flags: int) -> int:
    """A descriptor of `path`; never of what a link leads to, which no build has written."""
    if Path(path).is_symlink():
        raise OutputError(f"{path} is a link and no lock of imgindex; move it away")
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _lock(file: BinaryIO, path: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise _refuse(path, _parse(file.read())) from error
    except OSError as error:
        raise OutputError(f"cannot lock {path}: {error.strerror}; its filesystem has no locks") from error


def _is_at(path: str, file: BinaryIO) -> bool:
    """Whether `file` is what lies at `path`, and not what was deleted there."""
    try:
        return os.path.samestat(Path(path).stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _leave_nothing(path: Path, made: Sequence[Path]) -> None:
    """Deletes a lock that lies alone, and then of the folders `made` those that are empty."""
    if [*path.parent.iterdir()] == [path]:
        path.unlink()
        with contextlib.suppress(OSError):  # not empty: another process writes there, too
            for folder in made:
                folder.rmdir()


def _overwrite(file: BinaryIO, data: bytes) -> None:
    file.truncate(0)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())  # for jobs on other machines, too


@contextlib.contextmanager
def _lease(path: str, holder: dict[str, Any]) -> Iterator[None]:
    lease = Lease(path, holder)
    with undone(lease.release):
        lease.take()
        try:
            with beside(lease.keep):
                yield
        finally:
            with _given_back(path):
                lease.release()


class Lease:
    """A writer's side of a lease."""

    def __init__(self, path: str, holder: dict[str, Any]) -> None:
        self._path = path
        self._holder = holder
        self._version: str | None = None  # as it was last read or written
        self._renewals = 0

    def take(self) -> None:
        """Takes the lease, which may need a wait. Raises OutputError where another writer holds it."""
        found = filesystem.read_versioned(self._path)
        if found and not _is_free(found):
            logger.info("%s may be held by another writer: watching whether it is renewed", self._path)
            found = self._outwait(found)
        version = found.version if found else None
        try:
            self._version = filesystem.replace_version(self._path, self._content(), version)
        except OutputError:
            # It may have arrived. A lease that nobody renews would have the next writer wait.
            with _given_back(self._path):
                self.release()
            raise
        if self._version is None:
            winner = filesystem.read_versioned(self._path)
            raise _refuse(self._path, _parse(winner.data) if winner else {})

    def _outwait(self, found: Versioned) -> Versioned | None:
        """Gives the lease as it is once its holder has lost or left it."""
        began = time.monotonic()
        while time.monotonic() - began < LEASE_SECONDS:
            time.sleep(LEASE_SECONDS / _LOOKS)
            latest = filesystem.read_versioned(self._path)
            if latest is None or _is_free(latest):
                return latest
            if latest.version != found.version:
                raise _refuse(self._path, _parse(latest.data))
        return found

    def keep(self, stop: threading.Event) -> None:
        """Renews the lease until `stop` is set, or another writer has it."""
        while not stop.wait(LEASE_SECONDS / _RENEWALS):
            try:
                if not self.renew():
                    logger.warning("%s is lost: this build will not publish", self._path)
                    return
            except OutputError as error:
                logger.info("%s; trying again", error)

    def renew(self) -> bool:
        """Renews the lease; False where another writer has it. Raises OutputError where that is not known."""
        self._renewals += 1
        version = filesystem.replace_version(self._path, self._content(), self._version)
        if version is None:
            # An earlier renewal that was given up may have arrived since.
            found = filesystem.read_versioned(self._path)
            if found is None or not self._is_ours(found):
                return False
            version = found.version
        self._version = version
        return True

    def release(self) -> None:
        """Leaves word that nobody holds the output, unless another writer does. Raises OutputError."""
        found = filesystem.read_versioned(self._path)
        # A renewal may be under way.
        while found and self._is_ours(found):
            if filesystem.replace_version(self._path, _released(self._holder), found.version):
                return
            found = filesystem.read_versioned(self._path)

    def _is_ours(self, found: Versioned) -> bool:
        return not _is_free(found) and _parse(found.data)["owner"] == self._holder["owner"]

    def _content(self) -> bytes:
        # The count makes each another version, even where the clock stands still.
        return json.dumps({**self._holder, "renewed": time.time(), "renewals": self._renewals}).encode()


def _is_free(found: Versioned) -> bool:
    holder = _parse(found.data)
    return not holder or bool(holder.get("released"))
