"""Generations: how an output is laid out, which one is live, and how one is published."""

import hashlib
import logging
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from imgindex.errors import (
    DamagedError,
    MachineError,
    OutputError,
    PublishRefusedError,
    SupersededError,
    UsageError,
)
from imgindex.generations import manifest as manifests
from imgindex.generations.manifest import Manifest
from imgindex.io import filesystem, written_files
from imgindex.io.paths import absolute
from imgindex.models.frameworks import tensorflow_version, version_of
from imgindex.records import WrittenFile
from imgindex.runtime import signals

logger = logging.getLogger(__name__)

_Opened = TypeVar("_Opened")

_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_MAX_CURRENT_BYTES = 1000

_SPEC = re.compile(r"[0-9a-f]{16}")

# The files that a build writes, by the folder of the output that they lie in.
_TOP_FILES = re.compile(r"CURRENT")
_STORE_FILES = re.compile(r"(?:chunk|failed)-[0-9a-f]{32}\.parquet")
_GENERATION_FILES = re.compile(r"(?:manifest|outcome)\.json")
_NUMBERED = r"-[0-9]{5,}-of-[0-9]{5,}"
_PART_FILES = {
    "index": re.compile(rf"index{_NUMBERED}\.ann"),
    "metadata": re.compile(rf"metadata{_NUMBERED}\.parquet"),
    "pca": re.compile(r"basis\.npz"),
    "failures": re.compile(rf"failures{_NUMBERED}\.jsonl"),
    "report": re.compile(r"index\.html"),
}
# Says, in a generation that was not published, why not.
OUTCOME = "outcome.json"

# Marks, in an unfinished generation, that its job may outlive the process that has started it.
DETACHED = "detached"

# A job that may still run has written something within this time. Without a write, it counts as dead.
_ABANDONED_SECONDS = 24 * 3600.0
# How often each of its processes says that it goes on. A job may have thousands of them, and some stores take
# one write of an object a second.
_TELLING_SECONDS = 4 * 3600.0

