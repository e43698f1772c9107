"""A folder of folders of images: what is in it, by class, with the pixels that a build would take."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgindex.config import ImagesConfig
from imgindex.errors import InputError
from imgindex.indexing.shards import labels_of
from imgindex.inputs.image_reader import LoadedImage, load_image
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import selection_of
from imgindex.io import filesystem
from imgindex.models import decoder_pool
from imgindex.models.resizing import Resizing
from imgindex.models.training.results import PARTS
from imgindex.models.training.split import LabeledImage
from imgindex.records import Failure, ImageFile
from imgindex.runtime.background import in_order, threads_in_order
from imgindex.runtime.resources import available_memory

logger = logging.getLogger(__name__)

# Folders at the top that say which part their images are for.
_PART_OF_FOLDER = {**{part: part for part in PARTS}, "val": "validation"}

# Share of the memory that pixels may take; more of them go to a file, which memory caches as far as it goes.
_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Listed:
    """An image that is listed, with its class and its part.

    Attributes:
        file: Where it is.
        label: The name of the folder that it lies in.
        part: The part that the folder at the top names; None where the folders at the top name no parts.
    """

    file: ImageFile
    label: str
    part: str | None


@dataclass(frozen=True)
class Decoded:
    """The images that could be decoded, and why others could not.

    Attributes:
        images: One for each file, sorted by uri.
        pixels: uint8 ``[n, height, width, 3]``; those of an image are at its position.
        failures: Files that could not be read or decoded.
    """

    images: tuple[LabeledImage, ...]
    pixels: npt.NDArray[np.uint8]
    failures: tuple[Failure, ...]


def list_labeled(directory: str, images: ImagesConfig) -> tuple[list[Listed], list[Failure]]:
    """The images of a directory that have a label, sorted by uri, and those that cannot be looked at.

    Where the folders at the top are named ``train`` and ``validation`` (or ``val``) or ``test``, and no
    others are there, they are parts, and the classes are the folders in them.

    Raises:
        InputError: There is no such directory, it cannot be listed, or it holds no image with a label.
    """
    if filesystem.is_local(directory) and not Path(directory).is_dir():
        what = "is a file" if Path(directory).exists() else "does not exist"
        raise InputError(f"{directory} {what}: give a directory that has a folder of images for each class")
    files: list[ImageFile] = []
    failures: list[Failure] = []
    for found in list_images(directory, selection_of(images)):
        if isinstance(found, Failure):
            failures.append(found)
        else:
            files.append(found)
    files.sort(key=lambda file: file.uri)
    at_top = {file.uri.partition("/")[0] for file in files if "/" in file.uri}
    has_parts = "train" in at_top and len(at_top) > 1 and at_top <= _PART_OF_FOLDER.keys()
    below = [file.uri.partition("/")[2] if has_parts else file.uri for file in files]
    labels = labels_of(pa.chunked_array([below], pa.string())).to_pylist()
    listed = [
        Listed(file, label, _PART_OF_FOLDER[file.uri.partition("/")[0]] if has_parts else None)
        for file, label in zip(files, labels, strict=True)
        if label is not None
    ]
    if not listed:
        holds = f"{len(files)} images, none of them in a folder of a class" if files else "no image"
        raise InputError(
            f"{directory} holds {holds}: give a directory that has a folder of images for each class"
        )
    if len(listed) < len(files):
        logger.warning("left out %d images that lie in no folder of a class", len(files) - len(listed))
    return listed, failures


def decode(
    listed: Sequence[Listed],
    resizing: Resizing,
    limits: ImagesConfig,
    file: Path,
    advance: Callable[[int], None],
) -> Decoded:
    """Decodes images to pixels, as a build does: into memory, or into `file` where that is short.

    Raises:
        InputError: The storage is out of order.
        WorkerError: No decoder starts.
        OutputError: `file` cannot be written.
    """
    shape = (len(listed), *resizing.size, 3)
    pixels = _room(shape, file)
    images, failures = [], []
    for position, (each, loaded) in enumerate(zip(listed, _load(listed, resizing, limits), strict=True)):
        advance(1)
        if isinstance(loaded, Failure):
            failures.append(loaded)
            continue
        [row], pixels[position] = loaded
        images.append(LabeledImage(row.uri, each.label, row.sha256, each.part, position))
    return Decoded(tuple(images), pixels, tuple(failures))


def _room(shape: tuple[int, ...], file: Path) -> npt.NDArray[np.uint8]:
    size = int(np.prod(shape))
    if size <= _MEMORY_SHARE * available_memory():
        return np.empty(shape, np.uint8)
    with filesystem.as_output_error("write", str(file)):
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _load(
    listed: Sequence[Listed], resizing: Resizing, limits: ImagesConfig
) -> Iterator[LoadedImage | Failure]:
    decoder = decoder_pool.acquire(threads_in_order())
    try:
        yield from in_order(lambda each: load_image(each.file, resizing, limits, decoder), listed)
    finally:
        decoder_pool.release()
