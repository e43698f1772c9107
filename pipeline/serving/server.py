"""Runs the service in this process, until a signal stops it gracefully."""

import asyncio
import logging
import socket
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from imgindex.errors import MachineError, UsageError
from imgindex.runtime import signals
from imgindex.serving.settings import ServiceSettings

# Seconds for the head of a request to come in at most, and for a connection to stay open without one.
_HEAD_SECONDS = 10.0
_IDLE_SECONDS = 15

# Connections that wait to be taken.
BACKLOG = 2048


class _ImpatientProtocol(H11Protocol):
    """Closes a connection on which the head of a request does not come in. uvicorn itself waits for ever."""

    def __init__(self, settings: ServiceSettings, **given: Any) -> None:
        """Of a service with such limits; `given` is what uvicorn gives."""
        super().__init__(**given)
        self._head_seconds = min(_HEAD_SECONDS, settings.seconds)
        self._head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        if self._is_working():
            self._forget()
        elif self._head is None:
            self._head = self.loop.call_later(self._head_seconds, self._give_up)

    def _is_working(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        self._head = None
        if not self._is_working():
            self.transport.abort()

    def _forget(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


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

    A second signal ends the process at once.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=partial(_ImpatientProtocol, settings),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            log_level=logging.WARNING,
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
