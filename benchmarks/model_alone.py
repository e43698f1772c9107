"""The limit: the engine that imgindex uses, on images that lie decoded in memory."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import EngineChoice
from imgindex.runtime.resources import available_cores


def main(backbone: str, precision: str, images: int) -> None:
    """Prints images a second."""
    choice = EngineChoice(backbone, "none", "avg", None, "openvino", precision, 16)
    engine = load_engine(choice, available_cores())
    shape = (engine.batch_size, *engine.image_size, 3)
    batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    engine.embed(batch)
    batches = -(-images // engine.batch_size)
    started = time.monotonic()
    with ThreadPoolExecutor(engine.streams) as threads:
        list(threads.map(engine.embed, [batch] * batches))
    print(batches * engine.batch_size / (time.monotonic() - started))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
