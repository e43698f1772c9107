"""The command `imgindex export`."""

import argparse

from imgindex.sinks.export import export
from imgindex.text import counted, printable


def run(known: argparse.Namespace) -> None:
    """Exports a generation and says what the folder holds."""
    exported = export(
        known.output,
        known.format,
        known.folder,
        generation=known.generation,
        normalize=known.normalize,
        faiss_index=known.faiss_index,
        images=known.images,
        seed=known.seed,
        since=known.since,
    )
    removed = "" if exported.removed is None else f", and {counted(exported.removed, 'id')} to delete"
    print(
        printable(
            f"{exported.folder} holds {counted(exported.images, 'vector')} of "
            f"{counted(exported.dims, 'dimension')}, of generation {exported.generation}{removed}"
        )
    )
