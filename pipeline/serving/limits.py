"""What stands before every route: the token, the limits of bodies and of time, headers, and what is counted.

It is ASGI without a framework, for a framework reads bodies before it can be asked how large they may be.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import re
import time
from collections.abc import Sequence
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imgindex.errors import ImgindexError, foreseen
from imgindex.serving.errors import RefusedError, busy, too_large
from imgindex.serving.metrics import Metrics
from imgindex.serving.settings import ServiceSettings

logger = logging.getLogger(__name__)

COOKIE = "imgindex_session"

# What a browser may do with an answer that is no page: nothing but show it.
_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
}

# Answered without a token: nothing of the index is in them, and the page asks for the token.
_OPEN = ("/", "/healthz", "/readyz", "/session", "/openapi.json")
_OPEN_FOLDER = "/static/"

# What is taken of a client that sends too much, so that it can read that it has: in the most of a request.
_DRAINED, _DRAIN_SECONDS = 4, 5.0

# The status that a request counts as whose client has gone: nginx's "client closed request".
_GONE = 499

# Bytes of all bodies at once, in the most of one.
_HELD = 16


class Gate:
    """The middleware of a service."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer, body = _Answer(send), _Body(receive, self)
        started = time.monotonic()
        reason: str | None = None
        try:
            _check_framing(scope)
            self._check_host(scope)
            self._check_token(scope)
            # What a client takes that sends its body, and reads its answer, as slowly as it may.
            async with asyncio.timeout(3 * self._settings.seconds):
                await self._app(scope, body, answer)
        except RefusedError as error:
            reason = error.reason
            if error.status == 413:
                await body.drain()
            await answer.refuse(error)
        except TimeoutError:
            reason = "timeout"
            await answer.refuse(_late())
        except ClientDisconnect:
            reason, answer.status = "disconnected", _GONE
        except Exception as error:
            reason = "internal"
            await answer.refuse(_internal(error))
        finally:
            body.let_go()
        self._metrics.answered(_route_of(scope), answer.status, reason, time.monotonic() - started)

    def _check_host(self, scope: Scope) -> None:
        names = self._settings.hosts
        if names is None:
            return
        for header, value in scope["headers"]:
            if header == b"host" and not is_own_host(value.decode("latin-1"), names):
                told = value.decode("latin-1")[:80]
                raise RefusedError(
                    421, "wrong_host",
                    f"this service is not to be reached as {told}; use its address or localhost, or start it "
                    "with --allow_host NAME",
                )  # fmt: skip

    def _check_token(self, scope: Scope) -> None:
        token = self._settings.token
        path = scope["path"]
        if token is None or path in _OPEN or path.startswith(_OPEN_FOLDER):
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not is_shown(headers, token):
            raise RefusedError(
                401, "unauthorized", "this service wants the header Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def hold(self, count: int) -> None:
        """Counts bytes of bodies whose requests are under way. Raises RefusedError where there are too many.

        It is bytes that count, and not bodies: whoever only begins to send costs nothing, and must not keep
        others out.
        """
        self._held += count
        if self._held > _HELD * self._settings.max_bytes:
            raise busy("too much is being received; try again")

    def let_go(self, count: int) -> None:
        """Counts them no more."""
        self._held -= count

    @property
    def settings(self) -> ServiceSettings:
        """The limits."""
        return self._settings


class _Body:
    """Receives the body of a request within the limits."""

    def __init__(self, receive: Receive, gate: Gate) -> None:
        self._receive = receive
        self._gate = gate
        self._size = self._held = 0
        self._end: float | None = None
        self._is_over = False

    async def __call__(self) -> Message:
        if self._is_over:
            return await self._receive()  # whether the client has gone
        settings = self._gate.settings
        if self._end is None:
            self._end = time.monotonic() + settings.seconds
        try:
            async with asyncio.timeout(self._end - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            raise RefusedError(
                408, "slow", f"the request did not come in within {settings.seconds:g} seconds"
            ) from error
        self._count(message)
        self._held += len(message.get("body", b""))
        self._gate.hold(len(message.get("body", b"")))
        if self._size > settings.max_bytes:
            raise too_large(f"the request has more than {settings.max_bytes} bytes")
        return message

    def let_go(self) -> None:
        """Has its bytes counted no more."""
        self._gate.let_go(self._held)

    async def drain(self) -> None:
        """Takes what a client still sends, for it may not look for the answer before; but not for ever."""
        most = _DRAINED * self._gate.settings.max_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._is_over and self._size < most:
                    self._count(await self._receive())

    def _count(self, message: Message) -> None:
        self._size += len(message.get("body", b""))
        self._is_over = message["type"] != "http.request" or not message.get("more_body", False)


class _Answer:
    """Sends an answer with the headers that all have, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500
        self._has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            self.status = message["status"]
            own = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            kept = [(name, value) for name, value in more if name not in own]
            message = {**message, "headers": [*message["headers"], *kept]}
        await self._send(message)

    async def refuse(self, error: RefusedError) -> None:
        """Answers with an error. Raises it where an answer has begun, which ends the connection."""
        if self._has_begun:
            raise error
        content = error_body(error)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            "cache-control": "no-store",
            **({"connection": "close"} if error.status in (408, 413) else {}),
            **error.headers,
        }
        await self(
            {
                "type": "http.response.start",
                "status": error.status,
                "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await self({"type": "http.response.body", "body": content})


def error_body(error: RefusedError) -> bytes:
    """The JSON that a client gets for an error."""
    told = {"status": error.status, "reason": error.reason, "message": error.message}
    return json.dumps({"error": told}, ensure_ascii=True).encode()


def is_own_host(host: str, names: Sequence[str]) -> bool:
    """Whether the header Host names this machine, or one of `names`.

    A page elsewhere may have its name lead to this machine, and then read what the service answers. It can
    do so only by a name: an address is what it is, and browsers look up localhost themselves.
    """
    name = _PORT.sub("", host).rstrip(".").lower()
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    return name == "localhost" or name.endswith(".localhost") or name in names


_PORT = re.compile(r":\d*$")


def is_shown(headers: dict[bytes, str], token: str) -> bool:
    """Whether a request shows the token, or the cookie that stands for it."""
    scheme, _, given = headers.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
        return True
    try:
        cookie = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
    except CookieError:
        return False
    return cookie is not None and hmac.compare_digest(cookie.value.encode(), session_of(token).encode())


def session_of(token: str) -> str:
    """What the cookie holds of whoever has shown the token: it does not tell the token."""
    return hmac.new(token.encode(), b"imgindex session", sha256).hexdigest()


def _check_framing(scope: Scope) -> None:
    """Refuses a request whose end is not certain. A proxy may see it elsewhere, and let another pass unseen.

    See RFC 9112, section 6.3.
    """
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        raise RefusedError(
            400, "bad_request", "a request may have Content-Length or Transfer-Encoding, but not both",
            {"Connection": "close"},
        )  # fmt: skip


def _route_of(scope: Scope) -> str:
    """The name of a request's route: one of a few."""
    endpoint = scope.get("endpoint")
    return "none" if endpoint is None else getattr(endpoint, "__name__", "static")


def _late() -> RefusedError:
    return RefusedError(503, "timeout", "the answer took too long; try again", {"Retry-After": "1"})


def _internal(error: Exception) -> RefusedError:
    told: ImgindexError | None = foreseen(error)
    if told is None:
        logger.error("a request failed", exc_info=error)
        return RefusedError(500, "internal", "the service failed; its log says why")
    # What an operator has to mend, as a backbone that is not there; a path in it is no news for clients.
    logger.error("a request failed: %s", told)
    return RefusedError(503, "unavailable", "the service cannot answer now; its log says why")
