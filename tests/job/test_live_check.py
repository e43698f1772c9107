"""The look at the live generation before a build: what it finds, and what it reads for that."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgindex.errors import OutputError
from imgindex.io import filesystem, written_files
from imgindex.job.live_check import due, faults_in
from imgindex.records import WrittenFile


def written(place: str, name: str, data: bytes) -> WrittenFile:
    path = filesystem.join(place, name)
    filesystem.write_bytes(path, data)
    return WrittenFile(path, len(data), hashlib.sha256(data).hexdigest())


def files_of(sizes: list[int]) -> list[WrittenFile]:
    return [WrittenFile(f"{number}", size, "") for number, size in enumerate(sizes)]


SIZES = st.lists(st.integers(0, 1000), min_size=1, max_size=30)


@given(SIZES, st.integers(0, 5000), st.integers(0, 40_000))
def test_no_more_is_read_than_the_budget_or_one_file(sizes: list[int], budget: int, day: int) -> None:
    files = files_of(sizes)
    chosen = due(files, budget, day)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(files)
    assert len(chosen) == 1 or sum(file.size for file in chosen) <= budget
    if budget >= sum(sizes):
        assert chosen == files
    assert bool(chosen) == (budget > 0 or sum(sizes) == 0)


@pytest.mark.parametrize(("step", "times"), [(1, 2), (2, 3), (3, 3), (7, 5), (14, 3), (28, 2), (30, 3)])
@pytest.mark.parametrize("parts", [2, 5, 10, 25])
def test_regular_builds_come_to_every_file(step: int, times: int, parts: int) -> None:
    files = files_of([10] * 500)
    builds = [due(files, 5000 // parts, 20_000 + step * number) for number in range(times * parts)]
    assert {file for chosen in builds for file in chosen} == set(files)


def test_files_larger_than_the_budget_are_read_one_by_one() -> None:
    files = files_of([100, 300, 200])
    builds = [due(files, 10, day) for day in range(20)]
    assert {len(chosen) for chosen in builds} == {1}
    assert {file for chosen in builds for file in chosen} == set(files)


def test_damage_is_found_by_the_size_at_once_and_by_the_digest_when_a_file_is_due(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written_files, "_PIECE_BYTES", 1000)
    names = ("whole", "altered", "shorter", "gone", "always")
    files = [written(place, name, bytes(range(250)) * 17) for name in names]
    assert faults_in(files, [], 1 << 30, 0) == {}
    data = bytearray(filesystem.read_bytes(files[1].path))
    data[-1] ^= 1
    for name in ("altered", "always"):
        filesystem.write_bytes(filesystem.join(place, name), bytes(data))
    filesystem.write_bytes(files[2].path, bytes(data[:-1]))
    filesystem.delete(files[3].path)
    of_sizes = {
        files[2].path: f"{files[2].path} has 4249 bytes and not the 4250 that were written",
        files[3].path: f"{files[3].path} is not there",
    }
    assert faults_in(files, [], 0, 0) == of_sizes
    assert set(faults_in(files, files[4:], 0, 0)) == {*of_sizes, files[4].path}
    assert set(faults_in(files, [], 1 << 30, 0)) == {file.path for file in files[1:]}


def test_what_cannot_be_looked_at_is_not_taken_for_damaged(tmp_path: Path) -> None:
    file = written(str(tmp_path), "file", b"data")
    Path(file.path).unlink()
    Path(file.path).symlink_to("file")  # to itself
    with pytest.raises(OutputError, match=r"cannot read .*/file: Too many levels"):
        faults_in([file], [], 0, 0)
