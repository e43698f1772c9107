"""Whether an output's filesystem does what a build relies on: replacing, syncing, locking, and room."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgindex.commands.doctor.findings import Finding
from imgindex.errors import OutputError
from imgindex.io import filesystem
from imgindex.io.output_lock import writer_lock
from imgindex.runtime.background import beside
from imgindex.runtime.temporary_folder import TemporaryFolder

# How often a file is replaced while another thread reads it.
_REPLACEMENTS = 100
_SCARCE_BYTES, _AMPLE_BYTES = 64 << 20, 1 << 30

_ELSEWHERE = "put the output on another filesystem"


def check_output(output: str | None) -> Iterator[Finding]:
    """Tries, in a directory that goes again, what a build does to `output`; by default here.

    Raises OutputError where nothing can be written.
    """
    if output is not None and not filesystem.is_local(output):
        yield check_object_store(output)
        return
    place = _existing(Path(output).expanduser()) if output is not None else _here()
    yield check_space(place)
    with _scratch(place) as folder:
        yield check_replacing(folder)
        yield check_syncing(folder)
        yield check_locking(str(folder))


def _here() -> Path:
    here = Path.cwd()
    return here if os.access(here, os.W_OK) else Path(tempfile.gettempdir())


def _existing(path: Path) -> Path:
    """`path`, or the directory in which a build would make it."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    try:
        folder = TemporaryFolder(".imgindex-doctor-", place)
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def check_space(place: Path) -> Finding:
    """How much room there is."""
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB are free in {place}"
    if free >= _AMPLE_BYTES:
        return Finding("ok", "space", found)
    advice = "a build with --dry_run says how much it needs: free some, or choose another output"
    return Finding("problem" if free < _SCARCE_BYTES else "warning", "space", found, advice)


def check_replacing(folder: Path, write: Callable[[str, bytes], None] = filesystem.write_bytes) -> Finding:
    """Whether a file that is replaced is at every moment the old one or the new one."""
    path = folder / "CURRENT"
    contents = [letter * 4096 for letter in (b"a", b"b")]
    write(str(path), contents[0])
    wrong: list[str] = []

    def read(stop: threading.Event) -> None:
        while not (wrong or stop.is_set()):
            try:
                if path.read_bytes() not in contents:
                    wrong.append("half of it")
            except OSError as error:
                wrong.append(str(error))

    with beside(read):
        for number in range(_REPLACEMENTS):
            write(str(path), contents[number % 2])
    if wrong:
        found = f"whoever reads a file while it is replaced finds: {wrong[0]}"
        return Finding("problem", "replacing", found, _ELSEWHERE)
    return Finding("ok", "replacing", "a file that is replaced is the old one or the new one at any moment")


