"""The OpenAPI document of the service."""

from importlib.metadata import version
from typing import Any

from imgindex.evaluation.duplicates.results import THRESHOLD
from imgindex.serving.duplicates import LEAST_THRESHOLD
from imgindex.serving.find_duplicates import IMAGES
from imgindex.serving.requests import GROUPS, MOST_GROUPS
from imgindex.serving.settings import ServiceSettings

_Schema = dict[str, Any]


def _object(properties: dict[str, _Schema], optional: tuple[str, ...] = ()) -> _Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(of: _Schema) -> _Schema:
    return {"type": "array", "items": of}


def _is(kind: str, text: str = "", **more: Any) -> _Schema:
    return {"type": kind, **({"description": text} if text else {}), **more}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT, _NUMBER, _COUNT, _SWITCH = _is("string"), _is("number"), _is("integer"), _is("boolean")
_LABEL = _is("string", "The name of the folder that the image lies in.")
_LABEL["type"] = ["string", "null"]

_SCHEMAS: dict[str, _Schema] = {
    "Error": _object({"error": _object({"status": _COUNT, "reason": _TEXT, "message": _TEXT})}),
    "QueryError": _object({"stage": _TEXT, "reason": _TEXT, "message": _TEXT}),
    "Neighbor": _object(
        {
            "rank": _is("integer", "From 1."),
            "uri": _is("string", "The path of the image, relative to the input of the build."),
            "similarity": _is("number", "The cosine of the two vectors."),
            "distance": _is("number", "In the metric of the index."),
            "label": _LABEL,
            "sha256": _TEXT,
            "width": _COUNT,
            "height": _COUNT,
            "shard": _COUNT,
            "item": _is("integer", "The number of the image in its shard."),
            "copies": _is("integer", "How many other indexed files have the same bytes."),
            "vector": _list(_NUMBER),
        },
        optional=("vector",),
    ),
    "Result": _object(
        {
            "query": _TEXT,
            "known": _is("string", "The uri of an indexed image that has the bytes of the query."),
            "vector": _list(_NUMBER),
            "neighbors": _list(_ref("Neighbor")),
            "error": {"anyOf": [_ref("QueryError"), {"type": "null"}]},
        },
        optional=("known", "vector"),
    ),
    "Results": _object(
        {
            "generation": _is("string", "The generation that has answered all of this request."),
            "metric": _TEXT,
            "k": _COUNT,
            "exact": _SWITCH,
            "results": _list(_ref("Result")),
        }
    ),
    "Item": _object(
        {
            "generation": _TEXT, "uri": _TEXT, "label": _LABEL, "sha256": _TEXT, "size": _COUNT,
            "width": _COUNT, "height": _COUNT, "shard": _COUNT, "item": _COUNT,
        }
    ),
    "Duplicates": _object(
        {
            "generation": _TEXT, "threshold": _NUMBER,
            "across": {"type": ["string", "null"], "enum": ["labels", "folders", None]},
            "images": _is("integer", "How many were looked at."),
            "exact": _ref("DuplicateCounts"), "near": _ref("DuplicateCounts"), "all": _ref("DuplicateCounts"),
            "ungrouped": _is("integer", "Images in no group that reach the threshold with some of one."),
            "group_count": _COUNT,
            "offset": _is("integer", "How many groups come before the first of `groups`."),
            "groups": _list(_ref("DuplicateGroup")),
        }
    ),
    "DuplicateCounts": _object(
        {
            "groups": _COUNT,
            "images": _COUNT,
            "surplus": _is("integer", "Images that go if one of each group is kept."),
        }
    ),
    "DuplicateGroup": _object(
        {
            "kind": _is("string", enum=["exact", "near"]),
            "least_similarity": _NUMBER,
            "why": _is("string", "What the first image, which is to be kept, is ahead of the next one in."),
            "count": _is("integer", "Images of the group."),
            "images": _list(_ref("Duplicate")) | {"description": f"The first {IMAGES} of them."},
        }
    ),
    "Duplicate": _object(
        {
            "uri": _TEXT, "similarity": _is("number", "To the first image of the group."), "sha256": _TEXT,
            "size": _COUNT, "width": _COUNT, "height": _COUNT, "label": _LABEL,
        }
    ),
    "Waiting": _object(
        {"generation": _TEXT, "status": _TEXT, "seconds": _is("number", "For how long they are looked for.")}
    ),
    "KnnResult": _object(
        {
            "id": _COUNT, "similarity": _NUMBER, "image_path": _TEXT, "caption": _LABEL, "sha256": _TEXT,
            "width": _COUNT, "height": _COUNT,
        }
    ),
}  # fmt: skip


def _answer(schema: _Schema, kind: str = "application/json") -> _Schema:
    return {"description": "The answer.", "content": {kind: {"schema": schema}}}


