"""Finds the duplicates of a generation: ``python -m imgindex.serving.find_duplicates JOB``.

It is a process of its own, which its parent may end, and which lets the searches of the service go first.
JOB is JSON: the arguments of `imgindex.duplicates`, and the `path` of the file to write.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imgindex.errors import foreseen
from imgindex.evaluation.duplicates.find import duplicates
from imgindex.evaluation.duplicates.results import DuplicateGroup, Duplicates, json_head
from imgindex.runtime.child_process import end_with_parent

# Images of a group that are listed. All of them count.
IMAGES = 50

# By how much other processes go before this one.
_NICE = 10


def write_found(job: Mapping[str, Any]) -> None:
    """Does a job. The file's first line is of all groups, or says why there are none; each has a line."""
    arguments = dict(job)
    with Path(arguments.pop("path")).open("w", encoding="utf-8") as file:
        try:
            found = duplicates(**arguments)
        except Exception as error:
            told = foreseen(error)
            if told is None:
                raise
            print(json.dumps({"error": str(told)}), file=file)
            return
        print(json.dumps(_head(found)), file=file)
        for group in found.groups:
            print(json.dumps(_line(group)), file=file)


def _head(found: Duplicates) -> dict[str, Any]:
    # Where the index lies is nothing for clients.
    own = ("output", "against", "against_generation")
    return {name: value for name, value in json_head(found).items() if name not in own}


def _line(group: DuplicateGroup) -> dict[str, Any]:
    images = [asdict(image) for image in group.images[:IMAGES]]
    for image in images:
        del image["index"]
    return {
        "kind": group.kind,
        "least_similarity": group.least_similarity,
        "why": group.why,
        "count": len(group.images),
        "images": images,
    }


if __name__ == "__main__":
    end_with_parent()
    os.nice(_NICE)
    write_found(json.loads(sys.argv[1]))
