"""Requests as the service takes them: fields of a query string, of a form or of JSON, checked."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from imgindex.errors import UsageError
from imgindex.search.filters import filter_of
from imgindex.search.open_generation import Wanted
from imgindex.serving.errors import RefusedError, bad_request, too_large
from imgindex.serving.settings import ServiceSettings

_SWITCHES = ("exact", "distinct", "exclude_self", "with_vectors")
_REPEATED = ("uri", "where")
_FIELDS = frozenset({"image", "vectors", "k", *_REPEATED, *_SWITCHES})
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")
_NEIGHBORS = 10

# Neighbors of all queries of a request, in the most of one; and values of their vectors.
_MOST_NEIGHBORS, _MOST_VALUES = 10, 1 << 18

# Bytes of JSON for each value of a vector, and for all else.
_VALUE_BYTES, _OTHER_BYTES = 32, 64 << 10


@dataclass(frozen=True)
class SearchRequest:
    """What is searched for: one of images, uris and vectors; and how."""

    images: Sequence[tuple[str, bytes]]  # name and bytes of each
    uris: Sequence[str]
    vectors: Any  # of vectors as lists; None where there are none
    wanted: Wanted


async def search_request(request: Request, settings: ServiceSettings, dims: int) -> SearchRequest:
    """Reads a request to search, in an index of vectors of `dims` values. Raises RefusedError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    images: list[tuple[str, bytes]] = []
    body: dict[str, list[Any]] = {}
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with _form(request, settings, dims) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "image":
                        raise bad_request(
                            f"the file of the field {name!r}; expected one of the field 'image'"
                        )
                    images.append((value.filename or "image", await value.read()))
                else:
                    body.setdefault(name, []).append(value)
    elif kind == "application/json":
        content = json_of(await request.body(), settings, dims)
        if not isinstance(content, dict):
            raise bad_request('the JSON must be an object, as in {"uri": "cats/1.jpg", "k": 5}')
        body = {
            name: value if name in _REPEATED and isinstance(value, list) else [value]
            for name, value in content.items()
        }
    elif await request.body():
        raise RefusedError(
            415, "content_type",
            f"content type {kind or 'unknown'}; expected multipart/form-data or application/json",
        )  # fmt: skip
    for name, value in request.query_params.multi_items():
        body.setdefault(name, []).append(value)
    return _checked(images, body, settings, dims)


@contextlib.asynccontextmanager
async def _form(request: Request, settings: ServiceSettings, dims: int) -> AsyncIterator[FormData]:
    """A form that was sent; its files are deleted at the end."""
    try:
        form = await request.form(
            max_files=settings.max_images,
            max_fields=settings.max_images + len(_FIELDS),
            max_part_size=json_bytes(settings, dims),
        )
    except HTTPException as error:
        raise bad_request(f"the form cannot be read: {error.detail}") from error
    try:
        yield form
    finally:
        await form.close()


def _checked(
    images: Sequence[tuple[str, bytes]],
    body: Mapping[str, Sequence[Any]],
    settings: ServiceSettings,
    dims: int,
) -> SearchRequest:
    unknown = body.keys() - _FIELDS
    if unknown:
        raise bad_request(f"unknown field {min(unknown)!r}; expected {', '.join(sorted(_FIELDS))}")
    for name, values in body.items():
        if name not in _REPEATED and len(values) > 1:
            raise bad_request(f"the field {name!r} came {len(values)} times; expected it once")
    if "image" in body:
        raise bad_request("the field 'image' must be a file, as of curl -F image=@photo.jpg")
    uris, where = ([text for text in body.get(name, ()) if text != ""] for name in _REPEATED)
    for name, texts in zip(_REPEATED, (uris, where), strict=True):
        if not all(isinstance(text, str) for text in texts):
            raise bad_request(f"the field {name!r} must be text")
    try:
        conditions = filter_of(where)
    except UsageError as error:
        raise bad_request(str(error)) from error
    vectors = _vectors(body["vectors"][0], settings, dims) if "vectors" in body else None
    if bool(images) + bool(uris) + (vectors is not None) != 1:
        raise bad_request("nothing to search for, or too much; expected one of 'image', 'uri' and 'vectors'")
    for kind in (images, uris):
        if len(kind) > settings.max_images:
            raise too_large(f"{len(kind)} queries in a request; expected at most {settings.max_images}")
    switches = {name: _switch(name, body[name][0]) for name in _SWITCHES if name in body}
    if vectors is not None and switches.get("exclude_self"):
        raise bad_request("exclude_self is for images and uris; a vector does not tell which image it is")
    k = number("k", body["k"][0], settings.max_k) if "k" in body else min(_NEIGHBORS, settings.max_k)
    count = len(images) + len(uris) + len(vectors or ())
    most = _MOST_NEIGHBORS * settings.max_k
    if count * k > most:
        raise too_large(f"{count} queries with k {k} in a request; expected at most {most} neighbors in all")
    with_vectors = switches.pop("with_vectors", False)
    if with_vectors and count * k * dims > _MOST_VALUES:
        raise too_large(f"vectors of {count * k} neighbors; expected at most {_MOST_VALUES // dims}")
    wanted = Wanted(k, **switches, where=conditions, vectors=with_vectors)
    return SearchRequest(images, uris, vectors, wanted)


def _vectors(given: Any, settings: ServiceSettings, dims: int) -> Any:
    """Vectors as lists, which came in as such or as JSON in a field; a single one counts as a list of one."""
    rows = json_of(given.encode("utf-8", "replace"), settings, dims) if isinstance(given, str) else given
    if not isinstance(rows, list) or not rows:
        raise bad_request("the field 'vectors' must be a list of lists of numbers")
    if not isinstance(rows[0], list):
        rows = [rows]
    if len(rows) > settings.max_vectors:
        raise too_large(f"{len(rows)} vectors in a request; expected at most {settings.max_vectors}")
    for row in rows:
        if not isinstance(row, list) or not set(map(type, row)) <= {int, float}:
            raise bad_request("the field 'vectors' must be a list of lists of numbers")
    return rows


def number(name: str, given: Any, most: int) -> int:
    """A whole number from 1 to `most`. Raises RefusedError."""
    text = str(given) if type(given) in (int, str) else ""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise bad_request(f"{name} is {str(given)[:40]!r}; expected a whole number from 1 to {most}")
    return int(text)


def _switch(name: str, given: Any) -> bool:
    if isinstance(given, bool):
        return given
    for value, words in ((True, _TRUE), (False, _FALSE)):
        if isinstance(given, str) and given.lower() in words:
            return value
    raise bad_request(f"{name} is {str(given)[:40]!r}; expected true or false")


def json_bytes(settings: ServiceSettings, dims: int) -> int:
    """How long JSON may be that holds vectors."""
    return min(settings.max_bytes, _OTHER_BYTES + settings.max_vectors * dims * _VALUE_BYTES)


def json_of(data: bytes, settings: ServiceSettings, dims: int) -> Any:
    """What JSON says. Raises RefusedError.

    It is read in one piece, and nothing else goes on meanwhile. So it may hold no more values than the
    largest request that is allowed; a text in it may be long.
    """
    most = settings.max_vectors * (dims + 2) + 1000
    if sum(map(data.count, (b",", b"[", b"{"))) > most:
        raise too_large(f"the JSON holds more than {most} values")
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"the JSON cannot be read: {error}") from error
