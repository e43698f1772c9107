"""Compares libraries for nearest neighbors in the vectors of an index, each in a process of its own."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.errors import UsageError
from imgindex.evaluation.candidate_process import memory_of
from imgindex.evaluation.collection import Collection
from imgindex.evaluation.feature_search import search_vectors
from imgindex.evaluation.judging import recalls
from imgindex.evaluation.pareto import pareto_front
from imgindex.evaluation.results import Candidate
from imgindex.evaluation.stacked_rows import StackedRows
from imgindex.models.ann.families import FAMILIES, Family, Trial
from imgindex.models.ann.recall import RECALL_K
from imgindex.runtime.resources import available_memory
from imgindex.runtime.temporary_folder import TemporaryFolder
from imgindex.text import human_bytes, printable

Items = npt.NDArray[np.int64]

SECONDS = 60.0
# Queries that are asked of an index, at most: they come one after the other.
ASKED = 1000
_POLL_SECONDS = 0.05

# What the libraries that compute with several threads look at.
_ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "VECLIB_MAXIMUM")
}


@dataclass(frozen=True)
class Limits:
    """What the process of a candidate may take."""

    seconds: float
    memory: int = field(default_factory=lambda: available_memory() // 2)  # bytes


def families_named(names: Sequence[str]) -> dict[str, Family]:
    """The families of these names; "all" is every one, and "faiss" each whose name begins with "faiss-".

    Raises UsageError for another name.
    """
    chosen: set[str] = set()
    for name in names:
        found = {each for each in FAMILIES if name in ("all", each) or each.startswith(f"{name}-")}
        if not found:
            raise UsageError(f"compare has {name!r}; expected all, faiss or names of {', '.join(FAMILIES)}")
        chosen |= found
    return {name: FAMILIES[name] for name in FAMILIES if name in chosen}


@dataclass(frozen=True)
class Comparison:
    """What is compared: families of indexes, in the vectors of a collection, with a sample of `queries`."""

    collection: Collection
    queries: Items
    families: Mapping[str, Family]
    limits: Limits

    @property
    def trials(self) -> list[tuple[str, Family, Trial]]:
        """The indexes that are built; one process each."""
        items, dims = self.collection.vectors.shape
        return [
            (name, family, trial)
            for name, family in self.families.items()
            for trial in family.trials(items, dims)
        ]

    def run(self, progress: Callable[[], object]) -> tuple[Candidate, ...]:
        """Measures every candidate; calls `progress` after each of the `trials`."""
        collection, queries = self.collection, self.queries
        exact = search_vectors(collection, collection.vectors, queries, RECALL_K)
        rows: list[Candidate] = []
        with TemporaryFolder() as folder:
            arrays: dict[str, npt.NDArray[Any] | StackedRows] = {
                "vectors": collection.vectors,
                "queries": collection.vectors[queries],
                "contents": collection.contents,
                "own": collection.contents[queries],
                "copies": collection.copies[queries],
            }
            paths = {name: str(Path(folder, f"{name}.npy")) for name in arrays}
            for name, array in arrays.items():
                _save(paths[name], array)
            for name, family, trial in self.trials:
                if importlib.util.find_spec(family.package.partition(".")[0]) is None:
                    if all(row.family != name for row in rows):
                        rows.append(_missing(name, family))
                else:
                    rows += self._measure(name, family, trial, paths, exact)
                progress()
        measured = [row for row in rows if row.recall_at_10 is not None]
        front = pareto_front([(row.recall_at_10 or 0, row.queries_per_second or 0) for row in measured])
        best = {id(row) for row, on_front in zip(measured, front, strict=True) if on_front}
        return tuple(replace(row, pareto=id(row) in best) for row in rows)

    def _measure(
        self, name: str, family: Family, trial: Trial, arrays: Mapping[str, str], exact: Items
    ) -> list[Candidate]:
        """The rows of one index: a row for each search, and one that says what went wrong."""
        build, searches = trial
        job = {
            "package": family.package,
            "backend": family.backend,
            "build": build,
            "searches": searches,
            "metric": self.collection.manifest.metric,
            "arrays": arrays,
        }
        rows = []
        with TemporaryFolder() as text:
            folder = Path(text)
            (folder / "job.json").write_text(json.dumps(job))
            note = _run(folder, self.limits)
            for number, line in enumerate(_found(folder)):
                if "error" in line:
                    note = printable(" ".join(str(line["error"]).split()))
                    continue
                answers = np.load(folder / f"answers-{number}.npy")
                recall = recalls(self.collection, answers, exact[: len(answers)])
                rows.append(
                    Candidate(
                        family=name,
                        library=family.library,
                        build=dict(build),
                        search=dict(searches[number]),
                        recall_at_10=float(recall.mean()),
                        **line,
                    )
                )
        if note:
            unmeasured = dict(searches[len(rows)]) if 0 < len(rows) < len(searches) else {}
            rows.append(Candidate(name, family.library, dict(build), unmeasured, note=note))
        return rows


def _save(path: str, array: npt.NDArray[Any] | StackedRows) -> None:
    if isinstance(array, np.ndarray):
        np.save(path, array)
        return
    saved = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=array.shape)
    ends = np.cumsum([len(part) for part in array.parts])
    for part, rows in zip(array.parts, np.split(saved, ends[:-1]), strict=True):
        rows[:] = part


def _missing(name: str, family: Family) -> Candidate:
    note = f"not installed; pip install 'imgindex[{family.extra}]'"
    return Candidate(name, family.library, {}, {}, note=note)


def _found(folder: Path) -> list[dict[str, Any]]:
    """What the process has written, whole lines of it."""
    with contextlib.suppress(OSError):
        lines = (folder / "found.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    return []


def _run(folder: Path, limits: Limits) -> str:
    """Runs the process of the job in `folder`, and says why it did not end well, or nothing."""
    # -P: a file in the current directory may be named as one of Python's modules.
    command = [sys.executable, "-P", "-m", "imgindex.evaluation.candidate_process", str(folder)]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | _ONE_THREAD,
        )
    end = time.monotonic() + limits.seconds
    try:
        while True:
            try:
                return _ended(process.wait(_POLL_SECONDS), folder)
            except subprocess.TimeoutExpired:
                if time.monotonic() > end:
                    return f"stopped after {limits.seconds:g} seconds"
                # It may have ended just now.
                with contextlib.suppress(OSError, ValueError):
                    if memory_of(process.pid, "VmRSS") > limits.memory:
                        return f"stopped when it took more than {human_bytes(limits.memory)} of memory"
    finally:
        process.kill()
        process.wait()


def _ended(code: int, folder: Path) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if code:
        lines = (folder / "stderr").read_text(errors="replace").strip().splitlines() or [""]
        return f"ended with exit code {code}: {printable(lines[-1])}".removesuffix(": ")
    return ""
