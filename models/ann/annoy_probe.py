"""Tries the installed Annoy: ``python -m imgindex.models.ann.annoy_probe`` prints what it found as JSON.

It is a process of its own, for an Annoy that was compiled for another CPU ends the one that calls it.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from imgindex.models.ann.annoy import Annoy
from imgindex.models.ann.protocol import METRICS
from imgindex.models.ann.recall import measure_recall

ITEMS, DIMS, TREES, QUERIES, NEIGHBORS = 500, 32, 10, 20, 10


@dataclass(frozen=True)
class Probed:
    """What Annoy did, the worse of its metrics."""

    neighbors: int  # the fewest distinct ones that a query got, of the `NEIGHBORS` that it asked for
    recall: float  # against exact search, by the deepest search, which inspects all items
    repeatable: bool  # whether the same vectors and seed made the same file twice


def probe(folder: Path) -> Probed:
    """Builds and searches small indexes in `folder`. Raises OutputError where Annoy cannot."""
    vectors = np.random.default_rng(0).standard_normal((ITEMS, DIMS)).astype(np.float32)
    annoy = Annoy()
    probed = []
    for metric in METRICS:
        files = [folder / f"{metric}-{number}.ann" for number in range(2)]
        for file in files:
            annoy.build(vectors, file, metric=metric, settings={"trees": TREES, "seed": 0})
        shard = annoy.open(files[0], metric=metric, dims=DIMS, items=ITEMS)
        shard.check()
        answers = shard.nearest(vectors[:QUERIES], NEIGHBORS, shard.searches[-1])
        probed.append(
            Probed(
                min(len(set(items.tolist())) for items, _ in answers),
                measure_recall(shard)[-1],
                files[0].read_bytes() == files[1].read_bytes(),
            )
        )
    return Probed(
        min(found.neighbors for found in probed),
        min(found.recall for found in probed),
        all(found.repeatable for found in probed),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="imgindex-") as folder:
        json.dump(asdict(probe(Path(folder))), sys.stdout)
