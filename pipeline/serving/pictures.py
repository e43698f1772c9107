"""Pictures of indexed images: small ones, and the files themselves; never of anything else."""

import asyncio
import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from PIL import Image

from imgindex.errors import OutputError
from imgindex.generations.manifest import Manifest
from imgindex.inputs.tar_members import read_image
from imgindex.models.preprocess import DecodedImage, DecodeError
from imgindex.models.resizing import Resizing
from imgindex.search.queries import Recipe, image_path
from imgindex.serving.errors import RefusedError, not_found

# The longer side of a thumbnail in pixels: the page shows it at half of that on the screens of phones.
SIDE = 320

# Bytes of thumbnails that are kept.
_KEPT_BYTES = 64 << 20

# Reads from an object store wait most of the time.
_THREADS = 8

Decode = Callable[..., DecodedImage]


class Pictures:
    """Reads and decodes indexed images. Of a file that has other bytes than were indexed it shows nothing.

    So no path leads to a file that is not in the index, whatever a link points to by now.
    """

    def __init__(self, decode: Decode) -> None:
        """`decode` is that of a decoder in a process of its own."""
        self._decode = decode
        self._threads = ThreadPoolExecutor(_THREADS, "pictures")
        self._kept: OrderedDict[str, bytes] = OrderedDict()  # by SHA-256, the last that was asked for last
        self._size = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def thumbnail(self, manifest: Manifest, row: dict[str, Any]) -> bytes:
        """A JPEG of the image of a row of metadata. Raises RefusedError where it cannot be shown."""
        with self._lock:
            kept = self._kept.get(row["sha256"])
            if kept is not None:
                self._kept.move_to_end(row["sha256"])
                return kept
        return await self._in(self._make, manifest, row)

    async def original(self, manifest: Manifest, row: dict[str, Any]) -> bytes:
        """The file of the image of a row of metadata. Raises RefusedError where it is not as indexed."""
        return await self._in(_read, manifest, row)

    async def _in(self, function: Callable[..., bytes], *arguments: Any) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments))

    def _make(self, manifest: Manifest, row: dict[str, Any]) -> bytes:
        data = _read(manifest, row)
        scale = min(1.0, SIDE / max(row["height"], row["width"], 1))
        size = (max(1, round(row["height"] * scale)), max(1, round(row["width"] * scale)))
        recipe = Recipe.of(manifest)
        try:
            how = recipe.max_pixels, recipe.color_profile, recipe.truncated
            pixels = self._decode(data, Resizing(size), *how).pixels
        except DecodeError as error:
            raise not_found(f"the image cannot be shown: {error}") from error
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        self._keep(row["sha256"], file.getvalue())
        return file.getvalue()

    def _keep(self, sha256: str, picture: bytes) -> None:
        with self._lock:
            if sha256 not in self._kept:
                self._kept[sha256] = picture
                self._size += len(picture)
            while self._size > _KEPT_BYTES:
                self._size -= len(self._kept.popitem(last=False)[1])


def _read(manifest: Manifest, row: dict[str, Any]) -> bytes:
    try:
        data = read_image(image_path(manifest, row["uri"]), manifest.settings.images.max_bytes)
    except (OSError, OutputError, ValueError) as error:  # a name that no filesystem takes is a ValueError
        raise not_found("the image is no longer where it was when it was indexed") from error
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise RefusedError(404, "changed", "the file has changed since it was indexed")
    return data
