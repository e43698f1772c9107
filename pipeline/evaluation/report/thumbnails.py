"""Small copies of indexed images for a page, as far as they can be had within a limit of time."""

import queue
import threading
import time
from collections.abc import Iterable

from PIL import Image

from imgindex.errors import OutputError, WorkerError
from imgindex.generations.manifest import Manifest
from imgindex.inputs.tar_members import read_image
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodeError
from imgindex.models.resizing import Resizing
from imgindex.runtime.resources import available_cores
from imgindex.search.gallery import data_uri
from imgindex.search.queries import Recipe, image_path

SIDE = 120  # pixels

# Threads that read, each with a decoder: reads from an object store wait most of the time.
_MOST_THREADS = 8
# Seconds that an image may compute for.
_DECODE_SECONDS = 3.0


def read_thumbnails(manifest: Manifest, uris: Iterable[str], seconds: float) -> dict[str, str]:
    """Data URIs of small copies of the images `uris` of a generation, by uri.

    Those that cannot be read or decoded, or not within `seconds`, are left out. Images are decoded in
    processes of their own, as in a build.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    wanted = dict.fromkeys(uris)
    for uri in wanted:
        waiting.put(uri)
    found: dict[str, str] = {}
    end = time.monotonic() + seconds
    # They do not keep the process from ending: a read may hang.
    threads = [
        threading.Thread(target=_work, args=(manifest, waiting, found, end), daemon=True)
        for _ in range(min(_MOST_THREADS, available_cores(), len(wanted)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(found)


def _work(manifest: Manifest, waiting: "queue.SimpleQueue[str]", found: dict[str, str], end: float) -> None:
    recipe = Recipe.of(manifest)
    with DecoderProcess(time_limit=_DECODE_SECONDS) as decoder:
        while time.monotonic() < end:
            try:
                uri = waiting.get_nowait()
                data = read_image(image_path(manifest, uri), recipe.max_bytes)
                decoded = decoder.decode(
                    data, Resizing((SIDE, SIDE)), recipe.max_pixels, recipe.color_profile, recipe.truncated
                )
            except (queue.Empty, WorkerError):
                return
            except (DecodeError, OutputError, OSError, ValueError):  # a name that no filesystem takes
                continue
            scale = SIDE / max(decoded.width, decoded.height)
            size = (max(1, round(decoded.width * scale)), max(1, round(decoded.height * scale)))
            found[uri] = data_uri(Image.fromarray(decoded.pixels).resize(size))
