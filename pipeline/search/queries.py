"""Queries: what people give to search for, found in folders and lists, read and decoded."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgindex.errors import InputError, OutputError, UsageError
from imgindex.generations.manifest import Manifest
from imgindex.inputs import local_files, tar_members
from imgindex.inputs.image_lists import is_whole
from imgindex.inputs.listing import list_images
from imgindex.inputs.selection import Selection
from imgindex.inputs.source import input_root, is_list
from imgindex.io import filesystem
from imgindex.io.byte_ranges import read_range
from imgindex.io.content_encoding import DamagedEncodingError, unpacked
from imgindex.models.plugins import readable
from imgindex.models.preprocess import DEFAULT_MAX_PIXELS, DecodedImage, DecodeError, upright_rgb
from imgindex.models.resizing import Resizing
from imgindex.records import Failure, ImageFile
from imgindex.search.results import QueryError
from imgindex.uris import name_of, uri_of

Query = str | Path | bytes | Image.Image | np.ndarray[Any, Any]

# What a listing gives, whose uri is here the whole path.
Found = ImageFile | Failure

# A bracket that is not closed is a character of a name.
_PATTERN = re.compile(r"[*?]|\[.+\]", re.DOTALL)

KINDS = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Recipe:
    """How an index has its images decoded."""

    resizing: Resizing
    color_profile: str
    max_bytes: int
    truncated: str = "fail"
    max_pixels: int = DEFAULT_MAX_PIXELS

    @classmethod
    def of(cls, manifest: Manifest) -> "Recipe":
        """The recipe of the generation that has `manifest`."""
        images = manifest.settings.images
        return cls(
            manifest.spec.resizing,
            images.color_profile,
            images.max_bytes,
            images.truncated,
            # What an index leaves out may still be searched for.
            max(images.max_pixels, DEFAULT_MAX_PIXELS),
        )


@dataclass(frozen=True)
class Loaded:
    """A query that has been read: its pixels [height, width, 3] or its vector [dims], or why it has none."""

    name: str  # the path, written as a uri is, or what was given instead of one
    value: npt.NDArray[Any] | QueryError
    path: str | None = None
    sha256: str | None = None  # of its bytes


def each_query(images: Query | Sequence[Query]) -> list[Query]:
    """One query or several as a list. Raises UsageError for what is none."""
    if isinstance(images, KINDS):
        return [images]
    several = isinstance(images, Iterable) and not isinstance(images, bytearray | memoryview)
    queries: list[Any] = list(images) if several else [images]
    for query in queries:
        check_query(query)
    return queries


def check_query(query: object) -> None:
    """Raises UsageError for what is no query."""
    if not isinstance(query, KINDS):
        raise UsageError(
            "a query must be the path of an image, the bytes of its file, a PIL image or an array, "
            f"got {type(query).__name__}"
        )


def each_in(source: str, extensions: Sequence[str], skipped: Counter[str]) -> Iterator[str | Found]:
    """The queries that `source` names: itself, or each image of a folder, a glob, a tar or a list.

    The listing is that of a build: files that this machine cannot read for want of an extra are left out.
    `skipped` gets the counts of all that are. A source is an image, and no glob, if a file of that exact name
    exists. If it cannot be listed, or holds no images, it gives a `Failure`.
    """
    if not is_several(source):
        yield source
        return
    none = True
    try:
        root = input_root(source)
        for found in list_images(source, Selection(readable(extensions)), skipped):
            none = False
            uri = found.uri if is_whole(found.uri) else uri_of(filesystem.join(root, name_of(found.uri)))
            yield replace(found, uri=uri)
    except InputError as error:
        none = False
        message = str(error).removeprefix(f"--input {source}").removeprefix(":").strip()
        yield Failure(uri_of(source), "list", "unreadable", message)
    if none:
        ends = ", ".join(extensions)
        yield Failure(uri_of(source), "list", "no_images", f"it holds no images, whose names end in {ends}")


def is_several(source: str) -> bool:
    """Whether `source` is a folder, a glob, a tar or a list, and not an image."""
    if is_list(source):
        return True
    if filesystem.is_local(source):
        path = Path(source)
        if path.is_dir():
            return True
        if path.exists():
            return source.lower().endswith(tar_members.SUFFIX)
    return source.endswith(("/", tar_members.SUFFIX)) or bool(_PATTERN.search(source))


def name_of_query(query: Query | Found) -> str:
    """The path, written as a uri is, or what was given instead of one."""
    if isinstance(query, Found):
        return query.uri
    return uri_of(str(query)) if isinstance(query, str | Path) else type(query).__name__


def load(query: Query | Found, recipe: Recipe, decode: Callable[..., DecodedImage]) -> Loaded:
    """Reads and decodes a query; its pixels are those that a build would make of it.

    `decode` is `preprocess.decode`, or does the same elsewhere. Raises UsageError for an array that is
    neither an image nor a vector.
    """
    name = name_of_query(query)
    if isinstance(query, np.ndarray) and query.ndim == 1:
        return Loaded(name, query)
    path = sha256 = None
    try:
        if isinstance(query, Failure):
            return Loaded(name, QueryError(query.stage, query.reason, query.message))
        if isinstance(query, Image.Image | np.ndarray):
            return Loaded(name, upright_rgb(_as_image(query), recipe.resizing, recipe.color_profile))
        if isinstance(query, bytes):
            data = query
        else:
            path = name_of(name)
            data = (
                _read(query, recipe.max_bytes)
                if isinstance(query, ImageFile)
                else tar_members.read_image(path, recipe.max_bytes)
            )
            if len(data) > recipe.max_bytes:
                message = f"it has more bytes than images.max_bytes ({recipe.max_bytes}) of the index"
                return Loaded(name, QueryError("read", "too_many_bytes", message))
        sha256 = hashlib.sha256(data).hexdigest()
        how = recipe.max_pixels, recipe.color_profile, recipe.truncated
        pixels = decode(data, recipe.resizing, *how).pixels
        return Loaded(name, pixels, path, sha256)
    except DecodeError as error:
        return Loaded(name, QueryError("decode", error.reason, str(error)))
    except DamagedEncodingError as error:
        return Loaded(name, QueryError("decode", "undecodable", str(error)))
    except OSError as error:
        return Loaded(name, QueryError("read", *local_files.fault_of(path or "", error)))
    except ValueError as error:  # a name that no filesystem takes, as one with a NUL
        return Loaded(name, QueryError("read", "unreadable", str(error)))


def _read(file: ImageFile, max_bytes: int) -> bytes:
    if file.offset is None:
        return unpacked(file.path, filesystem.read_regular(file.path, max_bytes), max_bytes)
    return read_range(file.path, file.offset, min(file.size, max_bytes + 1))


def _as_image(query: Image.Image | npt.NDArray[Any]) -> Image.Image:
    if isinstance(query, Image.Image):
        return query
    if query.dtype != np.uint8 or query.ndim != 3 or query.shape[2] != 3:
        raise UsageError(
            "a query array must be an RGB image [height, width, 3] of uint8 or a vector [dims] of floats, "
            f"got {query.dtype} {list(query.shape)}"
        )
    return Image.fromarray(query)


def own_names(query: Loaded, root: str) -> set[str]:
    """The SHA-256 of a query's bytes, and the uris of `own_uris`. Raises UsageError where it has none."""
    if query.sha256 is None:
        raise UsageError(
            "exclude_self needs the paths of the queries, or the bytes of their files; "
            f"{query.name} tells neither"
        )
    return {query.sha256} | (own_uris(query.path, root) if query.path else set())


def own_uris(path: str, root: str) -> set[str]:
    """The uris that the file at `path` may have in an index whose `input_root` is `root`."""
    paths, roots = {path}, {root}
    if filesystem.is_local(path):
        given = Path(path)
        paths = {str(given.absolute()), str(given.resolve())}
        roots |= {str(Path(root).resolve())}
    uris = {uri_of(path) for path in paths}  # as of a list's images that lie elsewhere
    for folder in roots:
        prefix = filesystem.join(folder, "")
        uris |= {uri_of(path.removeprefix(prefix)) for path in paths if path.startswith(prefix)}
    return uris


def image_path(manifest: Manifest, uri: str) -> str:
    """Where the indexed image `uri` lay when the index was built.

    That of a member of a tar leads into the tar. Raises OutputError for one that would lead out of the
    input, as no build writes it.
    """
    if ".." in uri.split("/"):
        raise OutputError(f"{uri!r} leads out of the input {manifest.input_root}")
    if is_whole(uri) and is_list(manifest.settings.input):
        return name_of(uri)
    return filesystem.join(manifest.input_root, name_of(uri))
