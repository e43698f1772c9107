"""The command `imgindex doctor`: what a build would find here."""

import argparse

from imgindex.commands.doctor import examine
from imgindex.errors import MachineError
from imgindex.text import counted, printable


def run(known: argparse.Namespace) -> None:
    """Prints what is found. Raises MachineError at the end where a build would fail."""
    problems = 0
    for finding in examine.examine(known.output):
        print(printable(examine.describe(finding)), flush=True)
        problems += finding.level == "problem"
    if problems:
        raise MachineError(f"a build would fail here: {counted(problems, 'problem')}")
    print("a build can run here")
