"""Builds for a test that lets two processes build at once, with a wait before and after each request.

Reads lines of JSON: input, output, seed of the waits, the longest one in seconds. Answers each with one: the
exit code and what the command has said.
"""

import contextlib
import io
import json
import random
import sys
import time
from typing import Any

from urllib3.connectionpool import HTTPConnectionPool

from imgindex.cli import main
from imgindex.io import output_lock

SETTINGS = (
    "backbone.name=MobileNetV2", "backbone.weights=none", "backbone.image_size=32",
    "engine.precision=float32", "pca.dims=3", "publish.min_recall=0", "index.trees=3",
)  # fmt: skip

chance, longest = random.Random(), 0.0
send = HTTPConnectionPool.urlopen


def delayed(*arguments: Any, **options: Any) -> Any:
    time.sleep(chance.uniform(0, longest))
    answer = send(*arguments, **options)
    time.sleep(chance.uniform(0, longest))
    return answer


HTTPConnectionPool.urlopen = delayed
output_lock.LEASE_SECONDS = 24.0  # a holder renews it every 2 s, however busy the machine is
for line in sys.stdin:
    source, output, seed, longest = json.loads(line)
    chance.seed(seed)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        settings = [f"--set={setting}" for setting in SETTINGS]
        code = main(["build", f"--input={source}", f"--output={output}", *settings])
    sys.stdout.write(json.dumps([code, said.getvalue()]) + "\n")
    sys.stdout.flush()
