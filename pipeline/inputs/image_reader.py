"""One listed image: read, hashed, decoded, or the reason why not."""

import errno
import hashlib
from dataclasses import replace
from pathlib import Path

from imgindex.config import ImagesConfig
from imgindex.inputs import local_files
from imgindex.io import filesystem
from imgindex.io.byte_ranges import read_range
from imgindex.io.circuit_breaker import READS
from imgindex.io.content_encoding import DamagedEncodingError, unpacked
from imgindex.models.decoder import Decoder
from imgindex.models.preprocess import DecodedImage, DecodeError, Pixels
from imgindex.models.resizing import Resizing
from imgindex.records import Failure, ImageFile, ImageRow, version_of_file

# An image's rows, one for each file of the same bytes, and its pixels.
LoadedImage = tuple[list[ImageRow], Pixels]

# Reads of a file whose attributes change meanwhile, as where it gets another link or owner.
_READS = 3


def load_image(
    file: ImageFile, resizing: Resizing, limits: ImagesConfig, decoder: Decoder
) -> LoadedImage | Failure:
    """Reads, hashes and decodes one image to pixels [height, width, 3], resized so.

    Raises:
      InputError: the storage is out of order.
      WorkerError: `decoder` does not start.
    """
    read = _read(file, limits)
    if isinstance(read, Failure):
        return read
    file, data = read
    digest = hashlib.sha256(data).hexdigest()
    if file.sha256 not in (None, digest):
        # Its duplicates hold what it held before.
        return _changed(file)
    try:
        image = _decode(data, resizing, limits, decoder)
    except DecodeError as error:
        return Failure(file.uri, "decode", error.reason, str(error), digest)
    rows = [
        ImageRow(same.uri, same.size, same.version, digest, image.width, image.height)
        for same in (file, *file.duplicates)
    ]
    return rows, image.pixels


def _decode(data: bytes, resizing: Resizing, limits: ImagesConfig, decoder: Decoder) -> DecodedImage:
    how = limits.max_pixels, limits.color_profile, limits.truncated
    try:
        return decoder.decode(data, resizing, *how)
    except DecodeError as error:
        if error.reason not in ("crashed", "killed"):
            raise
    # Something else may have ended it, as Linux does where memory runs out.
    return decoder.decode(data, resizing, *how)


def hashed(file: ImageFile, limits: ImagesConfig) -> ImageFile | None:
    """A file with its SHA-256; None where it cannot be read. Raises InputError as `load_image` does."""
    read = _read(file, limits)
    if isinstance(read, Failure):
        return None
    file, data = read
    return replace(file, sha256=hashlib.sha256(data).hexdigest())


def _changed(file: ImageFile) -> Failure:
    return Failure(file.uri, "read", "changed", "it changed during the build; the next one takes it")


def _read(file: ImageFile, limits: ImagesConfig) -> tuple[ImageFile, bytes] | Failure:
    """A file with the version that was read, and its bytes."""
    if file.size > limits.max_bytes:
        return _too_many_bytes(file, f"{file.size} bytes are", limits)
    for _ in range(_READS):
        try:
            with READS.watched(file.path):
                if file.offset is None:
                    data = filesystem.read_regular(file.path, limits.max_bytes)
                else:
                    data = read_range(file.path, file.offset, file.size)
            now = _version_now(file)
        except OSError as error:
            return Failure(file.uri, "read", _read_reason(error), error.strerror or str(error))
        if len(data) > limits.max_bytes:
            return _too_many_bytes(file, f"it has grown from {file.size} bytes to", limits)
        # It may be half of what is being written. And what is stored under a version must be of that version,
        # for the file that was listed may come back, as from a backup.
        before = version_of_file(file.version)
        if len(data) == file.size and now == before:
            return _content(file, data, limits)
        if len(data) != file.size or local_files.modified_in(now) != local_files.modified_in(before):
            return _changed(file)
        # Perhaps only its attributes have changed. Read again, the bytes are those of the new version.
        file = replace(file, version=now + file.version.removeprefix(before))
    return _changed(file)


def _content(file: ImageFile, data: bytes, limits: ImagesConfig) -> tuple[ImageFile, bytes] | Failure:
    if file.offset is not None:
        return file, data  # a member of a tar
    try:
        content = unpacked(file.path, data, limits.max_bytes)
    except DamagedEncodingError as error:
        return Failure(file.uri, "decode", "undecodable", str(error), hashlib.sha256(data).hexdigest())
    if len(content) > limits.max_bytes:
        return _too_many_bytes(file, f"unpacked, its {file.size} bytes are", limits)
    return file, content


def _version_now(file: ImageFile) -> str:
    # Only listings tell the versions of an object store. A read of one gives a whole object, old or new.
    if not filesystem.is_local(file.path):
        return version_of_file(file.version)
    return local_files.local_version(Path(file.path).stat())


def _too_many_bytes(file: ImageFile, what: str, limits: ImagesConfig) -> Failure:
    message = f"{what} more than images.max_bytes ({limits.max_bytes})"
    return Failure(file.uri, "read", "too_many_bytes", message)


def _read_reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "vanished"
    if isinstance(error, PermissionError):
        return "permission_denied"
    if isinstance(error, filesystem.NotAFileError) or error.errno in (errno.ENXIO, errno.ENODEV):
        return "not_a_file"
    return "unreadable"
