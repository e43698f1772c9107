"""Requests as the service takes them: fields of a query string, of a form or of JSON, checked."""

import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import from_json
from starlette.datastructures import FormData, QueryParams, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from imgindex.errors import UsageError
from imgindex.evaluation.duplicates.find import Across
from imgindex.evaluation.duplicates.results import THRESHOLD
from imgindex.search.filters import filter_of
from imgindex.search.open_generation import Wanted
from imgindex.serving.duplicates import LEAST_THRESHOLD
from imgindex.serving.errors import RefusedError, bad_request, too_large
from imgindex.serving.settings import ServiceSettings

_SWITCHES = ("exact", "distinct", "exclude_self", "with_vectors", "combine")
_FILES = ("image", "negative")
_VECTORS = ("vectors", "negative_vectors")
_REPEATED = ("uri", "negative_uri", "where")
_FIELDS = frozenset({"k", *_FILES, *_VECTORS, *_REPEATED, *_SWITCHES})
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")
_NEIGHBORS = 10

# Neighbors of all queries of a request, in the most of one; and values of their vectors.
_MOST_NEIGHBORS, _MOST_VALUES = 10, 1 << 18

# Characters of a field of text, with all its repetitions; and values of all conditions. Conditions are read
# in one piece, and nothing else goes on meanwhile; and each value may be compared with all images.
_MOST_TEXT, _MOST_CONDITIONS = 16 << 10, 1000

# Groups of duplicates that a request gets, unless it says how many, and at most.
GROUPS, MOST_GROUPS = 50, 200
_MOST_OFFSET = 10**9 - 1

# Bytes of JSON for each value of a vector, and for all else.
_VALUE_BYTES, _OTHER_BYTES = 32, 64 << 10


@dataclass(frozen=True)
class Queries:
    """What is searched for."""

    images: Sequence[tuple[str, bytes]] = ()  # name and bytes of each
    uris: Sequence[str] = ()
    vectors: Sequence[Any] = ()  # each a list of numbers

    def __len__(self) -> int:
        """How many queries there are."""
        return len(self.images) + len(self.uris) + len(self.vectors)

    @property
    def kinds(self) -> int:
        """Of how many kinds they are."""
        return bool(self.images) + bool(self.uris) + bool(self.vectors)


@dataclass(frozen=True)
class SearchRequest:
    """What is searched for, and how."""

    queries: Queries
    negative: Queries  # what the answers shall not be like
    combine: bool  # whether all of them make one query; else `queries` are of one kind
    wanted: Wanted


