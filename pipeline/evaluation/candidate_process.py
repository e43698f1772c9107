"""Measures one index of one library: ``python -m imgindex.evaluation.candidate_process FOLDER``.

It is a process of its own, which its parent may end. The folder holds the job, as `compare` writes it, and
gets what was found, line by line, so that what was measured before the end stays.
"""

import importlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imgindex.models.ann.protocol import AnnBackend, AnnIndex, SearchSettings
from imgindex.models.ann.recall import RECALL_K
from imgindex.runtime.child_process import end_with_parent

Items = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

# A search's queries end after so many seconds, after some that are not timed.
_SECONDS = 5.0
_WARM_UP = 5


def measure(folder: Path) -> None:
    """Does the job in `folder`: builds the index, opens it, and asks all queries in each of the searches."""
    job = json.loads((folder / "job.json").read_text())
    arrays = {name: np.load(path, mmap_mode="r") for name, path in job["arrays"].items()}
    with (folder / "found.jsonl").open("w", buffering=1) as found:
        try:
            _measure(job, arrays, folder, found)
        except Exception as error:  # of whatever library: it is the row of this index
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=found)


def _measure(job: Mapping[str, Any], arrays: Mapping[str, Any], folder: Path, found: Any) -> None:
    importlib.import_module(job["package"])  # before the time is taken
    module, _, name = job["backend"].partition(":")
    backend: AnnBackend = getattr(importlib.import_module(module), name)()
    path, metric = folder / "index", job["metric"]
    vectors = arrays["vectors"]
    started = time.perf_counter()
    backend.build(vectors, path, metric=metric, settings=job["build"])
    built = {"build_seconds": time.perf_counter() - started, "bytes": path.stat().st_size}
    index = backend.open(path, metric=metric, dims=vectors.shape[1], items=len(vectors))
    for number, settings in enumerate(job["searches"]):
        answers, seconds = ask(index, settings, arrays)
        np.save(folder / f"answers-{number}.npy", answers)
        p50, p95, p99 = (1000 * float(value) for value in np.percentile(seconds, (50, 95, 99)))
        row = {
            "queries": len(answers),
            "ms_per_query": p50,
            "ms_p95": p95,
            "ms_p99": p99,
            "queries_per_second": 1 / float(seconds.mean()),
            "peak_memory": memory_of("self", "VmHWM"),
            **built,
        }
        print(json.dumps(row), file=found)


def ask(index: AnnIndex, settings: SearchSettings, arrays: Mapping[str, Any]) -> tuple[Items, Values]:
    """Answers [q, 10] of one query after the other, -1 where there are no more, and the seconds of each [q].

    The query's own content is no answer to it, so as many more are asked for as there are copies. Queries
    that time does not suffice for are left out.
    """
    queries, copies, own = (np.array(arrays[name]) for name in ("queries", "copies", "own"))
    contents = arrays["contents"]
    for query in queries[:_WARM_UP]:
        index.search(query, RECALL_K + 1, settings)
    answers = np.full((len(queries), RECALL_K), -1, np.int64)
    seconds: list[float] = []
    end = time.perf_counter() + _SECONDS
    for number, query in enumerate(queries):
        started = time.perf_counter()
        items, _ = index.search(query, RECALL_K + int(copies[number]), settings)
        seconds.append(time.perf_counter() - started)
        others = items[contents[items] != own[number]][:RECALL_K]
        answers[number, : len(others)] = others
        if time.perf_counter() > end:
            break
    return answers[: len(seconds)], np.array(seconds)


def memory_of(process: int | str, field: str) -> int:
    """The bytes of `field` of a process: ``VmRSS``, its memory now; ``VmHWM``, the most that it had."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    end_with_parent()
    # ScaNN loads TensorFlow where it can, and fails beside a version that it was not compiled for.
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    measure(Path(sys.argv[1]))
