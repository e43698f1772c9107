"""The routes: what each takes from a request, and what it answers."""

import math
from collections.abc import Awaitable, Callable
from importlib import resources
from itertools import accumulate

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from imgindex.serving import openapi
from imgindex.serving.errors import RefusedError, not_found
from imgindex.serving.knn_service import INDEX_NAME, knn_answer, knn_request
from imgindex.serving.limits import COOKIE, is_shown, session_of
from imgindex.serving.live_index import Answering
from imgindex.serving.media_types import media_type
from imgindex.serving.requests import duplicates_request, json_of, search_request
from imgindex.serving.service import Service, begun, refusal_of

Handler = Callable[[Request], Awaitable[Response]]

# Scripts, styles and pictures come from this service alone, and nothing stands in the page itself.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "frame-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
# A report holds its own styles and pictures, and no script.
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
_PICTURE_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _headers(answering: Answering, **more: str) -> dict[str, str]:
    return {"imgindex-generation": answering.generation, "cache-control": "no-store", **more}


async def search(request: Request) -> Response:
    """The neighbors of images, of indexed images or of vectors, or of several of them together."""
    service = _service(request)
    dims = service.live.current.manifest.dims
    asked = await search_request(request, service.settings, dims)
    async with service.working() as answering:
        body = await service.answer(answering, asked)
        return Response(body, media_type="application/json", headers=_headers(answering))


async def knn_service(request: Request) -> Response:
    """The neighbors of an image or a vector, in the words of clip-retrieval."""
    service = _service(request)
    dims = service.live.current.manifest.dims
    asked = knn_request(json_of(await request.body(), service.settings, dims), service.settings)
    async with service.working() as answering:
        (result,) = await service.search(answering, asked.queries, asked.wanted)
        if result.error is not None:
            raise refusal_of(result.error)
        firsts = [0, *accumulate(shard.items for shard in answering.manifest.shards)]
        return JSONResponse(knn_answer(result, firsts), headers=_headers(answering))


async def duplicates(request: Request) -> Response:
    """Groups of images that are duplicates of each other."""
    service = _service(request)
    asked = duplicates_request(request.query_params)
    answering = service.live.current
    # To wait for them takes no place among the requests that are worked on.
    found = await service.duplicates(answering, asked)
    if isinstance(found, float):
        content = {"generation": answering.generation, "status": "being looked for", "seconds": found}
        return JSONResponse(content, 202, _headers(answering, **{"retry-after": "2"}))
    head, groups = found
    return JSONResponse({**head, "groups": groups}, headers=_headers(answering))


async def indices_list(request: Request) -> Response:
    """The names that the requests of clip-retrieval may give."""
    return JSONResponse([INDEX_NAME])


async def items(request: Request) -> Response:
    """What is known of an indexed image."""
    service = _service(request)
    async with service.working() as answering:
        row = await service.item(answering, request.path_params["uri"])
        return JSONResponse({"generation": answering.generation, **row}, headers=_headers(answering))


async def thumbnails(request: Request) -> Response:
    """A small JPEG of an indexed image."""
    service = _service(request)
    async with service.working() as answering:
        picture, digest = await service.thumbnail(answering, request.path_params["uri"])
        return _picture(request, answering, picture, digest, "image/jpeg")


async def images(request: Request) -> Response:
    """The file of an indexed image."""
    service = _service(request)
    if not service.settings.images:
        raise RefusedError(403, "no_images", "this service shows no original images; see --images")
    async with service.working() as answering:
        data, digest = await service.original(answering, request.path_params["uri"])
        return _picture(request, answering, data, digest, media_type(data))


def _picture(request: Request, answering: Answering, data: bytes, digest: str, kind: str) -> Response:
    headers = _headers(answering, etag=f'"{digest}"')
    headers |= {"cache-control": "private, no-cache", "content-security-policy": _PICTURE_POLICY}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


async def report(request: Request) -> Response:
    """The report of the generation, as a page."""
    answering = _service(request).live.current
    if answering.report is None:
        raise not_found("this generation has no report; build with report.enabled=true")
    policy = {"content-security-policy": _REPORT_POLICY}
    return HTMLResponse(answering.report, headers=_headers(answering, **policy))


