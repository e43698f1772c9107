"""Reads outputs, whatever they hold, in a process of its own: ``python reader.py``.

Each line of its stdin is JSON: the path of an output, and names of `READERS`. For each it prints, as a line
of JSON, how these ended: nothing, or the error's class and message. A crash, or more memory than the limit,
ends it.
"""

import json
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imgindex import Index
from imgindex.commands.descriptions import describe_generation, describe_history
from imgindex.errors import ImgindexError
from imgindex.generations.layout import Output, read_manifest
from imgindex.generations.prune import prune
from imgindex.generations.rollback import rollback
from imgindex.generations.verify import verify
from imgindex.search.pages import result_page
from imgindex.sinks.export import export

MEMORY = 200 << 20


def search(output: str, quick: bool) -> None:
    index = Index.open(output, quick=quick)
    queries = np.ones((1, index.manifest["dims"]), np.float32)
    for exact in (True, False):
        found = index.search_vectors(queries, 5, exact=exact)
        result_page(index, found)
        assert all(np.isfinite(n.similarity) for n in found[0].neighbors)


def export_vectors(output: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export(output, "npy", f"{folder}/out")


READERS: dict[str, Callable[[str], Any]] = {
    "verify": verify,
    "search": lambda output: search(output, False),
    "quick": lambda output: search(output, True),
    "export": export_vectors,
    "inspect": lambda output: describe_generation(output, read_manifest(Output(output))),
    "history": lambda output: describe_history(Output(output)),
    "prune": lambda output: prune(output, 2, grace_seconds=-1),
    "rollback": rollback,
}


def ending(read: Callable[[str], Any], output: str) -> list[str]:
    try:
        found = read(output)
    except ImgindexError as error:
        return [type(error).__name__, str(error)]
    except Exception:
        return ["", traceback.format_exc()]
    return ["problems", *found.problems] if read is verify and found.problems else []


if __name__ == "__main__":
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY,) * 2)
    for line in sys.stdin:
        output, names = json.loads(line)
        found = {name: ending(READERS[name], output) for name in names}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
