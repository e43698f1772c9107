"""Reads an output's every byte and says what is damaged."""

from collections.abc import Iterator
from dataclasses import dataclass

from imgindex.errors import DamagedError, OutputError
from imgindex.features import feature_store, known_failures
from imgindex.generations.layout import Output, live_name, read_manifest
from imgindex.generations.manifest import Manifest
from imgindex.indexing import shards
from imgindex.indexing.shard_files import read_basis
from imgindex.io import content_addressed, filesystem, written_files


@dataclass(frozen=True)
class Verified:
    """What `verify` looked at and found."""

    files: int
    bytes: int
    chunks: int
    rows: int
    problems: tuple[str, ...]


def verify(output: str) -> Verified:
    """Reads every byte of the live generation and of the store. Raises OutputError where nothing is live.

    What another process prunes meanwhile is no damage.
    """
    layout = Output(output)
    manifest, problems = _check_live(layout)
    counted = rows = 0
    for spec in filesystem.list_folders(filesystem.join(layout.root, "store")):
        folder = layout.store(spec)
        feature_dim = manifest.feature_dim if spec == manifest.spec.digest else None
        seen: set[str] = set()
        moved = True
        # `prune` moves rows that are in use to other files. What a build adds meanwhile is not waited for.
        while moved:
            moved = False
            new = [
                name
                for name in content_addressed.names(folder) + known_failures.names(folder)
                if name not in seen
            ]
            seen.update(new)
            for name in new:
                try:
                    if known_failures.holds(name):
                        list(known_failures.read(folder, name))
                    else:
                        rows += sum(1 for _ in feature_store.read_keys(folder, name, feature_dim))
                        counted += 1
                except OutputError as error:
                    if filesystem.exists(filesystem.join(folder, name)):
                        problems.append(str(error))
                    else:
                        moved = True
    return Verified(len(manifest.files), manifest.size, counted, rows, tuple(problems))


def _check_live(layout: Output) -> tuple[Manifest, list[str]]:
    """The live generation's manifest, and what is damaged in it. Raises OutputError."""
    while True:
        name = live_name(layout)
        try:
            manifest = read_manifest(layout, name)
            problems = list(check_generation(layout, manifest))
        except OutputError:
            if live_name(layout) == name:
                raise
            continue
        # It is pruned only when another is live.
        if not problems or live_name(layout) == name or filesystem.exists(layout.manifest(name)):
            return manifest, problems


def check_generation(output: Output, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the files of the generation that `manifest` describes."""
    directory = output.generation(manifest.generation)
    by_path = {file.path: file for file in manifest.files}
    for shard in manifest.shards:
        yield from shards.check_shard(
            directory,
            by_path.pop(shard.index),
            by_path.pop(shard.metadata),
            items=shard.items,
            dims=manifest.dims,
            metric=manifest.metric,
        )
    for file in by_path.values():
        try:
            (read_basis if file.path == manifest.basis else written_files.read_checked)(
                written_files.placed(directory, file)
            )
        except DamagedError as error:
            yield str(error)
