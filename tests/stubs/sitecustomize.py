"""Loaded by every Python process of a build under test: a quick engine, and a place to stay at for ever.

``IMGINDEX_TEST_STOP`` names the place, ``IMGINDEX_TEST_REACHED`` the FIFO that is told when it is reached.
``IMGINDEX_TEST_PEAK`` is a file that is told, in KiB, how much memory each process has used at once.
"""

import atexit
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any, NoReturn

# Beam logs while it is imported, which would set up the logging that the command sets up later.
quiet = logging.NullHandler()
logging.getLogger().addHandler(quiet)

import numpy as np

import imgindex.models.engines
import imgindex.prepare
import imgindex.shards
import imgindex.transforms
from imgindex.models.spec import Spec

logging.getLogger().removeHandler(quiet)


def tell_peak() -> None:
    # Not getrusage: that counts what the process was before it became Python, a fork of the tests.
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    with Path(os.environ["IMGINDEX_TEST_PEAK"]).open("a") as file:
        file.write(f"{peak}\n")


if "IMGINDEX_TEST_PEAK" in os.environ:
    atexit.register(tell_peak)

imgindex.transforms.UNIT_IMAGES = 8
STOP = os.environ.get("IMGINDEX_TEST_STOP")


def stay() -> NoReturn:
    Path(os.environ["IMGINDEX_TEST_REACHED"]).write_text("here")
    while True:
        threading.Event().wait()


class QuartersEngine:
    """Mean colors of the image's four quarters; stays in its first batch after a chunk has been written."""

    name, precision, batch_size, streams = "quarters", "float32", 4, 2
    image_size, feature_dim = (8, 6), 12
    spec = Spec("quarters", "", image_size, "avg", "", "")

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        if STOP == "embed" and list(Path(os.environ["IMGINDEX_TEST_STORE"]).glob("*/chunk-*")):
            stay()
        quarters = pixels.reshape(-1, 2, 4, 2, 3, 3).astype(np.float32).mean(axis=(2, 4))
        return quarters.reshape(-1, self.feature_dim)


def stays(name: str) -> Any:
    """A function that stays where it is called; one that writes a file leaves half of it."""

    def call(_: Any, partial: Any = None, *__: Any, **___: Any) -> NoReturn:
        if isinstance(partial, Path):
            partial.write_bytes(b"half of")
        stay()

    return call


imgindex.models.engines._create = lambda choice, threads: QuartersEngine()
PLACES = {
    "list": (imgindex.prepare, "list_images"),
    "pca": (imgindex.transforms, "fit_basis"),
    "annoy": (imgindex.shards, "build_shard"),
}
if STOP in PLACES:
    setattr(*PLACES[STOP], stays(STOP))