async def info(request: Request) -> Response:
    """What answers, and what it allows."""
    service = _service(request)
    answering, settings = service.live.current, service.settings
    manifest = answering.manifest
    content = {
        "generation": answering.generation,
        "begun": begun(manifest),
        "trouble": service.live.trouble is not None,
        "images": manifest.items,
        "bytes": manifest.size,
        "shards": len(manifest.shards),
        "dims": manifest.dims,
        "metric": manifest.metric,
        "backbone": manifest.spec.backbone,
        "image_size": list(manifest.spec.image_size),
        "basis": manifest.pca.fitted_in,
        "labels": answering.labels,
        "recall": _finite(manifest.recall.recall),
        "has_report": answering.report is not None,
        "has_images": settings.images,
        "limits": {
            name: getattr(settings, name)
            for name in ("max_bytes", "max_pixels", "max_k", "max_vectors", "max_images", "seconds")
        },
    }
    return JSONResponse(content, headers=_headers(answering))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


async def healthz(request: Request) -> Response:
    """Whether the process answers at all."""
    return JSONResponse({"status": "ok"}, headers={"cache-control": "no-store"})


async def readyz(request: Request) -> Response:
    """Whether queries are answered, and whether by the live generation."""
    live = _service(request).live
    content = {
        "status": "ok" if live.trouble is None else "an older generation answers; see the log",
        "generation": live.current.generation,
    }
    return JSONResponse(content, headers=_headers(live.current))


async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    found = _service(request).metrics
    return Response(found.text(), headers={"content-type": found.content_type, "cache-control": "no-store"})


async def session(request: Request) -> Response:
    """Gives a browser that shows the token a cookie, with which pictures can be loaded."""
    token = _service(request).settings.token
    headers = {name: value.decode("latin-1") for name, value in request.headers.raw}
    if token is None:
        return JSONResponse({"wanted": False, "shown": True}, headers={"cache-control": "no-store"})
    shown = is_shown(headers, token)
    if request.method == "POST" and not shown:
        raise RefusedError(401, "unauthorized", "this is not the token of this service")
    response = JSONResponse({"wanted": True, "shown": shown}, headers={"cache-control": "no-store"})
    if request.method == "POST":
        response.set_cookie(
            COOKIE, session_of(token), httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
    return response


async def page(request: Request) -> Response:
    """The page on which people search."""
    text = (resources.files("imgindex.serving") / "static" / "index.html").read_text("utf-8")
    headers = {"content-security-policy": _PAGE_POLICY, "x-frame-options": "DENY"}
    return HTMLResponse(text, headers={"cache-control": "no-cache", **headers})


async def openapi_document(request: Request) -> Response:
    """The OpenAPI document of these routes."""
    return JSONResponse(openapi.document(_service(request).settings))


async def refused(request: Request, error: Exception) -> Response:
    """Has an error of the framework answered as all others."""
    if not isinstance(error, HTTPException):
        raise error
    allowed = (error.headers or {}).get("Allow")
    told = {404: ("not_found", "there is no such path; /openapi.json names those that there are"),
            405: ("wrong_method", f"{request.method} is not for this path; expected {allowed}")}  # fmt: skip
    reason, message = told.get(error.status_code, ("http", str(error.detail)))
    raise RefusedError(error.status_code, reason, message, error.headers)


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/", page),
    ("POST", "/search", search),
    ("GET", "/items/{uri:uri}", items),
    ("GET", "/thumbnails/{uri:uri}", thumbnails),
    ("GET", "/images/{uri:uri}", images),
    ("GET", "/duplicates", duplicates),
    ("GET", "/report", report),
    ("GET", "/info", info),
    ("GET", "/healthz", healthz),
    ("GET", "/readyz", readyz),
    ("GET", "/metrics", metrics),
    ("GET", "/session", session),
    ("POST", "/session", session),
    ("GET", "/openapi.json", openapi_document),
    ("POST", "/knn-service", knn_service),
    ("GET", "/indices-list", indices_list),
)
