"""One listed image: read, hashed, decoded, or the reason why not."""

import hashlib

from imgindex import storage
from imgindex.config import ImagesConfig
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodeError, Pixels
from imgindex.records import Failure, ImageFile, ImageRow

# An image's rows, one for each file of the same bytes, and its pixels.
LoadedImage = tuple[list[ImageRow], Pixels]


def load_image(
    file: ImageFile, image_size: tuple[int, int], limits: ImagesConfig, decoder: DecoderProcess
) -> LoadedImage | Failure:
    """Reads, hashes and decodes one image to pixels [height, width, 3] of `image_size`.

    Raises WorkerError where `decoder` does not start.
    """
    data = _read(file, limits)
    if isinstance(data, Failure):
        return data
    digest = hashlib.sha256(data).hexdigest()
    if file.sha256 not in (None, digest):
        # Its duplicates hold what it held before.
        return Failure(file.uri, "read", "changed", "it changed during the build; the next one takes it")
    try:
        image = decoder.decode(data, image_size, limits.max_pixels)
    except DecodeError as error:
        return Failure(file.uri, "decode", error.reason, str(error), digest)
    rows = [
        ImageRow(same.uri, same.size, same.version, digest, image.width, image.height)
        for same in (file, *file.duplicates)
    ]
    return rows, image.pixels


def hash_file(file: ImageFile, limits: ImagesConfig) -> str | None:
    """The SHA-256 of a file; None where it cannot be read."""
    data = _read(file, limits)
    return None if isinstance(data, Failure) else hashlib.sha256(data).hexdigest()


def _read(file: ImageFile, limits: ImagesConfig) -> bytes | Failure:
    if file.size > limits.max_bytes:
        message = f"{file.size} bytes are more than images.max_bytes ({limits.max_bytes})"
        return Failure(file.uri, "read", "too_many_bytes", message)
    try:
        return storage.read_bytes(file.path)
    except OSError as error:
        message = error.strerror or str(error)
        return Failure(file.uri, "read", _read_reason(error), message)


def _read_reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "vanished"
    if isinstance(error, PermissionError):
        return "permission_denied"
    return "unreadable"
