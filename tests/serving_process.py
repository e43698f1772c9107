"""`imgindex serve` as a process of its own, with the quick engine `served`."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = Path(__file__).parent / "serving_command.py"


@dataclass
class Serving:
    """A running service."""

    process: "subprocess.Popen[str]"
    url: str
    port: int


@contextlib.contextmanager
def serving(output: Path, *arguments: str, **environment: Any) -> Iterator[Serving]:
    """Serves an index on a free port; ends the process at the end, if it has not ended by then."""
    process = subprocess.Popen(
        [sys.executable, str(COMMAND), "serve", str(output), "--port", "0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **environment,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            told = process.stdout.readline() + process.stdout.readline()
            found = re.search(r"http://[^/]*:(\d+)/", told)
            assert found, told + process.stderr.read()
            yield Serving(process, found[0], int(found[1]))
        finally:
            process.kill()
