"""Decodes what a coverage-guided fuzzer makes up: ``python fuzz/decode.py [libFuzzer's flags] CORPUS SEEDS``.

It is guided by the branches of Python that an input reaches: those of `imgindex.models.preprocess` and of
Pillow's plugins, which parse headers. Pillow's native decoders run too, and what crashes them is found, but
they are not instrumented: of their branches the fuzzer learns nothing. An input that breaks a promise of
`decode` is kept under build/fuzz.
"""

import contextlib
import ctypes
import re
import resource
import sys
import time
import warnings
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["PIL", "imgindex"]):
    from imgindex.models import color
    from imgindex.models.preprocess import DecodedImage, DecodeError, decode

    with contextlib.suppress(DecodeError):
        decode(b"\0", (1, 1))  # imports Pillow's plugins

ROOT = Path(__file__).parents[1]
SIZE = (7, 11)
MAX_PIXELS = 1 << 20

# Seconds of CPU time, and bytes: more than any input of that few pixels and of 64 KiB may need.
TIME_LIMIT = 10.0
MEMORY_LIMIT = 1 << 30

FLAGS = (
    f"-dict={ROOT}/fuzz/images.dict",
    f"-artifact_prefix={ROOT}/build/fuzz/",
    "-max_len=65536",
    "-timeout=120",  # seconds, of whatever else the machine does, after which an input counts as endless
    "-rss_limit_mb=2048",
    "-print_final_stats=1",
)

# But for those of a child process, and that no input as small as these should have.
REASONS = frozenset(
    reason
    for cell in re.findall(r"^\| decode \| (.*?) \|", (ROOT / "docs/failures.md").read_text(), re.M)
    for reason in re.findall(r"`(\w+)`", cell)
) - {"crashed", "timed_out", "out_of_memory"}


# With which bytes glibc fills memory that is asked for, in the first and in the second decode.
FILLS = 0x55, 0xAA
M_PERTURB = -6

mallopt = ctypes.CDLL(None).mallopt


def attempt(data: bytes, fill: int) -> DecodedImage | str:
    """What `decode` makes of `data`, in memory that holds `fill`: an image, or the reason why not."""
    color._conversion.cache_clear()
    mallopt(M_PERTURB, fill)
    try:
        return decode(data, SIZE, MAX_PIXELS)
    except DecodeError as error:
        return error.reason


def check(data: bytes) -> None:
    """Decodes `data` twice, in memory of other contents, and asserts what `decode` promises."""
    started = time.process_time()
    found = attempt(data, FILLS[0])
    assert time.process_time() - started < TIME_LIMIT
    again = attempt(data, FILLS[1])
    if isinstance(found, str):
        assert found in REASONS
        assert again == found
        return
    assert found.pixels.dtype == np.uint8
    assert found.pixels.shape == (*SIZE, 3)
    assert found.width >= 1
    assert found.height >= 1
    assert found.width * found.height <= MAX_PIXELS
    assert isinstance(again, DecodedImage)
    assert np.array_equal(found.pixels, again.pixels)
    assert (found.width, found.height) == (again.width, again.height)


def main() -> None:
    """Fuzzes until libFuzzer ends the process, as its flags say or at the first find."""
    warnings.simplefilter("ignore")
    (ROOT / "build/fuzz").mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    atheris.Setup([sys.argv[0], *FLAGS, *sys.argv[1:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
