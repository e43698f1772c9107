"""The command `imgindex inspect`."""

import argparse

from imgindex.commands.descriptions import describe_generation, describe_history
from imgindex.commands.failure_report import lines
from imgindex.errors import UsageError
from imgindex.generations.layout import Output, read_manifest
from imgindex.runtime.standard_streams import encodable


def run(known: argparse.Namespace) -> None:
    """Prints what the live generation holds and the history, or with `failures` what failed."""
    output = Output(known.output)
    if known.failures:
        for line in lines(output, known.reason, as_json=known.json):
            print(encodable(line))
        return
    if known.json or known.reason is not None:
        raise UsageError("--reason and --json need --failures")
    print(describe_generation(known.output, read_manifest(output)))
    print()
    print(describe_history(output))
