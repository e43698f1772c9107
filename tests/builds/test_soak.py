"""Refreshes in a row, of a directory that changes, with builds that are killed and files that are damaged.

After each the output is clean, and its index is that of a build from scratch on the same basis.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bad_inputs import MAX_BYTES, MAX_PIXELS
from changing import Photos
from trapped import children

from imgindex.errors import DamagedError
from imgindex.features import feature_store
from imgindex.generations.layout import Output, current_name, generation_names, read_manifest
from imgindex.generations.prune import prune
from imgindex.generations.rollback import rollback
from imgindex.generations.verify import verify
from imgindex.io import content_addressed
from imgindex.models.ann.protocol import METRICS

# `make soak` runs more.
ROUNDS = int(os.environ.get("IMGINDEX_SOAK_ROUNDS", "4"))
SEED = int(os.environ.get("IMGINDEX_SOAK_SEED") or random.randrange(2**32))

COMMAND = (sys.executable, str(Path(__file__).parents[1] / "quick_command.py"))

# Seconds that no build takes, nor what it has started to end after it.
PATIENCE = 600

SETTINGS: dict[str, list[Any]] = {
    "pca.dims": [3, 5, 8, 0.9],
    "pca.whiten": ["false", "true"],
    "pca.refit": ["auto", "auto", "never", "always"],
    "index.metric": list(METRICS),
    "index.trees": [3, 10, "auto"],
    "index.items_per_shard": [30, 70, 1000],
    "index.seed": [0, 1],
    "images.max_bytes": [MAX_BYTES, 2 * MAX_BYTES],
}


class Build:
    """A build in a process of its own."""

    def __init__(self, arguments: list[str], root: Path) -> None:
        self._said = root / "said"
        # A file of its own for each: the next may begin before this one has ended.
        self._said.unlink(missing_ok=True)
        with self._said.open("wb") as file:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], stdout=file, stderr=file, start_new_session=True,
                env={**os.environ, "IMGINDEX_SOAK": str(root)},
            )  # fmt: skip
        self._file = self._said.open(errors="replace")

    def is_running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        self._file.seek(0)
        return self._file.read()

    def kill(self) -> None:
        if self.is_running():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._file.close()

    def end(self, *codes: int) -> str:
        """Waits until it ends, which must be with one of `codes`; gives what it has said."""
        try:
            code = self.process.wait(PATIENCE)
            said = self.said()
        finally:
            self.kill()
        assert code in codes, (code, said)
        assert "Traceback" not in said, said
        return said


class Soak:
    """A directory of images, the output that follows it, and what has happened to both."""

    def __init__(self, root: Path, image_bytes: Callable[..., bytes]) -> None:
        self.root = root
        self.output = root / "output"
        self.chance = random.Random()
        (root / "scratch").mkdir()
        self.photos = Photos(root / "photos", root / "scratch", self.chance, image_bytes)
        # Under another name the same files are another input, of which no generation is known.
        (root / "link").symlink_to("photos")
        self.settings = {key: values[0] for key, values in SETTINGS.items()}
        self.seconds = 3.0  # that a build takes
        self.happened: Counter[str] = Counter()
        self.damaged: set[str] = set()  # generations that a file is damaged of
        self.builds = 0

    def start(self, output: Path | None = None, **changes: Any) -> "Build":
        """Starts a build into the output; `changes` are of its settings, with _ for their dots."""
        settings = {
            "backbone.name": "MobileNetV2", "backbone.weights": "none", "engine.name": "quarters",
            "images.max_pixels": MAX_PIXELS, "publish.min_recall": 0, "publish.max_failure_rate": 1,
            "publish.max_shrink": 1, **self.settings,
            **{key.replace("_", ".", 1): value for key, value in changes.items()},
        }  # fmt: skip
        photos = self.root / ("link" if output else "photos")
        arguments = ["build", f"--input={photos}", f"--output={output or self.output}"]
        arguments += [f"--set={key}={value}" for key, value in settings.items()]
        self.builds += 1
        return Build(arguments, self.root)

    def manifest(self) -> dict[str, Any]:
        return dict(read_manifest(Output(str(self.output))).content)

    def stores(self) -> list[Path]:
        return sorted((self.output / "store").glob("*"))

    # What disturbs a build.

    def disturb(self) -> None:
        """Lets something happen to the output, or to a build of it."""
        what = self.chance.choice([
            self.kill, self.kill, self.kill, self.interrupt, self.interrupt, self.kill_a_decoder,
            self.change_meanwhile, self.two_at_once, self.refuse, self.damage_store, self.damage_store,
            self.damage_live, self.damage_live, self.leave_things, self.prune, self.prune_beside_verify,
            self.roll_back, self.run_short_of_memory,
        ])  # fmt: skip
        what()
        self.happened[what.__name__] += 1

    def kill(self) -> None:
        build = self.start()
        self._wait_a_while(0.3, 1.1)
        build.kill()

    def interrupt(self) -> None:
        number = self.chance.choice([signal.SIGINT, signal.SIGTERM])
        build = self.start()
        self._wait_a_while(0.3, 1.1)
        if "building the index" in build.said():
            build.process.send_signal(number)
            # When Python is about to exit, signals are no longer its own; shells say the same of both.
            build.end(128 + number, -number, 0)
        else:  # Python is still starting, and knows nothing of signals
            build.kill()

    def kill_a_decoder(self) -> None:
        build = self.start()
        decoder = None
        while build.is_running() and decoder is None:
            decoder = next(iter(children(build.process.pid)), None)
            time.sleep(0.01)
        if decoder is not None:
            time.sleep(self.chance.uniform(0, 0.5))
            with contextlib.suppress(ProcessLookupError):
                os.kill(decoder, signal.SIGKILL)
                self.happened["decoders killed"] += 1
        build.end(0)

    def change_meanwhile(self) -> None:
        build = self.start()
        while build.is_running():
            self.photos.change(1)
            time.sleep(self.chance.uniform(0, 0.4))
        build.end(0)

    def two_at_once(self) -> None:
        builds = [self.start()]
        self._wait_a_while(0, 0.5)
        builds.append(self.start())
        refused = sum("is being written by process" in build.end(0, 3) for build in builds)
        assert refused <= 1
        self.happened["refused by the lock"] += refused

    def refuse(self) -> None:
        self.photos.edit()
        if self.photos.expected(self.settings["images.max_bytes"]).failed:
            live = current_name(Output(str(self.output)))
            said = self.start(publish_max_failure_rate=0).end(4)
            assert "check max_failure_rate" in said
            assert current_name(Output(str(self.output))) == live

    def _wait_a_while(self, least: float, most: float) -> None:
        """For a random share of what a build takes."""
        time.sleep(self.chance.uniform(least, most) * self.seconds)

    def damage_store(self) -> None:
        """Damages a chunk or a file of remembered failures, which `verify` names and a build replaces."""
        names = [
            path for folder in self.stores() for path in sorted(folder.iterdir()) if path.suffix == ".parquet"
        ]
        kind = self.chance.choice(["chunk", "chunk", "failed"])
        path = self.chance.choice([path for path in names if path.name.startswith(kind)] or names)
        self._damage(path)
        assert any(path.name in problem for problem in verify(str(self.output)).problems)
        self.happened[f"damaged {kind}"] += 1

    def damage_live(self) -> None:
        """Damages a file of the live generation, which `verify` names and the next build replaces."""
        manifest = self.manifest()
        file = self.chance.choice(manifest["files"])["path"]
        path = self.output / "generations" / manifest["generation"] / file
        data = path.read_bytes()
        if data:
            self._damage(path)
            assert any(file in problem for problem in verify(str(self.output)).problems)
            self.damaged.add(manifest["generation"])

    def _damage(self, path: Path) -> None:
        data = path.read_bytes()
        at = self.chance.randrange(len(data))
        altered = data[:at] + bytes([data[at] ^ 1 << self.chance.randrange(8)]) + data[at + 1 :]
        path.write_bytes(self.chance.choice([data[:at], altered, b""]))

    def leave_things(self) -> None:
        """Leaves what killed builds leave."""
        folder = self.chance.choice(self.stores())
        for name in (f"chunk-{uuid.uuid4().hex}.parquet", f"failed-{uuid.uuid4().hex}.parquet"):
            (folder / f".{name}.{uuid.uuid4().hex}.partial").write_bytes(b"half")
        unfinished = self.output / "generations" / "20260101T000000Z-00000000"
        (unfinished / "index").mkdir(parents=True, exist_ok=True)
        (unfinished / "index" / "index-00000-of-00001.ann").write_bytes(b"half")
        (self.output / f".CURRENT.{uuid.uuid4().hex}.partial").write_bytes(b"half")
        (self.output / ".lock").write_bytes(b'{"half')

    def prune(self) -> None:
        if not verify(str(self.output)).problems:
            prune(str(self.output), self.chance.randint(1, 3), grace_seconds=0)
            assert verify(str(self.output)).problems == ()

    def prune_beside_verify(self) -> None:
        if not verify(str(self.output)).problems:
            with ThreadPoolExecutor(1) as pool:
                pruned = pool.submit(prune, str(self.output), 1, 0)
                while not pruned.done():
                    assert verify(str(self.output)).problems == ()
                pruned.result()

    def roll_back(self) -> None:
        name = self.chance.choice(generation_names(Output(str(self.output))))
        try:
            rollback(str(self.output), name)
        except DamagedError:
            assert name in self.damaged
            self.happened["rollbacks refused"] += 1

    def run_short_of_memory(self) -> None:
        """Lets a build have little more memory than it uses at some moment."""
        live = current_name(Output(str(self.output)))
        build = self.start()
        self._wait_a_while(0.2, 1.0)
        with contextlib.suppress(OSError, IndexError):  # it has ended
            status = Path(f"/proc/{build.process.pid}/status").read_text()
            used = int(re.findall(r"^VmData:\s+(\d+) kB$", status, re.M)[0]) << 10
            limit = used + self.chance.randrange(50 << 20)
            resource.prlimit(build.process.pid, resource.RLIMIT_DATA, (limit, limit))
        code = build.process.wait(PATIENCE)
        build.kill()
        self.happened[f"short of memory, exit code {code}"] += 1
        if code:
            assert current_name(Output(str(self.output))) == live

    # What must be so afterwards.

    def settle(self) -> None:
        """Builds undisturbed, and checks all that can be said of the output."""
        expected = self.photos.expected(self.settings["images.max_bytes"])
        lacking = {sha256 for sha256, _ in expected.indexed.values()} - self._stored()
        live = current_name(Output(str(self.output)))
        started = time.monotonic()
        self.start().end(0)
        self.seconds = min(max(time.monotonic() - started, 2.0), 20.0)
        assert verify(str(self.output)).problems == ()
        assert list(self.output.rglob("*.partial")) == []
        generations = (self.output / "generations").iterdir()
        assert all((path / "manifest.json").exists() for path in generations)
        assert self._rows() == {uri: (sha256, size) for uri, (sha256, size) in expected.indexed.items()}
        assert self._failures() == expected.failed
        manifest = self.manifest()
        if manifest["generation"] != live:
            self.happened["published"] += 1
            self.happened["refits"] += manifest["pca"]["fitted_in"] == manifest["generation"]
            self.happened["embedded"] += manifest["ledger"]["embedded"]
            self.happened["copied"] += manifest["ledger"]["copied"]
            # Not one image more than had to be.
            assert manifest["ledger"]["embedded"] == len(lacking)
        self._compare_with_scratch(manifest)
        self._wait_for_processes()

    def _stored(self) -> set[str]:
        """The SHA-256 of all that the undamaged chunks hold."""
        damaged = " ".join(verify(str(self.output)).problems) if self.builds else ""
        return {
            image.sha256
            for folder in self.stores()
            for name in content_addressed.names(str(folder))
            if name not in damaged
            for image in feature_store.read_keys(str(folder), name)
        }

    def _rows(self) -> dict[str, tuple[str, int]]:
        manifest = self.manifest()
        folder = self.output / "generations" / manifest["generation"]
        rows = [
            row
            for shard in manifest["shards"]
            for row in pq.read_table(folder / shard["metadata"]).to_pylist()
        ]
        assert len({row["uri"] for row in rows}) == len(rows)
        return {row["uri"]: (row["sha256"], row["size"]) for row in rows}

    def _failures(self) -> dict[str, tuple[str, str]]:
        lists = (self.output / "generations" / self.manifest()["generation"] / "failures").iterdir()
        rows = [json.loads(line) for path in lists for line in path.read_text().splitlines()]
        assert len({row["uri"] for row in rows}) == len(rows)
        return {row["uri"]: (row["stage"], row["reason"]) for row in rows}

    def _compare_with_scratch(self, manifest: dict[str, Any]) -> None:
        """Builds the same images, with no features at hand, on the basis of the live generation."""
        scratch = self.root / "from-scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        name = manifest["generation"]
        changes = {}
        if manifest["pca"]["fitted_in"] != name:
            # It was fitted to other images: the build finds it in a generation that it follows.
            changes["pca_refit"] = "never"
            shutil.copytree(self.output / "generations" / name, scratch / "generations" / name)
            (scratch / "CURRENT").write_text(f"{name}\n")
        self.start(scratch, **changes).end(0)
        built = read_manifest(Output(str(scratch))).content
        assert built["generation"] != name
        assert built["ledger"]["reused"] == 0
        assert content(scratch) == content(self.output)

    def _wait_for_processes(self) -> None:
        """No process of any build is left, though decoders may be about to notice."""
        mark = f"IMGINDEX_SOAK={self.root}".encode()
        until = time.monotonic() + PATIENCE
        while left := list(processes_with(mark)):
            assert time.monotonic() < until, left
            time.sleep(0.1)


def processes_with(mark: bytes) -> Iterator[str]:
    """The processes, but for zombies, whose environment holds `mark`."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                yield path.parent.name
        except OSError:
            continue  # it has ended, or is another user's


