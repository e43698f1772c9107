"""One listed image: read, hashed, decoded, or the reason why not."""

import errno
import hashlib
from pathlib import Path

from imgindex import storage, walking
from imgindex.config import ImagesConfig
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodedImage, DecodeError, Pixels
from imgindex.outage import READS
from imgindex.ranges import read_range
from imgindex.records import Failure, ImageFile, ImageRow, version_of_file

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
        image = _decode(data, image_size, limits, decoder)
    except DecodeError as error:
        return Failure(file.uri, "decode", error.reason, str(error), digest)
    rows = [
        ImageRow(same.uri, same.size, same.version, digest, image.width, image.height)
        for same in (file, *file.duplicates)
    ]
    return rows, image.pixels


def _decode(
    data: bytes, image_size: tuple[int, int], limits: ImagesConfig, decoder: DecoderProcess
) -> DecodedImage:
    try:
        return decoder.decode(data, image_size, limits.max_pixels, limits.color_profile)
    except DecodeError as error:
        if error.reason != "crashed":
            raise
    # Something else may have killed it, as Linux does where memory runs out; the failure would be remembered.
    return decoder.decode(data, image_size, limits.max_pixels, limits.color_profile)


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
        changed = len(data) != file.size or not _is_listed_version(file)
    except OSError as error:
        return Failure(file.uri, "read", _read_reason(error), error.strerror or str(error))
    if len(data) > limits.max_bytes:
        return _too_many_bytes(file, f"it has grown from {file.size} bytes to", limits)
    # It may be half of what is being written. And what is stored under a version must be of that version, for
    # the file that was listed may come back, as from a backup.
    return _changed(file) if changed else data


def _is_listed_version(file: ImageFile) -> bool:
    # Only listings tell the versions of an object store. A read of one gives a whole object, old or new.
    if not storage.is_local(file.path):
        return True
    return version_of_file(file.version) == walking.local_version(Path(file.path).stat())


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