def check_syncing(folder: Path) -> Finding:
    """Whether written bytes can be made to outlive a crash of the machine."""
    started = time.monotonic()
    try:
        with (folder / "synced").open("wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding("problem", "syncing", f"fsync does not work: {error.strerror}", _ELSEWHERE)
    return Finding("ok", "syncing", f"fsync works, in {1000 * (time.monotonic() - started):.1f} ms")


def check_locking(output: str) -> Finding:
    """Whether a second writer is refused: in another process, and on another machine, as far as is known."""
    try:
        with writer_lock(output):
            second = [sys.executable, "-P", "-c", _LOCK, output]
            code = subprocess.run(second, stdin=subprocess.DEVNULL, capture_output=True).returncode
    except OutputError as error:
        return Finding("problem", "locking", str(error), _ELSEWHERE)
    if code == 0:
        return Finding("problem", "locking", "two builds could write at once", _ELSEWHERE)
    if code != OutputError.exit_code:
        return Finding("problem", "locking", f"a second process ended with {code}", "run it again")
    mount = mount_of(Path(output), Path("/proc/self/mountinfo").read_text())
    refused = "a second build on this machine is refused while one writes"
    if mount.is_of_this_machine:
        return Finding("ok", "locking", refused)
    if mount.has_shared_locks:
        return Finding("ok", "locking", f"{refused}, and so is one on another: {mount} shares its locks")
    return Finding(
        "warning", "locking", f"{refused}; {mount} may not share its locks, so that one on another is not",
        "let one machine alone write this output",
    )  # fmt: skip


# Takes a lock in a process of its own.
_LOCK = (
    "import sys\nfrom imgindex.errors import OutputError\nfrom imgindex.io.output_lock import writer_lock\n"
    "try:\n    with writer_lock(sys.argv[1]):\n        pass\n"
    "except OutputError as error:\n    sys.exit(error.exit_code)\n"
)

# Filesystems of a disk or of memory, which only one machine has mounted.
_OF_ONE_MACHINE = frozenset({
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs",
    "tmpfs", "vfat", "xfs", "zfs",
})  # fmt: skip

# Filesystems of several machines whose locks hold on all of them, with the options that take that away.
_SHARED_BUT = {
    "ceph": frozenset[str](),
    "cifs": frozenset({"nobrl"}),
    "gfs2": frozenset({"localflocks"}),
    "gpfs": frozenset[str](),
    "lustre": frozenset({"localflock"}),
    "nfs": frozenset({"nolock", "local_lock=flock", "local_lock=all"}),
    "nfs4": frozenset({"nolock", "local_lock=flock", "local_lock=all"}),
    "ocfs2": frozenset({"localflocks"}),
    "smb3": frozenset({"nobrl"}),
}


@dataclass(frozen=True)
class Mount:
    """A mounted filesystem."""

    place: str
    kind: str
    options: frozenset[str]

    def __str__(self) -> str:
        lost = sorted(self.options & _SHARED_BUT.get(self.kind, frozenset()))
        return " ".join([self.kind, "on", self.place, *(f"with {option}" for option in lost)])

    @property
    def is_of_this_machine(self) -> bool:
        """Whether no other machine writes it."""
        return self.kind in _OF_ONE_MACHINE

    @property
    def has_shared_locks(self) -> bool:
        """Whether a lock that is taken here holds on other machines."""
        return self.kind in _SHARED_BUT and not self.options & _SHARED_BUT[self.kind]


def mount_of(path: Path, mountinfo: str) -> Mount:
    """The filesystem that `path` lies on, by the text of ``/proc/self/mountinfo`` (see proc(5))."""
    best = Mount("/", "unknown", frozenset())
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        kind, _, options = after.split(" ", 2)
        # Of what is mounted on one place the last one is seen.
        if path.resolve().is_relative_to(place) and len(place) >= len(best.place):
            best = Mount(place, kind, frozenset(options.split(",")) | frozenset(before.split()[5].split(",")))
    return best


def check_object_store(output: str) -> Finding:
    """Whether an object store takes, lists, replaces, gives back and deletes a file."""
    folder = filesystem.join(output, f".imgindex-doctor-{uuid.uuid4().hex}")
    path = filesystem.join(folder, "probe.txt")
    try:
        for content in (b"old", b"new"):
            filesystem.write_bytes(path, content)
        same = filesystem.read_bytes(path) == b"new" and filesystem.list_names(folder, ".txt") == [
            "probe.txt"
        ]
        # As when another writer has come first.
        overwritten = filesystem.replace_version(path, b"other", None) is not None
        filesystem.delete(path)
    except (OSError, OutputError) as error:
        return Finding("problem", "store", f"{output}: {error}", "check its name and your rights to it")
    if not same:
        return Finding("problem", "store", f"{output} does not give back what was written", _ELSEWHERE)
    if overwritten:
        return Finding("problem", "store", f"in {output} two builds could write at once", _ELSEWHERE)
    return Finding("ok", "store", f"{output} takes, replaces, lists and deletes files")