def _route(summary: str, answer: _Schema, *refusals: int, **more: Any) -> _Schema:
    responses: _Schema = {"200": answer}
    for status in refusals:
        responses[str(status)] = {
            "description": _REFUSALS[status],
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    return {"summary": summary, "responses": responses, **more}


_REFUSALS = {
    400: "The request is not as it should be.",
    401: "The service wants a token.",
    403: "The service does not show original images.",
    404: "There is no such image, or its file is no longer as it was indexed.",
    408: "The request came in too slowly.",
    413: "The request is larger than the limits allow.",
    421: "The service is not to be reached by this name.",
    415: "The content type is none that the service reads.",
    422: "The image cannot be searched for.",
    429: "Too many requests are being worked on. Retry-After says when to try again.",
    503: "The service cannot answer now.",
}

_DUPLICATES = {
    "threshold": _is(
        "number", "The least similarity of near ones.", minimum=LEAST_THRESHOLD, maximum=1, default=THRESHOLD
    ),
    "across": _is("string", "Only groups of several of these.", enum=["labels", "folders"]),
    "offset": _is("integer", "Groups that are left out, of the largest.", minimum=0, default=0),
    "limit": _is("integer", "Groups at most.", minimum=1, maximum=MOST_GROUPS, default=GROUPS),
}
_URI = {"name": "uri", "in": "path", "required": True, "schema": _TEXT}
_BINARY = _is("string", "The file of an image.", format="binary")
_ANY = {"type": "object"}


def document(settings: ServiceSettings) -> dict[str, Any]:
    """The document of a service with these limits."""
    k = _is("integer", "Neighbors of each query.", minimum=1, maximum=settings.max_k, default=10)
    how = {
        "k": k,
        "exact": _is("boolean", "Compare with every stored vector.", default=False),
        "distinct": _is("boolean", "List images whose files have the same bytes once.", default=False),
        "exclude_self": _is("boolean", "Leave out the query and its copies.", default=False),
        "where": _list(_TEXT) | {"description": "Conditions, as label=cat or uri^=2024/; all must hold."},
        "with_vectors": _is("boolean", "Answer with vectors, too.", default=False),
        "combine": _is("boolean", "Search once, for what all queries have in common.", default=False),
    }
    vectors = _list(_list(_NUMBER)) | {"maxItems": settings.max_vectors}
    texts, written = _list(_TEXT), _is("string", "As JSON.", maxLength=settings.max_bytes)
    form = {
        "image": _list(_BINARY),
        "uri": texts,
        "vectors": written,
        "negative": _list(_BINARY) | {"description": "Images that the answers shall not be like."},
        "negative_uri": texts,
        "negative_vectors": written,
    }
    values = {"uri": texts, "vectors": vectors, "negative_uri": texts, "negative_vectors": vectors}
    content = {
        "multipart/form-data": {"schema": {"type": "object", "properties": {**form, **how}}},
        "application/json": {"schema": {"type": "object", "properties": {**values, **how}}},
    }
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in how.items()]
    knn = {
        "image": _is("string", "An image in base64."),
        "embedding_input": _list(_NUMBER),
        "num_images": k,
        "modality": _is("string", enum=["image"]),
        "indice_name": _TEXT,
        "deduplicate": _SWITCH,
    }
    busy = (429, 503)
    by_uri = {"parameters": [_URI]}
    knn_body = {"content": {"application/json": {"schema": {"type": "object", "properties": knn}}}}
    paths = {
        "/search": {
            "post": _route(
                "The nearest images of images, of indexed images or of vectors.", _answer(_ref("Results")),
                400, 404, 408, 413, 415, 422, *busy,
                parameters=query, requestBody={"content": content},
            )
        },
        "/items/{uri}": {
            "get": _route("What is known of an indexed image.", _answer(_ref("Item")), 404, *busy, **by_uri)
        },
        "/thumbnails/{uri}": {
            "get": _route("A small picture.", _answer(_BINARY, "image/jpeg"), 404, *busy, **by_uri)
        },
        "/images/{uri}": {
            "get": _route("The file of an image.", _answer(_BINARY, "image/*"), 403, 404, *busy, **by_uri)
        },
        "/duplicates": {
            "get": _route(
                "Groups of images that are duplicates of each other.", _answer(_ref("Duplicates")), 400, 503,
                parameters=[
                    {"name": name, "in": "query", "schema": schema} for name, schema in _DUPLICATES.items()
                ],
            )
        },
        "/report": {"get": _route("The report of the generation.", _answer(_TEXT, "text/html"), 404)},
        "/info": {"get": _route("What answers, and its limits.", _answer(_ANY))},
        "/healthz": {"get": _route("Whether the process answers.", _answer(_ANY))},
        "/readyz": {"get": _route("Whether queries are answered.", _answer(_ANY))},
        "/metrics": {"get": _route("Counters for Prometheus.", _answer(_TEXT, "text/plain"))},
        "/knn-service": {
            "post": _route(
                "As clip-retrieval answers.", _answer(_list(_ref("KnnResult"))), 400, 408, 413, 422, *busy,
                requestBody=knn_body,
            )
        },
        "/indices-list": {"get": _route("The names that /knn-service takes.", _answer(_list(_TEXT)))},
    }  # fmt: skip
    paths["/duplicates"]["get"]["responses"]["202"] = _answer(_ref("Waiting")) | {
        "description": "They are being looked for. Retry-After says when to ask again."
    }
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "imgindex", "version": version("imgindex")},
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }
    if settings.hosts is not None:
        for path in paths.values():
            for route in path.values():
                route["responses"]["421"] = {"description": _REFUSALS[421]}
    if settings.token is not None:
        made["components"] = {
            **made["components"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        }
        made["security"] = [{"token": []}]
        for path in paths.values():
            for route in path.values():
                route["responses"]["401"] = {"description": _REFUSALS[401]}
    return made
