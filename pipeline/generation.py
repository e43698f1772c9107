"""Generations: how an output is laid out, what a manifest says, and how one is published."""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from imgindex import storage
from imgindex.errors import OutputError

SCHEMA_VERSION = 1

_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_LIBRARIES = (
    "imgindex", "annoy", "apache-beam", "keras", "numpy", "openvino", "pillow", "pyarrow", "scipy",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """The paths inside an output directory."""

    root: str

    @property
    def current(self) -> str:
        """The file that names the live generation."""
        return storage.join(self.root, "CURRENT")

    def store(self, spec_digest: str) -> str:
        """The directory of the store's chunks under a spec."""
        return storage.join(self.root, "store", spec_digest)

    def generation(self, name: str) -> str:
        """The directory of a generation."""
        return storage.join(self.root, "generations", name)

    def manifest(self, name: str) -> str:
        """The manifest of a generation; there is one exactly when the generation is complete."""
        return storage.join(self.generation(name), "manifest.json")


def new_name(digest_of: str) -> str:
    """A name for a generation that starts now: UTC time, then a short digest of what it is made of."""
    now = datetime.now(UTC)
    digest = hashlib.sha256(f"{now.isoformat()} {digest_of}".encode()).hexdigest()[:8]
    return f"{now:%Y%m%dT%H%M%SZ}-{digest}"


def current_name(output: Output) -> str | None:
    """The live generation's name; None where nothing is published yet."""
    try:
        if not storage.exists(output.current):
            return None
        name = storage.read_bytes(output.current).decode("utf-8", "replace").strip()
    except OSError as error:
        raise OutputError(f"cannot read {output.current}: {error.strerror or error}") from error
    if not _NAME.fullmatch(name):
        raise OutputError(f"{output.current} is damaged: {name[:80]!r} is no generation's name")
    return name


def live_name(output: Output) -> str:
    """The live generation's name. Raises OutputError where there is none."""
    name = current_name(output)
    if name is None:
        raise OutputError(f"{output.root} holds no index; `imgindex build` writes one")
    return name


def read_manifest(output: Output, name: str | None = None) -> dict[str, Any]:
    """The manifest of a generation, the live one when `name` is None. Raises OutputError."""
    path = output.manifest(name or live_name(output))
    try:
        manifest = json.loads(storage.read_bytes(path))
    except OSError as error:
        raise OutputError(f"cannot read the manifest {path}: {error}") from error
    except ValueError as error:
        raise OutputError(f"the manifest {path} is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise OutputError(
            f"the manifest {path} has another schema than this imgindex reads ({SCHEMA_VERSION})"
        )
    return manifest


def publish(output: Output, name: str, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a generation whose files are all there, and makes it the live one."""
    encoded = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    storage.write_bytes(output.manifest(name), encoded.encode())
    make_current(output, name)


def make_current(output: Output, name: str) -> None:
    """Makes a complete generation the live one. Raises OutputError."""
    storage.write_bytes(output.current, f"{name}\n".encode())


def generation_names(output: Output) -> list[str]:
    """The names of the complete generations, oldest first. Raises OutputError."""
    return [name for name in _folder_names(output) if storage.exists(output.manifest(name))]


def delete_unfinished(output: Output) -> None:
    """Deletes what builds that died have left half-written. Only who holds the output's lock may."""
    for name in _folder_names(output):
        if not storage.exists(output.manifest(name)):
            storage.delete_tree(output.generation(name))
    storage.delete_partials(output.root)


def _folder_names(output: Output) -> list[str]:
    folders = storage.list_folders(storage.join(output.root, "generations"))
    return [name for name in folders if _NAME.fullmatch(name)]


def library_versions() -> dict[str, str]:
    """The versions that an index may depend on."""
    versions = {"python": platform.python_version()}
    versions.update({name: metadata.version(name) for name in _LIBRARIES})
    # tensorflow-cpu and other builds carry the module under other names.
    for name in ("tensorflow", "tensorflow-cpu"):
        try:
            versions["tensorflow"] = metadata.version(name)
            break
        except metadata.PackageNotFoundError:
            continue
    return versions
