"""The ASGI application: its routes, and what begins and ends with it."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from anyio import to_thread
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from imgindex.serving.limits import Gate
from imgindex.serving.live_index import LiveIndex
from imgindex.serving.metrics import Metrics
from imgindex.serving.routes import ROUTES, refused
from imgindex.serving.service import Service
from imgindex.serving.settings import ServiceSettings


class _UriConvertor(Convertor[str]):
    """A uri in the path of a request, whatever characters it has: also slashes and ends of lines."""

    regex = r"(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("uri", _UriConvertor())


def asgi_app(
    output: str | Path | LiveIndex,
    settings: ServiceSettings | None = None,
    *,
    model: str | Path | None = None,
) -> Starlette:
    """The search service of an index as an ASGI application, for any server that runs one.

    It opens the live generation when the server starts it, and then follows what is published.

    Args:
      output: the index's directory, or what has opened it already.
      settings: limits, and whether a token is wanted.
      model: as for `Index.open`.

    Raises:
      UsageError: a limit is not positive.
    """
    settings = settings or ServiceSettings()
    metrics = Metrics()
    app = Starlette(
        routes=[
            *(Route(path, handler, methods=[method]) for method, path, handler in ROUTES),
            Mount("/static", StaticFiles(packages=[("imgindex.serving", "static")]), name="static"),
        ],
        lifespan=_lifespan,
        exception_handlers={HTTPException: refused},
        middleware=[Middleware(Gate, settings=settings, metrics=metrics)],
    )
    # A redirect would lead to whatever the header Host names.
    app.router.redirect_slashes = False
    app.state.make = lambda: Service(
        output
        if isinstance(output, LiveIndex)
        else LiveIndex(str(output), None if model is None else str(model)),
        settings,
        metrics,
    )
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.service = service = await to_thread.run_sync(app.state.make)
    service.start()
    try:
        yield
    finally:
        await to_thread.run_sync(service.close)
