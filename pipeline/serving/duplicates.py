"""The duplicates among the images of the generation that answers: found once, and kept in files."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgindex.errors import OutputError
from imgindex.evaluation.duplicates.find import Across
from imgindex.evaluation.duplicates.results import THRESHOLD
from imgindex.runtime.temporary_folder import TemporaryFolder
from imgindex.serving.errors import RefusedError

# With a lower threshold nearly all groups are of images that only look alike, and may take very long.
LEAST_THRESHOLD = 0.8

# Parameters whose groups are kept: those that were asked for last.
_KEPT = 8

# How long a request waits for groups that are being found. They are found whether it waits or not.
_WAIT_SECONDS = 5.0

# Until what has failed is tried again.
_RETRY_SECONDS = 30.0


@dataclass(frozen=True)
class Parameters:
    """Which duplicates are looked for."""

    generation: str
    threshold: float = THRESHOLD
    across: Across | None = None


class Groups:
    """The groups that were found, in a file of which only what is asked for is read."""

    def __init__(self, folder: TemporaryFolder, path: Path) -> None:
        """Opens the file `path` of `find_duplicates`. Raises OutputError where that search failed."""
        self._folder = folder  # which is deleted with this
        self._path = path
        starts = [0]
        with path.open("rb") as file:
            for line in file:
                starts.append(starts[-1] + len(line))
            file.seek(0)
            self.head: dict[str, Any] = json.loads(file.readline())
        if "error" in self.head:
            raise OutputError(self.head["error"])
        self._starts = np.array(starts[1:])

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self._starts) - 1

    def part(self, offset: int, limit: int) -> list[dict[str, Any]]:
        """At most `limit` groups, the largest first, after the first `offset` of them."""
        starts = self._starts[min(offset, len(self)) :][: limit + 1].tolist()
        with self._path.open("rb") as file:
            file.seek(starts[0])
            lines = file.read(starts[-1] - starts[0]).splitlines()
        return list(map(json.loads, lines))


@dataclass(frozen=True)
class _Finding:
    groups: "Future[Groups]"
    begun: float

    def is_kept(self) -> bool:
        """Whether it need not be begun again."""
        failed = self.groups.done() and self.groups.exception() is not None
        return not failed or time.monotonic() - self.begun < _RETRY_SECONDS


class DuplicateSearch:
    """Finds duplicates, for one set of parameters at a time. Its methods are for one event loop."""

    def __init__(self, output: str) -> None:
        """Of the generations of an output."""
        self._output = output
        self._kept: OrderedDict[Parameters, _Finding] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "duplicates")
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted: Parameters | None = None  # what the process may look for

    async def groups(self, asked: Parameters) -> Groups | float:
        """The groups; or, where they are not found within some seconds, for how long they are looked for.

        However often it is called, they are looked for once.

        Raises:
          RefusedError: others are being looked for.
          OutputError: the generation or its store cannot be read.
        """
        finding = self._finding(asked)
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        finding.groups.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        # Whoever gives up leaves the search to the others, and to whoever comes back.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_SECONDS):
                await done.wait()
        return finding.groups.result() if done.is_set() else time.monotonic() - finding.begun

    def close(self) -> None:
        """Ends what is being looked for."""
        self._wanted = None
        self._stop()
        self._thread.shutdown(cancel_futures=True)

    def _finding(self, asked: Parameters) -> _Finding:
        kept = self._kept.get(asked)
        if kept is not None and kept.is_kept():
            self._kept.move_to_end(asked)
            return kept
        for other, finding in list(self._kept.items()):
            if other.generation != asked.generation:
                if not finding.groups.done():
                    self._stop()  # nobody asks for it again
                del self._kept[other]
            elif not finding.groups.done():
                raise RefusedError(
                    503, "busy", f"duplicates are being looked for with threshold {other.threshold:g} and "
                    f"across {other.across or 'nothing'}; ask for others when they are found",
                    {"Retry-After": "5"},
                )  # fmt: skip
        self._wanted = asked
        found = _Finding(self._thread.submit(self._find, asked), time.monotonic())
        self._kept[asked] = found
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found

    def _find(self, asked: Parameters) -> Groups:
        folder = TemporaryFolder("imgindex-duplicates-")
        path = Path(folder.name, "groups.jsonl")
        job = json.dumps({"output": self._output, "path": str(path), **asdict(asked)})
        # -P: a file in the current directory may be named as one of Python's modules.
        command = [sys.executable, "-P", "-m", "imgindex.serving.find_duplicates", job]
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        with process:
            if self._wanted is not asked:
                self._stop()
            _, complaints = process.communicate()
        if self._wanted is not asked:
            raise RefusedError(
                503, "gone", "another generation answers by now; ask again", {"Retry-After": "1"}
            )
        if process.returncode:
            last = complaints.decode(errors="replace").strip()[-_COMPLAINT:]
            raise RuntimeError(f"the search for duplicates ended with exit code {process.returncode}: {last}")
        return Groups(folder, path)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()


# Characters of what the process says that the log shows.
_COMPLAINT = 2000
