"""Small pictures of indexed images, made as a build decodes them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.errors import OutputError
from imgindex.generations.manifest import Manifest
from imgindex.models import decoder_pool
from imgindex.models.resizing import Resizing
from imgindex.runtime.resources import available_cores
from imgindex.search.queries import Recipe, image_path, load

# Images that are read or decoded at once, or wait to be taken.
_BATCH = 64

Picture = npt.NDArray[np.uint8]


def thumbnails(manifest: Manifest, images: pa.Table, side: int) -> Iterator[Picture | None]:
    """A picture of each of `images`, a table of `IMAGES`, in their order: RGB [height, width, 3].

    The longer of its sides is of `side` pixels. None stands for an image that cannot be read or decoded, or
    that has other bytes than when it was indexed. Images are decoded in processes of their own.
    """
    cores = available_cores()
    pool = decoder_pool.acquire(cores)
    try:
        with ThreadPoolExecutor(cores, "decode") as threads:
            for start in range(0, len(images), _BATCH):
                rows = images.slice(start, _BATCH).to_pylist()
                yield from threads.map(partial(_thumbnail, manifest, pool.decode, side), rows)
    finally:
        decoder_pool.release()


def _thumbnail(manifest: Manifest, decode: Any, side: int, image: dict[str, Any]) -> Picture | None:
    height, width = image["height"], image["width"]
    scale = side / max(height, width, 1)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    try:
        path = image_path(manifest, image["uri"])
        loaded = load(path, replace(Recipe.of(manifest), resizing=Resizing(size)), decode)
    except OutputError:
        return None
    if loaded.sha256 != image["sha256"] or not isinstance(loaded.value, np.ndarray):
        return None
    return loaded.value
