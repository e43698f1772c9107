"""A decoder process whose Pillow reads one format more: images that do to their decoder what they say.

``trap`` makes such an image, and ``COMMAND`` starts the process.
"""

import ctypes
import os
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

COMMAND = (sys.executable, __file__)
_MAGIC = b"TRAP "


def trap(deed: str, argument: str | Path = "") -> bytes:
    """An image whose decoding does one of `DEEDS`."""
    return _MAGIC + f"{deed} {argument}".encode()


def children(parent: int) -> set[int]:
    """The processes, zombies among them, that `parent` has to answer for."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent:
            found.add(int(path.parent.name))
    return found


def _hang(fifo: str) -> None:
    if fifo:
        Path(fifo).write_text("caught")  # waits until somebody reads
    while True:
        pass


def _take_all_memory(_: str) -> None:
    # 8 GiB. Pages that nobody touches count, but cost the machine nothing.
    _ = [np.empty(1 << 28, np.uint8) for _ in range(32)]


def _talk(_: str) -> None:
    for stream in (1, 2):
        os.write(stream, b"Corrupt data: premature end")
    warnings.warn("Corrupt EXIF data", stacklevel=1)
    sys.stdout.write("and more")


DEEDS = {
    "segfault": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "exit": lambda code: os._exit(int(code)),
    "hang": _hang,
    "memory": _take_all_memory,
    "talk": _talk,
}


class TrapImage(ImageFile.ImageFile):
    """A red pixel, unless something comes between."""

    format = "TRAP"

    def _open(self) -> None:
        self._mode, self._size = "RGB", (1, 1)
        self._deed, _, self._argument = self.fp.read()[len(_MAGIC) :].decode().partition(" ")

    def load(self) -> None:
        DEEDS[self._deed](self._argument)
        self.im = Image.core.fill("RGB", self.size, (255, 0, 0))


def register() -> None:
    """Makes Pillow read traps."""
    Image.register_open("TRAP", TrapImage, lambda start: start.startswith(_MAGIC))


if __name__ == "__main__":
    from imgindex.models.decoder import serve

    register()
    serve()
