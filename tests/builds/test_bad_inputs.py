"""One directory with every kind of bad input among good images: the good are indexed, the bad are named."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import BAD, GOOD, KINDS, MAX_BYTES, MAX_PIXELS

import imgindex
from imgindex.generations.layout import Output, current_name
from imgindex.generations.verify import verify

IMAGES = 200

# Of a build beside its libraries, which takes 30 to 46, and of one of its decoders, which takes 45.
# The bomb that is best behaved would take 75 more.
MAX_MIB = {"build": 68, "decoder": 90}

STUBS = Path(__file__).parents[1] / "stubs"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        (folder / f"photo-{number:03}.png").write_bytes(image_bytes(number, (20 + number, 16)))
    for kind in KINDS:
        kind.write(folder / kind.file)
    (folder / "folder.jpg").mkdir()  # is looked into, as any folder
    (folder / "folder.jpg" / "inside.png").write_bytes(image_bytes(IMAGES))
    (folder / "folder.jpg" / "again").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output") / "index"


@pytest.fixture(scope="module")
def built(photos: Path, output: Path) -> tuple[int, list[str], dict[str, float]]:
    return build(photos, output, "publish.max_failure_rate=0.3")


def build(photos: Path, output: Path, *settings: str) -> tuple[int, list[str], dict[str, float]]:
    """Builds in a process of its own: exit code, lines on standard error, peak memory in MiB by process."""
    arguments = ["--input", str(photos), "--output", str(output)]
    for setting in (
        "backbone.name=MobileNetV2", "backbone.weights=none", "engine.name=quarters", "pca.dims=5",
        "publish.min_recall=0", f"images.max_pixels={MAX_PIXELS}", f"images.max_bytes={MAX_BYTES}", *settings,
    ):  # fmt: skip
        arguments += ["--set", setting]
    peak = output.with_name("peak")
    done = subprocess.run(
        [sys.executable, "-m", "imgindex", "build", *arguments], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(STUBS), "IMGINDEX_TEST_PEAK": str(peak)},
    )  # fmt: skip
    peaks: dict[str, float] = {}
    for line in peak.read_text().splitlines():
        kind, kib = line.split()
        peaks[kind] = max(peaks.get(kind, 0), int(kib) / 1024)
    return done.returncode, done.stderr.splitlines(), peaks


def libraries_mib() -> float:
    """Peak memory in MiB of a process that imports what builds do: more where Beam's extras are installed."""
    imported = "imgindex.job.launch, matplotlib.figure, matplotlib.backends.backend_svg"
    code = f"import {imported}; print(open('/proc/self/status').read())"
    status = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def failures(output: Path, generation: str) -> dict[str, tuple[str, str]]:
    """Stage and reason of each failure, by uri."""
    (file,) = Path(Output(str(output)).generation(generation), "failures").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(row["message"] for row in rows)
    found = {row["uri"]: (row["stage"], row["reason"]) for row in rows}
    assert len(found) == len(rows)
    return found


def test_there_are_many_kinds() -> None:
    assert len(BAD) >= 40
    assert len({kind.file for kind in KINDS}) == len(KINDS)
    assert {kind.stage for kind in BAD} == {"list", "read", "decode", "embed"}


@pytest.mark.long
def test_the_good_are_indexed_and_the_bad_are_named(
    built: tuple[int, list[str], dict[str, float]], output: Path
) -> None:
    code, lines, peaks = built
    assert code == 0, lines
    generation = str(current_name(Output(str(output))))
    assert failures(output, generation) == {kind.file: (kind.stage, kind.reason) for kind in BAD}
    index = imgindex.Index.open(output)
    indexed = [row["uri"] for table in index._opened._metadata for row in table.to_pylist()]
    names = {f"photo-{number:03}.png" for number in range(IMAGES)} | {kind.file for kind in GOOD}
    assert sorted(indexed) == sorted(names | {"folder.jpg/inside.png"})
    ledger = index.manifest["ledger"]
    assert ledger["listed"] == len(indexed) + len(BAD)
    assert ledger["failed_by_reason"] == Counter(f"{kind.stage}/{kind.reason}" for kind in BAD)
    assert verify(str(output)).problems == ()
    peaks["build"] -= libraries_mib()
    sys.stdout.write(f"MiB: {peaks}\n")
    assert peaks.keys() == MAX_MIB.keys()
    assert all(peaks[kind] < most for kind, most in MAX_MIB.items())
    # What they have to say is in the list.
    progress = re.compile("building the index|embedded [0-9]+ of")
    assert [line for line in lines if not progress.search(line)] == []


@pytest.mark.long
@pytest.mark.usefixtures("built")
def test_more_of_them_than_the_budget_allows(photos: Path, output: Path, tmp_path: Path) -> None:
    listed = IMAGES + len(KINDS) + 1
    code, lines, _ = build(photos, tmp_path / "index", f"publish.max_failure_rate={(len(BAD) - 1) / listed}")
    assert code == 4
    assert f"{len(BAD)} of {listed} images failed" in lines[-1]
    layout = Output(str(tmp_path / "index"))
    assert current_name(layout) is None
    (refused,) = (tmp_path / "index" / "generations").iterdir()
    assert str(refused / "failures") in lines[-1]
    published = str(current_name(Output(str(output))))
    assert failures(tmp_path / "index", refused.name) == failures(output, published)
    # As many as are there are within the budget.
    code, lines, _ = build(photos, tmp_path / "index", f"publish.max_failure_rate={len(BAD) / listed}")
    assert code == 0, lines