async def search_request(request: Request, settings: ServiceSettings, dims: int) -> SearchRequest:
    """Reads a request to search, in an index of vectors of `dims` values. Raises RefusedError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    files: dict[str, list[tuple[str, bytes]]] = {name: [] for name in _FILES}
    body: dict[str, list[Any]] = {}
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with _form(request, settings, dims) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name not in files:
                        raise bad_request(
                            f"the field {name!r} is a file; expected files in 'image' and 'negative' alone"
                        )
                    files[name].append((value.filename or "image", await value.read()))
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
            f"content type {kind or 'unknown'}; expected multipart/form-data, as of curl -F "
            "image=@photo.jpg, or application/json",
        )  # fmt: skip
    for name, value in request.query_params.multi_items():
        body.setdefault(name, []).append(value)
    return _checked(files, body, settings, dims)


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
    files: Mapping[str, Sequence[tuple[str, bytes]]],
    body: Mapping[str, Sequence[Any]],
    settings: ServiceSettings,
    dims: int,
) -> SearchRequest:
    unknown = body.keys() - _FIELDS
    if unknown:
        raise bad_request(f"unknown field {min(unknown)[:40]!r}; expected {', '.join(sorted(_FIELDS))}")
    for name, values in body.items():
        if name not in _REPEATED:
            _check_once(name, values)
    for name in _FILES:
        if name in body:
            raise bad_request(f"the field {name!r} must be a file, as of curl -F {name}=@photo.jpg")
    texts = {name: [text for text in body.get(name, ()) if text != ""] for name in _REPEATED}
    for name, values in texts.items():
        if not all(isinstance(text, str) for text in values):
            raise bad_request(f"the field {name!r} must be text")
        if sum(map(len, values)) > _MOST_TEXT:
            raise too_large(f"the field {name!r} holds more than {_MOST_TEXT} characters")
    if sum(text.count(",") + 1 for text in texts["where"]) > _MOST_CONDITIONS:
        raise too_large(f"the conditions of 'where' have more than {_MOST_CONDITIONS} values")
    try:
        conditions = filter_of(texts["where"])
    except UsageError as error:
        raise bad_request(str(error)) from error
    positive, negative = (
        Queries(
            files[image],
            texts[uri],
            _vectors(vectors, body[vectors][0], settings, dims) if vectors in body else (),
        )
        for image, uri, vectors in zip(_FILES, _REPEATED[:2], _VECTORS, strict=True)
    )
    switches = {name: _switch(name, body[name][0]) for name in _SWITCHES if name in body}
    combine = switches.pop("combine", False) or len(negative) > 0
    if not positive:
        raise bad_request("nothing to search for; expected one of 'image', 'uri' and 'vectors'")
    if not combine and positive.kinds > 1:
        raise bad_request(
            "queries of several kinds; expected one of 'image', 'uri' and 'vectors', or combine=true to make "
            "one query of them"
        )
    images = sum(len(each.images) + len(each.uris) for each in (positive, negative))
    vectors = len(positive.vectors) + len(negative.vectors)
    for count, kind, most in (
        (images, "images and uris", settings.max_images),
        (vectors, "vectors", settings.max_vectors),
    ):
        if count > most:
            raise too_large(f"{count} {kind} in a request; expected at most {most}")
    if vectors and switches.get("exclude_self"):
        raise bad_request("exclude_self is for images and uris; a vector does not tell which image it is")
    k = number("k", body["k"][0], settings.max_k) if "k" in body else min(_NEIGHBORS, settings.max_k)
    count = 1 if combine else len(positive)
    most = _MOST_NEIGHBORS * settings.max_k
    if count * k > most:
        raise too_large(f"{count} queries with k {k} in a request; expected at most {most} neighbors in all")
    with_vectors = switches.pop("with_vectors", False)
    if with_vectors and count * k * dims > _MOST_VALUES:
        raise too_large(f"vectors of {count * k} neighbors; expected at most {_MOST_VALUES // dims}")
    wanted = Wanted(k, **switches, where=conditions, vectors=with_vectors)
    return SearchRequest(positive, negative, combine, wanted)


def _check_once(name: str, values: Sequence[Any]) -> None:
    if len(values) > 1:
        raise bad_request(f"the field {name!r} came {len(values)} times; expected it once")


def _vectors(name: str, given: Any, settings: ServiceSettings, dims: int) -> list[Any]:
    """Vectors as lists, which came in as such or as JSON in a field; a single one counts as a list of one."""
    rows = json_of(given.encode("utf-8", "replace"), settings, dims) if isinstance(given, str) else given
    if not isinstance(rows, list) or not rows:
        raise bad_request(f"the field {name!r} must be a list of lists of numbers")
    if not isinstance(rows[0], list):
        rows = [rows]
    for row in rows:
        if not isinstance(row, list) or not set(map(type, row)) <= {int, float}:
            raise bad_request(f"the field {name!r} must be a list of lists of numbers")
    return rows


@dataclass(frozen=True)
class DuplicatesRequest:
    """Which groups of duplicates are asked for."""

    threshold: float
    across: Across | None
    offset: int
    limit: int


def duplicates_request(query: QueryParams) -> DuplicatesRequest:
    """Reads the query string of a request for duplicates. Raises RefusedError."""
    defaults = {"threshold": str(THRESHOLD), "across": "", "offset": "0", "limit": str(GROUPS)}
    given = dict(query.multi_items())
    unknown = given.keys() - defaults.keys()
    if unknown:
        raise bad_request(f"unknown field {min(unknown)[:40]!r}; expected {', '.join(defaults)}")
    for name in given:
        _check_once(name, query.getlist(name))
    values = defaults | given
    across: dict[str, Across | None] = {"": None, "labels": "labels", "folders": "folders"}
    if values["across"] not in across:
        raise bad_request(f"across is {values['across'][:40]!r}; expected labels or folders")
    return DuplicatesRequest(
        _threshold(values["threshold"]),
        across[values["across"]],
        number("offset", values["offset"], _MOST_OFFSET, least=0),
        number("limit", values["limit"], MOST_GROUPS),
    )


def _threshold(text: str) -> float:
    try:
        # Similarities have six digits, too.
        value = round(float(text), 6)
    except ValueError:
        value = math.nan
    if not LEAST_THRESHOLD <= value <= 1:
        raise bad_request(f"threshold is {text[:40]!r}; expected a number from {LEAST_THRESHOLD:g} to 1")
    return value


def number(name: str, given: Any, most: int, least: int = 1) -> int:
    """A whole number from `least` to `most`. Raises RefusedError."""
    text = str(given) if type(given) in (int, str) else ""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise bad_request(f"{name} is {str(given)[:40]!r}; expected a whole number from {least} to {most}")
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
    characters = np.frombuffer(data, np.uint8)  # counted in half the time that bytes take
    if sum(np.count_nonzero(characters == ord(each)) for each in ",[{") > most:
        raise too_large(f"the JSON holds more than {most} values")
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(f"the JSON cannot be read: {error}") from error