def content(output: Path) -> dict[str, bytes]:
    """The live generation's index, metadata, basis and failures, by path."""
    directory = output / "generations" / str(current_name(Output(str(output))))
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for part in ("index", "metadata", "pca", "failures")
        for path in (directory / part).iterdir()
    }


@pytest.mark.long
@pytest.mark.timeout(600 + 60 * ROUNDS)
def test_every_refresh_ends_as_a_build_from_scratch(
    tmp_path: Path, image_bytes: Callable[..., bytes]
) -> None:
    sys.stdout.write(f"seed {SEED}, {ROUNDS} rounds\n")  # shown where the test fails
    soak = Soak(tmp_path, image_bytes)
    soak.chance.seed(SEED)
    for _ in range(80):
        soak.photos.add()
    for number in range(ROUNDS):
        # Anew in each, for how many numbers a round draws depends on how quick its builds are.
        soak.chance.seed(f"{SEED} {number}")
        soak.photos.change(soak.chance.randint(0, 25))
        if number and soak.chance.random() < 0.4:
            key = soak.chance.choice(list(SETTINGS))
            soak.settings[key] = soak.chance.choice(SETTINGS[key])
        for _ in range(soak.chance.randint(1, 2) if number else 0):
            soak.disturb()
        soak.settle()
        sys.stdout.write(f"round {number + 1}: {dict(soak.happened)}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{soak.builds} builds\n")