_LIBRARIES = (
    "imgindex", "annoy", "apache-beam", "keras", "numpy", "openvino", "pillow", "pyarrow", "scipy",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """The paths inside an output directory, which may begin with ``~``."""

    root: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", absolute(self.root))

    @property
    def current(self) -> str:
        """The file that names the live generation."""
        return filesystem.join(self.root, "CURRENT")

    def store(self, spec_digest: str) -> str:
        """The directory of the store's chunks under a spec."""
        return filesystem.join(self.root, "store", spec_digest)

    def generation(self, name: str) -> str:
        """The directory of a generation."""
        return filesystem.join(self.root, "generations", name)

    def manifest(self, name: str) -> str:
        """The manifest of a generation; there is one exactly when the generation is complete."""
        return filesystem.join(self.generation(name), "manifest.json")


def new_name(digest_of: str) -> str:
    """A name for a generation that starts now: UTC time, then a short digest of what it is made of."""
    now = datetime.now(UTC)
    digest = hashlib.sha256(f"{now.isoformat()} {digest_of}".encode()).hexdigest()[:8]
    return f"{now:%Y%m%dT%H%M%SZ}-{digest}"


def current_name(output: Output) -> str | None:
    """The live generation's name; None where nothing is published yet."""
    if not filesystem.exists(output.current):
        return None
    name = filesystem.read_written(output.current, _MAX_CURRENT_BYTES).decode("utf-8", "replace").strip()
    if not _NAME.fullmatch(name):
        raise DamagedError(f"{output.current} is damaged: {name[:80]!r} is no generation's name")
    return name


def live_name(output: Output) -> str:
    """The live generation's name. Raises OutputError where there is none."""
    name = current_name(output)
    if name is not None:
        return name
    names = generation_names(output)
    if names:
        raise OutputError(
            f"{output.current} is not there; `imgindex rollback {output.root} {names[-1]}` makes the newest "
            "generation the live one"
        )
    raise OutputError(f"{output.root} holds no index; `imgindex build` writes one")


def read_manifest(output: Output, name: str | None = None) -> Manifest:
    """The manifest of a generation, the live one when `name` is None.

    Raises:
      UsageError: `name` is no generation's name.
      OutputError: there is no index, or the manifest cannot be read, or it is damaged.
    """
    name = live_name(output) if name is None else name
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no generation's name; `imgindex inspect {output.root}` lists them")
    path = output.manifest(name)
    if not filesystem.exists(path):
        raise DamagedError(f"{path} is not there, or {output.current} is damaged")
    try:
        return manifests.decode(filesystem.read_written(path, manifests.MAX_BYTES), name)
    except ValueError as error:
        raise DamagedError(f"the manifest {path} cannot be used: {error}") from error


def open_generation(output: Output, name: str | None, open_files: Callable[[Manifest], _Opened]) -> _Opened:
    """What `open_files` gives for the manifest of a generation, of the live one when `name` is None.

    Another process may prune the one that was live just now; then the one that is live by then is opened.

    Raises what `read_manifest` and `open_files` do; UsageError also where there is no generation `name`.
    """
    if name is not None and _NAME.fullmatch(name) and not filesystem.exists(output.manifest(name)):
        raise UsageError(
            f"{output.root} has no generation {name}, or no longer; `imgindex inspect {output.root}` lists "
            "those that it has"
        )
    while True:
        wanted = current_name(output) if name is None else name
        try:
            return open_files(read_manifest(output, wanted))
        except OutputError:
            if name is not None or current_name(output) in (None, wanted):
                raise


def files_of(output: Output, manifest: Manifest) -> dict[str, WrittenFile]:
    """The files of a generation, with their whole paths, by what its manifest calls them."""
    directory = output.generation(manifest.generation)
    return {file.path: written_files.placed(directory, file) for file in manifest.files}


def publish(output: Output, manifest: Manifest, check: Callable[[], None] = lambda: None) -> None:
    """Writes the manifest of a generation whose files are all there, and makes it the live one.

    Raises:
      PublishRefusedError: no reader would accept the manifest. Nothing is written.
      SupersededError: by `check`, or as of `make_current`.
      OutputError: it cannot be written, or is not read back as it was written.
    """
    name = manifest.generation
    check()
    try:
        data = manifests.encode(manifest)
    except ValueError as error:
        raise PublishRefusedError(
            f"no reader would accept the manifest of this build: {error}; this is a bug, please report it"
        ) from error
    filesystem.write_bytes(output.manifest(name), data)
    try:
        read_manifest(output, name)
    except OutputError:
        # With a manifest it would count as a complete generation.
        filesystem.delete(output.manifest(name))
        raise
    filesystem.delete_tree(filesystem.join(output.generation(name), DETACHED))
    make_current(output, name, check)


def make_current(output: Output, name: str, check: Callable[[], None] = lambda: None) -> None:
    """Makes a complete generation the live one.

    Raises:
      SupersededError: `check` does, which is called first, or another writer has replaced CURRENT since.
      OutputError: CURRENT cannot be read or written.
    """
    # Read before the check, so that whoever is not noticed by that is noticed by the version.
    before = filesystem.read_versioned(output.current)
    check()
    with signals.switching():
        after = filesystem.replace_version(output.current, f"{name}\n".encode(), before and before.version)
    if after is None:
        raise SupersededError(f"another writer has replaced {output.current} in the same moment; build again")


def note_if_live(output: Output, name: str) -> None:
    """Has a signal that ends the process say so where a generation is the live one. Raises OutputError."""
    if current_name(output) == name:
        signals.done(f"generation {name} is live")


def generation_names(output: Output) -> list[str]:
    """The names of the complete generations, oldest first. Raises OutputError."""
    return [name for name in _folder_names(output) if filesystem.exists(output.manifest(name))]


def refused_name(output: Output) -> str | None:
    """The name of the newest build that was refused, whose lists of failures stay until the next build."""
    for name in reversed(_folder_names(output)):
        directory = output.generation(name)
        if not filesystem.exists(output.manifest(name)) and filesystem.exists(
            filesystem.join(directory, OUTCOME)
        ):
            return name
    return None


def mark_detached(output: Output, name: str) -> None:
    """Marks a generation in the making as one of a job that may outlive this process. Raises OutputError."""
    filesystem.write_bytes(filesystem.join(output.generation(name), DETACHED, "job"), b"")


_told: dict[str, float] = {}  # when this process did so, or first was asked to; by a clock of its own


def tell_alive(output: Output, name: str) -> None:
    """Says from time to time that a detached job goes on: it may write to the store alone for days."""
    now = time.monotonic()
    if now - _told.setdefault(name, now) < _TELLING_SECONDS:
        return
    _told[name] = now
    try:
        mark_detached(output, name)
    except OutputError as error:  # the others say it, too
        logger.warning("could not say that the job of generation %s goes on: %s", name, error)


def delete_unfinished(output: Output, now: float) -> None:
    """Deletes what builds that died have left half-written. Only who holds the output's lock may.

    `now` is by the clock of the output's storage, in seconds since the epoch. Raises OutputError.
    """
    live = current_name(output)
    alive = False
    for name in _folder_names(output):
        # The live one may have lost its manifest, which may be found again.
        if name == live or filesystem.exists(output.manifest(name)):
            continue
        if _is_alive(output, name, now):
            alive = True
        else:
            filesystem.delete_tree(output.generation(name))
    # Nothing tells which job a file in the making belongs to, so all stay while one may run.
    if not alive:
        _delete_partials(output)
    for folder in ("store", "generations"):
        prefix = filesystem.join(output.root, folder, "")
        try:
            filesystem.abort_uploads(prefix, now - _ABANDONED_SECONDS, partial(_is_ours, output))
        except OSError as error:  # a build needs no right to list them
            logger.info("could not look for unfinished uploads below %s: %s", prefix, error)


def folders_made(output: Output) -> list[Path]:
    """The folders that builds make in a local output, each before the one it lies in. Raises OutputError."""
    folders = {"store", "generations"} & set(filesystem.list_folders(output.root))
    specs = filesystem.list_folders(filesystem.join(output.root, "store"))
    made = [output.store(spec) for spec in specs if _SPEC.fullmatch(spec)]
    return [*map(Path, made), *(Path(output.root, name) for name in folders)]


def _is_alive(output: Output, name: str, now: float) -> bool:
    """Whether the build of a generation without a manifest may be under way, though it has lost its lock.

    On a local filesystem a build has died with its lock, unless its job outlives it. On an object store a
    request may arrive long after it was made.
    """
    directory = output.generation(name)
    if filesystem.is_local(directory) and not filesystem.exists(filesystem.join(directory, DETACHED)):
        return False
    return now - filesystem.last_written(directory) < _ABANDONED_SECONDS


def _is_ours(output: Output, path: str) -> bool:
    """Whether a build writes to such a path below the store or the generations."""
    match path.removeprefix(filesystem.join(output.root, "")).split("/"):
        case ["store", _, name]:
            return bool(_STORE_FILES.fullmatch(name))
        case ["generations", name, folder, file] if _NAME.fullmatch(name):
            return folder == "parts" or (folder in _PART_FILES and bool(_PART_FILES[folder].fullmatch(file)))
    return False


def _delete_partials(output: Output) -> None:
    """Deletes files in the making: those that a build writes, where it writes them, and nobody else's."""
    filesystem.delete_partials(output.root, _TOP_FILES)
    for spec in filesystem.list_folders(filesystem.join(output.root, "store")):
        filesystem.delete_partials(output.store(spec), _STORE_FILES)
    for name in _folder_names(output):
        directory = output.generation(name)
        filesystem.delete_partials(directory, _GENERATION_FILES)
        for part, names in _PART_FILES.items():
            filesystem.delete_partials(filesystem.join(directory, part), names)


def _folder_names(output: Output) -> list[str]:
    folders = filesystem.list_folders(filesystem.join(output.root, "generations"))
    return [name for name in folders if _NAME.fullmatch(name)]


def library_versions() -> dict[str, str]:
    """The versions that an index may depend on."""
    versions = {"python": platform.python_version()}
    versions.update({name: version_of(name) for name in _LIBRARIES})
    with suppress(MachineError):  # other builds carry the module under names of their own
        versions["tensorflow"] = tensorflow_version()
    return versions
