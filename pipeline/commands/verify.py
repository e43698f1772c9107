"""The command `imgindex verify`."""

import argparse

from imgindex.errors import DamagedError
from imgindex.generations.verify import verify
from imgindex.text import counted, human_bytes, printable


def run(known: argparse.Namespace) -> None:
    """Reads every byte of the live generation and of the store. Raises DamagedError at the end."""
    found = verify(known.output)
    print(
        f"{counted(found.files, 'file')} of the live generation, {human_bytes(found.bytes)}; "
        f"{counted(found.chunks, 'file')} of the store, with the features of {counted(found.rows, 'image')}"
    )
    for problem in found.problems:
        print(f"damaged: {printable(problem)}")
    if found.problems:
        raise DamagedError(f"{known.output}: {counted(len(found.problems), 'problem')}")
    print("all bytes are as they were written")
