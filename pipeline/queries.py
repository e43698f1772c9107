"""Queries: what people give to search for, and the pixels of those that are images."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgindex.errors import InputError, UsageError
from imgindex.members import read_image
from imgindex.models.preprocess import DecodeError, decode, upright_rgb
from imgindex.names import uri_of

Query = str | Path | Image.Image | np.ndarray[Any, Any]


def each_query(images: Query | Sequence[Query]) -> list[Query]:
    """One query or several as a list. Raises UsageError for what is none."""
    if isinstance(images, str | Path | Image.Image | np.ndarray):
        return [images]
    several = isinstance(images, Iterable) and not isinstance(images, bytes | bytearray | memoryview)
    queries: list[Any] = list(images) if several else [images]
    for query in queries:
        if not isinstance(query, str | Path | Image.Image | np.ndarray):
            raise UsageError(
                f"a query must be the path of an image, a PIL image or an array, got {type(query).__name__}; "
                "give the bytes of a file as PIL.Image.open(io.BytesIO(data))"
            )
    return queries


def name_of_query(query: Query) -> str:
    """The path, written as a uri is, or what was given instead of one."""
    return uri_of(str(query)) if isinstance(query, str | Path) else type(query).__name__


def pixels_of(query: Query, size: tuple[int, int], color_profile: str) -> npt.NDArray[np.uint8]:
    """The query image as the backbone takes it, through the same `decode` as an indexed one."""
    try:
        if isinstance(query, str | Path):
            return decode(read_image(str(query)), size, color_profile=color_profile).pixels
        return upright_rgb(_as_image(query), size, color_profile)
    except OSError as error:
        raise InputError(f"query {query}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a name that no filesystem takes, as one with a NUL
        raise InputError(f"query {name_of_query(query)}: cannot be read: {error}") from error
    except DecodeError as error:
        raise InputError(f"query {name_of_query(query)}: {error.reason}: {error}") from error


def _as_image(query: Image.Image | npt.NDArray[Any]) -> Image.Image:
    if isinstance(query, Image.Image):
        return query
    if query.dtype != np.uint8 or query.ndim != 3 or query.shape[2] != 3:
        raise UsageError(
            "a query array must be an RGB image [height, width, 3] of uint8 or a vector [dims] of floats, "
            f"got {query.dtype} {list(query.shape)}"
        )
    return Image.fromarray(query)
