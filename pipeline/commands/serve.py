"""The command `imgindex serve`."""

import argparse
import ipaddress
import os
import sys
from dataclasses import replace

from imgindex.errors import MachineError

try:
    from imgindex.serving.app import asgi_app
    from imgindex.serving.live_index import LiveIndex
    from imgindex.serving.server import BACKLOG, bound_socket, serve
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "prometheus_client", "anyio"):
        raise
    raise MachineError(
        f"imgindex serve needs the package {error.name}; run pip install 'imgindex[serve]'"
    ) from error

from imgindex.serving.settings import ServiceSettings
from imgindex.text import counted

# The environment variable that holds the token: a command line can be read by everyone on a machine.
TOKEN = "IMGINDEX_TOKEN"


def run(known: argparse.Namespace) -> None:
    """Serves an index until a signal comes."""
    settings = ServiceSettings(
        max_bytes=known.max_bytes,
        max_pixels=known.max_pixels,
        max_k=known.max_k,
        max_vectors=known.max_vectors,
        max_requests=known.max_requests,
        max_connections=known.max_connections,
        seconds=known.timeout,
        images=known.images,
        token=os.environ.get(TOKEN),
    )
    with bound_socket(known.host, known.port) as opened:
        live = LiveIndex(known.output, known.model)
        opened.listen(BACKLOG)  # so that whoever reads the address can connect
        host, port = opened.getsockname()[:2]
        is_local = ipaddress.ip_address(host).is_loopback
        if known.allow_host or (is_local and settings.token is None):
            names = [known.host, *known.allow_host]
            settings = replace(settings, hosts=tuple(name.lower() for name in names))
        if settings.token is None and not is_local:
            print(
                f"imgindex: everyone who can reach this machine can search and see the pictures; set {TOKEN} "
                "to ask for a token",
                file=sys.stderr,
            )
        place = f"[{host}]" if ":" in host else host
        print(
            f"generation {live.current.generation}: {counted(live.current.manifest.items, 'image')}\n"
            f"http://{place}:{port}/ (Ctrl-C to stop)",
            flush=True,
        )
        serve(asgi_app(live, settings), opened, settings)
