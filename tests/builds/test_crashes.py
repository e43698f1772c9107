"""Builds that are killed at random moments: the next one finds what they did, and ends in the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imgindex.features import feature_store
from imgindex.generations.layout import Output, current_name
from imgindex.generations.verify import verify
from imgindex.io import content_addressed

# `make crash` kills more often.
KILLS = int(os.environ.get("IMGINDEX_KILLS", "4"))
IMAGES = 96
UNIT = 8

BUILD = f"""
import sys
import imgindex.features.transforms
imgindex.features.transforms.UNIT_IMAGES = {UNIT}  # many chunks, so that there is something to lose
import imgindex
manifest = imgindex.build(imgindex.Config(
    input=sys.argv[1], output=sys.argv[2],
    backbone=imgindex.BackboneConfig(name="MobileNetV2", weights="none", image_size=32),
    engine=imgindex.EngineConfig(precision="float32"), pca=imgindex.PcaConfig(dims=8),
    index=imgindex.IndexConfig(items_per_shard=40), publish=imgindex.PublishConfig(min_recall=0.0),
))
ledger = manifest["ledger"]
print(ledger["indexed"], ledger["embedded"], ledger["reused"])
"""


def start(photos: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(photos), str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(photos: Path, output: Path) -> tuple[int, int, int]:
    """Builds undisturbed: images indexed, embedded, found in the store."""
    process = start(photos, output)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    indexed, embedded, reused = map(int, printed.split())
    return indexed, embedded, reused


def content(output: Path) -> dict[str, bytes]:
    directory = output / "generations" / str(current_name(Output(str(output))))
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for part in ("index", "metadata", "pca")
        for path in (directory / part).iterdir()
    }


def stored(output: Path) -> int:
    """How many images the store holds."""
    return sum(
        sum(1 for _ in feature_store.read_keys(str(directory), name))
        for directory in (output / "store").glob("*")
        for name in content_addressed.names(str(directory))
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        (folder / f"{number:03}.png").write_bytes(image_bytes(number, (300, 200 + number)))
    return folder


@pytest.mark.long
@pytest.mark.timeout(600 + 60 * KILLS)
def test_a_killed_build_is_taken_up_where_it_was(photos: Path, tmp_path: Path) -> None:
    finish(photos, tmp_path / "first")  # converts the backbone, which takes longer than the rest
    reference = tmp_path / "reference"
    started = time.monotonic()
    assert finish(photos, reference) == (IMAGES, IMAGES, 0)
    duration = time.monotonic() - started
    expected = content(reference)
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}, {KILLS} kills within {duration:.1f} s\n")  # shown where the test fails
    moments = random.Random(seed)
    output = tmp_path / "output"
    killed = 0
    while killed < KILLS:
        shutil.rmtree(output, ignore_errors=True)
        # A file of somebody else's, which looks like one in the making.
        theirs = output / "downloads" / ".photo.jpg.partial"
        theirs.parent.mkdir(parents=True)
        theirs.touch()
        before = 0
        for _ in range(3):
            process = start(photos, output)
            time.sleep(moments.uniform(0.3, 1.0) * duration)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            process.communicate()
            held = stored(output)
            assert held >= before
            before = held
            if current_name(Output(str(output))) is not None:
                assert verify(str(output)).problems == ()
                break
        if current_name(Output(str(output))) is None:
            # What was stored is not embedded again, so that no more than what was under way is lost.
            assert finish(photos, output) == (IMAGES, IMAGES - before, before)
        assert content(output) == expected
        assert verify(str(output)).problems == ()
        assert all((path / "manifest.json").exists() for path in (output / "generations").iterdir())
        assert list(output.rglob("*.partial")) == [theirs]
