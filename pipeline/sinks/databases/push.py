"""Pushes a generation into a vector database."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from imgindex.generations.layout import Output, open_generation
from imgindex.runtime.progress import Progress, shown
from imgindex.sinks.base import prune, transfer
from imgindex.sinks.databases.names import DEFAULT_NAME, collection_name
from imgindex.sinks.databases.protocol import NoDatabaseError
from imgindex.sinks.databases.sink import DatabaseSink
from imgindex.sinks.databases.targets import checked_kind, checked_target, connected
from imgindex.sinks.source import opened


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do."""

    name: str  # what clients ask for
    collection: str  # that it leads to
    generation: str
    images: int
    dims: int
    before: str | None  # the collection that it led to before
    pushed: bool  # False where it led to this one already, or nothing was to be done
    dropped: tuple[str, ...]  # collections of older generations


def push(
    output: str | Path,
    to: str,
    uri: str,
    *,
    collection: str = DEFAULT_NAME,
    keep: int | None = None,
    generation: str | None = None,
    batch_rows: int | None = None,
    index_kind: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Puts a generation into a vector database, as a collection of its own that a name leads to.

    The collection is filled and compared with the generation before the name leads to it, in one step. Until
    then clients see what was pushed before, and that stays to return to. If the name leads to the
    generation already, nothing is written. Credentials are taken from the environment.

    Args:
      output: the directory of the index, also on an object store.
      to: one of `sinks.databases.targets.TARGETS`.
      uri: where the database is; without a password.
      collection: the name that clients ask for: an alias, or a view.
      keep: delete the collections of all but so many newest generations; None: of none.
      generation: its name; the live one by default.
      batch_rows: how many rows a request has; by default what makes some 4 MiB.
      index_kind: how the vectors are indexed, in the words of the database; `TARGETS` has the kinds. None: as
        a collection of the generation that is there already, else the first kind.
      dry_run: write nothing, and tell what would be done.

    Raises:
      UsageError: an argument does not fit, or something that imgindex did not make has the name.
      MachineError: the client of the database is not installed.
      OutputError: the index cannot be read, or the database not written. The name leads where it did.
      PublishRefusedError: the collection does not hold what the generation holds, or answers worse than
        `publish.min_recall` of the index asks. The name leads where it did.
      AfterPublishError: the name leads to the generation, but older collections cannot be deleted.
    """
    checked_target(to, uri)
    kind = checked_kind(to, index_kind)
    layout = Output(str(output))
    manifest = open_generation(layout, generation, lambda found: found)
    pushed = Pushed(
        name=collection,
        collection=collection_name(collection, manifest.generation),
        generation=manifest.generation,
        images=manifest.items,
        dims=manifest.dims,
        before=None,
        pushed=True,
        dropped=(),
    )
    with contextlib.closing(connected(to, uri, make=not dry_run)) as database:
        try:
            sink = DatabaseSink(
                database, layout, manifest, collection, keep=keep, batch_rows=batch_rows, index_kind=kind
            )
        except NoDatabaseError:
            return pushed
        is_new = not sink.is_live
        dropped = tuple(sink.superseded())
        if dry_run:
            pass
        elif is_new:
            progress = Progress()
            with (
                shown(progress, "pushing", "pushed"),
                opened(layout.root, manifest.generation, normalize=False, progress=progress) as source,
            ):
                transfer(source, sink)
        else:
            prune(manifest.generation, sink)
    return replace(pushed, before=sink.before, pushed=is_new, dropped=dropped)
