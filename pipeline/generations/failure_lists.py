"""The lists of a generation's failures: files that workers write, each of a part of the uris."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from imgindex.errors import DamagedError
from imgindex.io import filesystem, written_files
from imgindex.records import Failure, WrittenFile, bucket_of

# How many failures a list holds on average, at most: some 20 MiB.
_LISTED_FAILURES = 65_536


@dataclass(frozen=True)
class FailureList:
    """A written list of failures of a generation."""

    file: WrittenFile
    by_reason: Mapping[str, int]  # how many of them, by stage/reason
    problems: tuple[str, ...] = ()  # what is wrong with the file as it was read back


def list_count_of(failed: int) -> int:
    """How many lists `failed` failures make; also of none there is one."""
    return max(1, -(-failed // _LISTED_FAILURES))


def list_of(failure: Failure, list_count: int) -> int:
    """Which of the lists a failure is in; its uri alone decides."""
    return bucket_of(failure.uri, list_count)


def write_list(generation: str, number: int, list_count: int, failures: Iterable[Failure]) -> FailureList:
    """Writes a list, whose bytes do not depend on the order of `failures`, and checks it as it lies there.

    Args:
      generation: the directory of the generation.
      number: from 0 to `list_count` - 1.
      list_count: how many lists there are.
      failures: all of the list's.

    Raises OutputError where it cannot be written.
    """
    rows = sorted(failures, key=lambda row: (row.uri, row.stage, row.reason, row.message, row.sha256 or ""))
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    path = f"failures/failures-{number:05}-of-{list_count:05}.jsonl"
    file = written_files.write_described(generation, path, "".join(lines).encode())
    fault = written_files.fault_of(generation, file)
    by_reason = Counter(f"{row.stage}/{row.reason}" for row in rows)
    return FailureList(file, dict(by_reason), () if fault is None else (fault,))


def read_list(file: WrittenFile) -> Iterator[tuple[str, str | None]]:
    """The uri and SHA-256 of each failure in a list, whose path is whole. Raises DamagedError."""
    return ((failure.uri, failure.sha256) for failure in read_failures(file))


def read_failures(file: WrittenFile) -> Iterator[Failure]:
    """The failures in a list, whose path is whole. Raises DamagedError."""
    return _failures_in(written_files.read_checked(file), file.path)


def read_folder(folder: str) -> Iterator[Failure]:
    """The failures in all lists of a folder, of which no manifest tells the digests. Raises OutputError."""
    for name in sorted(filesystem.list_names(folder, ".jsonl")):
        path = filesystem.join(folder, name)
        with filesystem.as_output_error("read", path):
            data = filesystem.read_bytes(path)
        yield from _failures_in(data, path)


def _failures_in(data: bytes, path: str) -> Iterator[Failure]:
    try:
        for line in data.splitlines():
            row = json.loads(line)
            failure = Failure(row["uri"], row["stage"], row["reason"], row["message"], row["sha256"])
            if not (isinstance(failure.uri, str) and isinstance(failure.sha256, str | None)):
                raise TypeError(f"a uri is {failure.uri!r}, a digest {failure.sha256!r}")
            failure.uri.encode()  # not every text of JSON is one of UTF-8
            yield failure
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is no list of failures") from error
