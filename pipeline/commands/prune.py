"""The command `imgindex prune`."""

import argparse

from imgindex.commands.argument_values import duration
from imgindex.generations.prune import FEATURE_GRACE, GENERATION_GRACE, prune
from imgindex.text import counted


def run(known: argparse.Namespace) -> None:
    """Deletes older generations and what of the store they alone used; says what it kept."""
    pruned = prune(known.output, known.keep, known.grace)
    for name in pruned.generations:
        print(f"deleted generation {name}")
    grace = GENERATION_GRACE if known.grace is None else known.grace
    for name in pruned.young_generations:
        print(f"kept generation {name}: it is not older than {duration(grace)}")
    print(
        f"deleted {counted(len(pruned.generations), 'generation')}, and from "
        f"{counted(pruned.chunks, 'file')} of the store the features of {counted(pruned.rows, 'image')} that "
        f"no other generation uses; forgot {counted(pruned.failures, 'failure')}"
    )
    if pruned.young_files:
        grace = FEATURE_GRACE if known.grace is None else known.grace
        age = duration(grace)
        files = counted(pruned.young_files, "file")
        print(f"kept {files} of the store, used or not: not older than {age}")
