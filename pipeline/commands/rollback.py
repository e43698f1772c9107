"""The command `imgindex rollback`."""

import argparse

from imgindex.generations.rollback import rollback
from imgindex.runtime import signals


def run(known: argparse.Namespace) -> None:
    """Makes an older generation the live one."""
    before, now = rollback(known.output, known.generation)
    signals.done(f"generation {now} is live")
    print(f"{now} is live" + (f"; it was {before}" if before else ""))
