"""A directory of images that changes at random, and what a build should make of it."""

import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bad_inputs import KINDS, MAX_BYTES, Kind
from trapped import trap

FOLDERS = ("", "a", "a/b", "c d")

# Its reads fail for a reason that might pass, and so are tried again for seconds.
SLOW = "unreadable.jpg"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Expected:
    """What becomes of files: SHA-256 and size of those that are indexed, stage and reason of the others."""

    indexed: dict[str, tuple[str, int]] = field(default_factory=dict)
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)


class Photos:
    """Files below `folder`: good images, bad ones of every kind, and what is no file."""

    def __init__(
        self, folder: Path, scratch: Path, chance: random.Random, image_bytes: Callable[..., bytes]
    ) -> None:
        self.folder = folder
        self._chance = chance
        self._image_bytes = image_bytes
        self._made = 0
        self._modified = time.time_ns()
        self._swap = scratch / "swap"
        self._strange: list[tuple[str, bytes]] = [(".png", trap("segfault")), (".jpg", trap("exit", 3))]
        self._outcomes = {digest(data): ("decode", "crashed") for _, data in self._strange}
        self._odd: list[Kind] = []  # what is no regular file, or not one to copy
        self._placed: dict[str, Kind] = {}  # of these, by uri
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            path = scratch / kind.file
            kind.write(path)
            if path.is_symlink() or not path.is_file() or path.stat().st_size > 2 * MAX_BYTES:
                if kind.file != SLOW:
                    self._odd.append(kind)
                continue
            data = path.read_bytes()
            self._strange.append((path.suffix, data))
            if kind.reason and kind.reason != "too_many_bytes":
                self._outcomes[digest(data)] = kind.stage, kind.reason
        self._changes = {
            self.add: 6, self.remove: 4, self.edit: 3, self.rename: 4, self.touch: 3, self.copy: 3,
            self.swap: 3, self.spoil: 2, self.add_bad: 4, self.replace_bad: 2, self.place: 2, self.mend: 3,
        }  # fmt: skip

    def change(self, times: int) -> None:
        """Changes something `times` times."""
        for _ in range(times):
            (what,) = self._chance.choices(list(self._changes), list(self._changes.values()))
            what()

    def expected(self, max_bytes: int) -> Expected:
        """What a build makes of the files as they are, with ``images.max_bytes=max_bytes``."""
        expected = Expected()
        for path in sorted(self.folder.rglob("*")):
            uri = path.relative_to(self.folder).as_posix()
            if uri in self._placed:
                kind = self._placed[uri]
                expected.failed[uri] = kind.stage, kind.reason
            elif path.is_dir():
                continue
            elif (size := path.stat().st_size) > max_bytes:
                expected.failed[uri] = "read", "too_many_bytes"
            else:
                sha256 = digest(path.read_bytes())
                if sha256 in self._outcomes:
                    expected.failed[uri] = self._outcomes[sha256]
                else:
                    expected.indexed[uri] = sha256, size
        return expected

    def add(self) -> None:
        self._write(self._new_path(".png"), self._image())

    def remove(self) -> None:
        if len(paths := self._files()) > 60:
            self._chance.choice(paths).unlink()

    def edit(self) -> None:
        self._write(self._any(), self._image())

    def rename(self) -> None:
        path = self._any()
        path.rename(self._new_path(path.suffix))

    def touch(self) -> None:
        self._set_time(self._any())

    def copy(self) -> None:
        source = self._any()
        path = self._new_path(source.suffix)
        if self._chance.random() < 0.5:
            shutil.copy2(source, path)  # with its time
        else:
            self._write(path, source.read_bytes())

    def swap(self) -> None:
        one, other = self._any(), self._any()
        one.rename(self._swap)
        if one != other:
            other.rename(one)
        self._swap.rename(other)

    def spoil(self) -> None:
        self._write(self._any(), self._chance.choice(self._strange)[1])

    def add_bad(self) -> None:
        suffix, data = self._chance.choice(self._strange)
        self._write(self._new_path(suffix), data)

    def replace_bad(self) -> None:
        """Removes a bad file and adds another, so that their number stays."""
        bad = self._bad_files()
        if bad:
            self._chance.choice(bad).unlink()
            self.add_bad()

    def place(self) -> None:
        """Adds something that is no file, or removes it."""
        kind = self._chance.choice(self._odd)
        path = self.folder / kind.file
        if kind.file in self._placed:
            del self._placed[kind.file]
            path.unlink()
        else:
            self._placed[kind.file] = kind
            kind.write(path)

    def mend(self) -> None:
        bad = self._bad_files()
        if bad:
            self._write(self._chance.choice(bad), self._image())

    def _image(self) -> bytes:
        self._made += 1
        # Some have the size of others, and must be told apart by their bytes.
        form = "BMP" if self._chance.random() < 0.3 else "PNG"
        return self._image_bytes(self._made, (20, 16), form)

    def _files(self) -> list[Path]:
        paths = sorted(path for path in self.folder.rglob("*") if not path.is_dir())
        return [path for path in paths if path.relative_to(self.folder).as_posix() not in self._placed]

    def _any(self) -> Path:
        return self._chance.choice(self._files())

    def _bad_files(self) -> list[Path]:
        return [path for path in self._files() if digest(path.read_bytes()) in self._outcomes]

    def _new_path(self, suffix: str) -> Path:
        self._made += 1
        return self.folder / self._chance.choice(FOLDERS) / f"{self._made:05}{suffix}"

    def _write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        self._set_time(path)

    def _set_time(self, path: Path) -> None:
        # Later than all before: the clock of a filesystem may stand still for milliseconds.
        self._modified += 1_000_000
        os.utime(path, ns=(self._modified, self._modified))
