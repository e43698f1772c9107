"""Runs the service in this process, until a signal stops it gracefully."""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from imgindex.errors import MachineError, UsageError
from imgindex.runtime import signals
from imgindex.runtime.resources import allow_open_files
from imgindex.serving.errors import RefusedError, bad_request
from imgindex.serving.limits import error_body
from imgindex.serving.settings import ServiceSettings

# Seconds for the head of a request to come in at most, and for a connection to stay open without one.
_HEAD_SECONDS = 10.0
_IDLE_SECONDS = 15

# Connections that wait to be taken. All of them may be taken at once, before any of them is read from.
BACKLOG = 512

# Seconds that a client which is turned away has to read why.
_FAREWELL_SECONDS = 1.0


class _ImpatientProtocol(H11Protocol):
    """Closes a connection on which the head of a request does not come in, or whose client takes no answer.

    uvicorn itself waits for ever. If there are too many connections, the one that has waited longest for a
    request is closed. If none waits, the new one is told to come back.
    """

    def __init__(
        self, settings: ServiceSettings, waiting: "dict[_ImpatientProtocol, None]", **given: Any
    ) -> None:
        """Of a service with such limits.

        Args:
          settings: the limits.
          waiting: the connections of the service that wait for a request, the longest first.
          given: what uvicorn gives.
        """
        super().__init__(**given)
        self._settings = settings
        self._waiting = waiting
        self._head, self._taking = _Timer(self.loop), _Timer(self.loop)
        self._is_turned_away = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # What the system does not take at once makes uvicorn wait, and begins the time for it.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self._settings.max_connections:
            longest = next(iter(self._waiting), None)
            if longest is None:
                self._turn_away()
                return
            del self._waiting[longest]
            longest.transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        if not self._is_turned_away:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_working():  # the next request may be there already
            self._waiting.setdefault(self)

    def send_400_response(self, msg: str) -> None:
        # An answer that has begun cannot become another one.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_closing(bad_request("this is no HTTP request that can be read")))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking.start(self._settings.seconds, self._drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._waiting.pop(self, None)
        self._head.stop()
        self._taking.stop()

    def _drop(self) -> None:
        # The system, too, holds what is not taken, some MiB of it, and would go on to offer it.
        at_once = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.transport.abort()

    def _turn_away(self) -> None:
        self._is_turned_away = True
        if len(self.connections) > self._settings.max_connections + BACKLOG:
            self.transport.abort()
            return
        self.transport.write(_FULL)
        # If it were closed with something unread, the system would throw away what was written.
        self.transport.write_eof()
        self._head.start(_FAREWELL_SECONDS, self.transport.abort)

    def _watch(self) -> None:
        if self._is_working():
            self._waiting.pop(self, None)
            self._head.stop()
        else:
            self._waiting.setdefault(self)
            self._head.start(min(_HEAD_SECONDS, self._settings.seconds), self._give_up)

    def _is_working(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        self._head.stop()
        if not self._is_working():
            self.transport.abort()


class _Timer:
    """Calls a function after some seconds, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, function: Callable[[], None]) -> None:
        """Begins, where it has not begun."""
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, function)

    def stop(self) -> None:
        """Ends it; it may begin again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def _closing(error: RefusedError) -> bytes:
    """The answer to a request that reaches no application, and after which the connection is closed."""
    body = error_body(error)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers,
    }
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    start = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
    return f"{start}{''.join(lines)}\r\n".encode() + body


_FULL = _closing(RefusedError(503, "busy", "too many connections are open; try again", {"Retry-After": "1"}))


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound to where the service will be; port 0 takes a free one.

    Raises:
      UsageError: there is no such host or port.
      MachineError: it is taken, or may not be used.
    """
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port is {port}; expected a number from 0 to 65535")
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise UsageError(f"--host {host} cannot be resolved: {error.strerror}") from error
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise MachineError(
            f"cannot listen on {host}, port {port}: {error.strerror}; name another with --host and --port"
        ) from error
    return made


def serve(app: ASGIApp, opened: socket.socket, settings: ServiceSettings) -> None:
    """Answers on a bound socket until SIGINT or SIGTERM; requests that have begun are answered first.

    A second signal ends the process at once. Raises MachineError where too few files may be open at once.
    """
    allow_open_files(settings.max_connections + 2 * BACKLOG)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=partial(_ImpatientProtocol, settings, {}),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            # Not a line for each request that is none: whoever sends them would fill the log.
            log_level=logging.ERROR,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=round(settings.seconds) + 1,
        )
    )

    def stop() -> None:
        server.should_exit = True

    with signals.stopped_by(stop):
        asyncio.run(server.serve([opened]))
