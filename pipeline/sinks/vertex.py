"""Lines of JSON for Vertex AI Vector Search: a whole generation, or what has changed since another one."""

import contextlib
import functools
import heapq
import json
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from imgindex.errors import OutputError, RecipeChangedError
from imgindex.generations.manifest import Manifest
from imgindex.runtime.progress import Progress
from imgindex.sinks.folder import NewFiles
from imgindex.sinks.options import ExportOptions
from imgindex.sinks.source import Batch, Source, opened

# A folder of its own: Vertex AI takes every .json file of it for vectors, and no other folders than `delete`.
_BATCH = "batch"

# Rows of each shard that are in memory at once, while shards are merged.
_MERGED_ROWS = 256


def write(files: NewFiles, source: Source, options: ExportOptions) -> None:
    """Writes ``batch/vectors.json``, an object on each line, as Vertex AI Vector Search reads it.

    An object has `id`, the uri; `embedding`; `restricts`, by the namespace ``label``, where the image has a
    label; and `crowding_tag`, the SHA-256 of the image's bytes. With `options.since` only those are
    written that are new or others than in that generation, and ``batch/delete/removed.txt`` has the ids of
    those that are gone, one on each line. A file that would be empty is not written.

    https://cloud.google.com/vertex-ai/docs/vector-search/setup/format-structure

    Raises:
      RecipeChangedError: the vectors of the two generations cannot be compared.
      OutputError: a uri that is gone has a line break.
    """
    if options.since is None:
        with files.open(f"{_BATCH}/vectors.json") as file:
            for batch in source.batches():
                for _, line in _lines(batch):
                    file.write(line)
        return
    with opened(source.output, options.since, normalize=source.normalize, progress=Progress()) as before:
        _check_recipe(before.manifest, source.manifest)
        _write_changes(files, before, source)


def _write_changes(files: NewFiles, before: Source, source: Source) -> None:
    source.progress.expect(source.manifest.items)
    changed = removed = 0
    with contextlib.ExitStack() as stack:
        file = functools.cache(lambda name: stack.enter_context(files.open(f"{_BATCH}/{name}")))
        for uri, old, new in _side_by_side(before, source):
            if new is None:
                if "\n" in uri or "\r" in uri:
                    raise OutputError(
                        f"the image {uri!r} is gone, and its name has a line break, which no file of ids of "
                        "Vertex AI can hold; delete this id by its API, and export without --since"
                    )
                file("delete/removed.txt").write(f"{uri}\n".encode())
                removed += 1
            elif new != old:
                file("vectors.json").write(new)
                changed += 1
    files.facts |= {"images": changed, "removed": removed, "since": before.generation}


def _check_recipe(before: Manifest, now: Manifest) -> None:
    for what, differs in (
        ("spec", before.spec.digest != now.spec.digest),
        ("PCA basis", _basis(before) != _basis(now)),
        ("metric", before.metric != now.metric),
    ):
        if differs:
            raise RecipeChangedError(
                f"the {what} of generation {now.generation} differs from that of {before.generation}, so all "
                "vectors have changed; export without --since and replace the whole index"
            )


def _basis(manifest: Manifest) -> str:
    return next(file.sha256 for file in manifest.files if file.path == manifest.basis)


def _side_by_side(before: Source, now: Source) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """Every uri of either generation, in their order, with its line in each."""
    shards = [
        _of_shard(source, shard, is_new)
        for source, is_new in ((before, False), (now, True))
        for shard in range(len(source.shards))
    ]
    for uri, rows in groupby(heapq.merge(*shards, key=itemgetter(0)), key=itemgetter(0)):
        lines = {is_new: line for _, is_new, line in rows}
        yield uri, lines.get(False), lines.get(True)


def _of_shard(source: Source, shard: int, is_new: bool) -> Iterator[tuple[str, bool, bytes]]:
    """The uri and the line of each image of a shard, in the order of the uris; `is_new` of each."""
    for batch in source.of_shard(shard, _MERGED_ROWS):
        for uri, line in _lines(batch):
            yield uri, is_new, line


def _lines(batch: Batch) -> Iterator[tuple[str, bytes]]:
    """The uri and the line of each image."""
    columns = (batch.images[name].to_pylist() for name in ("uri", "label", "sha256"))
    for uri, label, sha256, vector in zip(*columns, batch.vectors, strict=True):
        numbers = ", ".join(vector.astype(str))  # the shortest text that is read as the same float32
        line = f'{{"id": {json.dumps(uri)}, "embedding": [{numbers}]'
        if label is not None:
            line += f', "restricts": [{{"namespace": "label", "allow": [{json.dumps(label)}]}}]'
        yield uri, f'{line}, "crowding_tag": {json.dumps(sha256)}}}\n'.encode()
