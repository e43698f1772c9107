"""The command `imgindex push`."""

import argparse

from imgindex.sinks.databases.push import push
from imgindex.text import counted


def run(known: argparse.Namespace) -> None:
    """Pushes a generation and says what leads to it now, or what a push would do."""
    pushed = push(
        known.output,
        known.to,
        known.uri,
        collection=known.collection,
        keep=known.keep,
        generation=known.generation,
        batch_rows=known.batch_rows,
        index_kind=known.index_kind,
        dry_run=known.dry_run,
    )
    leads, deleted = ("would lead", "would delete") if known.dry_run else ("leads", "deleted")
    if pushed.pushed:
        before = f"; before, it led to {pushed.before}" if pushed.before else ""
        print(
            f"{pushed.name} {leads} to {pushed.collection}: {counted(pushed.images, 'vector')} of "
            f"{counted(pushed.dims, 'dimension')}, of generation {pushed.generation}{before}"
        )
    else:
        print(f"{pushed.name} leads to generation {pushed.generation} already; nothing to push")
    for name in pushed.dropped:
        print(f"{deleted} {name}")
