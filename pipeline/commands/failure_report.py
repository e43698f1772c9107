"""What `imgindex inspect --failures` prints: which images have failed, where, and why."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from imgindex.generations import failure_lists
from imgindex.generations.layout import Output, current_name, files_of, read_manifest, refused_name
from imgindex.io import filesystem
from imgindex.records import Failure
from imgindex.text import counted, printable


def lines(output: Output, reason: str | None = None, *, as_json: bool = False) -> Iterator[str]:
    """The failures of the live generation, and of the last build that was refused, if its lists are there.

    Each takes a line: as text, with a heading for each of the two builds, or as a JSON object. With `reason`
    others are left out; it is a reason or a stage and a reason, such as decode/truncated.

    Raises OutputError where there is neither, or a list cannot be read.
    """
    live, refused = current_name(output), refused_name(output)
    if live is not None or refused is None:
        manifest = read_manifest(output)
        files = files_of(output, manifest)
        found = (row for path in manifest.failures for row in failure_lists.read_failures(files[path]))
        folder = filesystem.join(output.generation(manifest.generation), "failures")
        yield from _lines("live", manifest.generation, folder, found, reason, as_json)
    if refused is not None:
        folder = filesystem.join(output.generation(refused), "failures")
        yield from _lines("refused", refused, folder, failure_lists.read_folder(folder), reason, as_json)


def _lines(
    state: str, name: str, folder: str, failures: Iterator[Failure], reason: str | None, as_json: bool
) -> Iterator[str]:
    count = 0
    for failure in failures:
        if reason not in (None, failure.reason, f"{failure.stage}/{failure.reason}"):
            continue
        count += 1
        if as_json:
            yield json.dumps({"generation": name, "state": state, **asdict(failure)}, ensure_ascii=False)
        else:
            yield printable(f"{failure.uri}: {failure.stage}/{failure.reason}: {failure.message}")
    if not as_json:
        what = "the live generation" if state == "live" else "the last build, which was refused"
        yield printable(f"{counted(count, 'failure')} of {what}, {name}; the lists are in {folder}")
