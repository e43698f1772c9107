"""One listed image: read, hashed, decoded, or the reason why not."""

import errno
import hashlib

from imgindex import storage
from imgindex.config import ImagesConfig
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodeError, Pixels
from imgindex.outage import READS
from imgindex.ranges import read_range
from imgindex.records import Failure, ImageFile, ImageRow

# An image's rows, one for each file of the same bytes, and its pixels.
LoadedImage = tuple[list[ImageRow], Pixels]


def load_image(
    file: ImageFile, image_size: tuple[int, int], limits: ImagesConfig, decoder: DecoderProcess
) -> LoadedImage | Failure:
    """Reads, hashes and decodes one image to pixels [height, width, 3] of `image_size`.

    Raises:
      InputError: the storage is out of order.
      WorkerError: `decoder` does not start.
    """
    data = _read(file, limits)
    if isinstance(data, Failure):
        return data
    digest = hashlib.sha256(data).hexdigest()
    if file.sha256 not in (None, digest):
        # Its duplicates hold what it held before.
        return _changed(file)
    try:
        image = decoder.decode(data, image_size, limits.max_pixels)
    except DecodeError as error:
        if len(data) != file.size:
            # It may have been read while it was being written.
            return _changed(file)
        return Failure(file.uri, "decode", error.reason, str(error), digest)
    rows = [
        ImageRow(same.uri, same.size, same.version, digest, image.width, image.height)
        for same in (file, *file.duplicates)
    ]
    return rows, image.pixels


def hash_file(file: ImageFile, limits: ImagesConfig) -> str | None:
    """The SHA-256 of a file; None where it cannot be read. Raises InputError as `load_image` does."""
    data = _read(file, limits)
    return None if isinstance(data, Failure) else hashlib.sha256(data).hexdigest()


def _changed(file: ImageFile) -> Failure:
    return Failure(file.uri, "read", "changed", "it changed during the build; the next one takes it")


def _read(file: ImageFile, limits: ImagesConfig) -> bytes | Failure:
    if file.size > limits.max_bytes:
        return _too_many_bytes(file, f"{file.size} bytes are", limits)
    try:
        with READS.watched(file.path):
            if file.offset is None:
                data = storage.read_regular(file.path, limits.max_bytes)
            else:
                data = read_range(file.path, file.offset, file.size)
    except OSError as error:
        return Failure(file.uri, "read", _read_reason(error), error.strerror or str(error))
    if len(data) > limits.max_bytes:
        return _too_many_bytes(file, f"it has grown from {file.size} bytes to", limits)
    return data


def _too_many_bytes(file: ImageFile, what: str, limits: ImagesConfig) -> Failure:
    message = f"{what} more than images.max_bytes ({limits.max_bytes})"
    return Failure(file.uri, "read", "too_many_bytes", message)


def _read_reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "vanished"
    if isinstance(error, PermissionError):
        return "permission_denied"
    if isinstance(error, storage.NotAFileError) or error.errno in (errno.ENXIO, errno.ENODEV):
        return "not_a_file"
    return "unreadable"
