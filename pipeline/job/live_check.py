"""Looks, before a build, whether the files of the live generation are as they were written."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from imgindex.io import written_files
from imgindex.records import WrittenFile
from imgindex.runtime.resources import available_cores

# Multiples of it, without their whole parts, lie about as far apart as so many numbers can.
_GOLDEN = (5**0.5 - 1) / 2


def faults_in(
    files: Sequence[WrittenFile], always: Sequence[WrittenFile], budget: int, day: int
) -> dict[str, str]:
    """What is wrong with the files of a generation, by their whole paths; those without a fault are left out.

    The sizes of all are compared. Every byte is read of those that are `due` and of those in `always`.

    Raises OutputError where one cannot be looked at, though it is not missing.
    """
    read = {*always, *due(files, budget, day)}
    with ThreadPoolExecutor(available_cores(), "check") as pool:
        found = pool.map(lambda file: written_files.fault_in(file, every_byte=file in read), files)
        return {file.path: fault for file, fault in zip(files, found, strict=True) if fault is not None}


def due(files: Sequence[WrittenFile], budget: int, day: int) -> list[WrittenFile]:
    """Which files are read on a `day`, counted from any other: of at most `budget` bytes together, or one.

    All where they fit. Otherwise those that follow a place among their bytes, which the day decides. The
    places are multiples of the golden ratio. So regular builds come to every file: where the budget is a
    tenth of all bytes, daily ones within 20 builds, and weekly ones within 50.
    """
    total = sum(file.size for file in files)
    if total <= budget:
        return list(files)
    if budget == 0:
        return []
    place = day * _GOLDEN % 1 * total
    first = 0
    while (place := place - files[first].size) >= 0:
        first += 1
    chosen: list[WrittenFile] = []
    for file in (*files[first:], *files[:first]):
        if chosen and file.size > budget:
            break
        chosen.append(file)
        budget -= file.size
    return chosen
