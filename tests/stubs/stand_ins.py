"""A quick engine for builds under test, `quarters`, and a place for them to stay at for ever.

``IMGINDEX_TEST_STOP`` names the place, ``IMGINDEX_TEST_REACHED`` the FIFO that is told when it is reached.
``IMGINDEX_TEST_PEAK`` is a file that is told how much memory each ``build`` and each ``decoder`` has used at
once, in KiB.
"""

import atexit
import contextlib
import logging
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

# Beam logs while it is imported, which would set up the logging that the command sets up later.
quiet = logging.NullHandler()
logging.getLogger().addHandler(quiet)

import numpy as np

import imgindex.features.transforms
import imgindex.indexing.shard_backend
import imgindex.indexing.transforms
import imgindex.inputs.transforms
from imgindex.errors import OutputError
from imgindex.models import decoder

logging.getLogger().removeHandler(quiet)

# Last, so that no helper of the tests hides a library.
sys.path.append(str(Path(__file__).parents[1]))

from fake_engine import QuartersEngine, register_quarters


def tell_peak(kind: str, process: int) -> None:
    # Not getrusage: that counts what the process was before it became Python, a fork of the tests.
    peaks = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.M)
    with Path(os.environ["IMGINDEX_TEST_PEAK"]).open("a") as file:
        file.writelines(f"{kind} {peak}\n" for peak in peaks)  # one that has died has none


def tell_before_it_is_killed(child: Any) -> None:
    with contextlib.suppress(FileNotFoundError):  # it has died by itself
        tell_peak("decoder", child._process.pid)
    kill(child)


if "IMGINDEX_TEST_PEAK" in os.environ:
    atexit.register(tell_peak, "build", os.getpid())
    kill = decoder._Child.kill
    decoder._Child.kill = tell_before_it_is_killed

STOP = os.environ.get("IMGINDEX_TEST_STOP")


def stay() -> NoReturn:
    Path(os.environ["IMGINDEX_TEST_REACHED"]).write_text("here")
    while True:
        threading.Event().wait()


class StayingEngine(QuartersEngine):
    """Stays in its first batch after a chunk has been written, where it is told to."""

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        if STOP == "embed" and list(Path(os.environ["IMGINDEX_TEST_STORE"]).glob("*/chunk-*")):
            stay()
        return super().embed(pixels)


def stays(name: str) -> Any:
    """A function that stays where it is called; one that writes a file leaves half of it."""

    def call(_: Any, partial: Any = None, *__: Any, **___: Any) -> NoReturn:
        if isinstance(partial, Path):
            partial.write_bytes(b"half of")
        stay()

    return call


register_quarters(StayingEngine)
imgindex.features.transforms.UNIT_IMAGES = 8  # a chunk after each few images
PLACES = {
    "list": (imgindex.inputs.transforms, "look_up"),
    "pca": (imgindex.indexing.transforms, "fit_basis"),
    "annoy": (imgindex.indexing.shard_backend.SHARD_BACKEND, "build_blocks"),
}
if STOP in PLACES:
    setattr(*PLACES[STOP], stays(STOP))
if STOP in ("live", "unread"):  # what follows when the generation is published
    # Only here: Beam's workers warn where the modules that they are run from have been imported before.
    import imgindex.job.launch

    def fail(_: Any) -> NoReturn:
        raise OutputError("cannot read the manifest: Connection reset by peer")

    imgindex.job.launch.outcome = stays(STOP) if STOP == "live" else fail
