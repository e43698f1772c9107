"""The arguments of `imgindex serve`."""

import argparse

from imgindex.commands.argument_values import whole_number
from imgindex.serving.settings import ServiceSettings


def add_serve(serve: argparse.ArgumentParser) -> None:
    """Adds them."""
    serve.epilog = (
        "The environment variable IMGINDEX_TOKEN may hold a token, which every request must show then. "
        "SIGTERM and Ctrl-C stop the service after the requests that have begun. Exit codes: 0 stopped; 2 "
        "bad usage; 3 the index or this machine is not fit."
    )
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    serve.add_argument(
        "--port", metavar="N", type=whole_number, default=8000, help="0 takes a free one (default: 8000)"
    )
    serve.add_argument(
        "--allow_host", metavar="NAME", action="append", default=[],
        help="a name that the service may be reached by, such as a proxy's; may be repeated. Without a "
        "token, a service on a loopback address answers only to its address, localhost and these names",
    )  # fmt: skip
    serve.add_argument("--images", action="store_true", help="also show the original files of indexed images")
    serve.add_argument(
        "--model",
        metavar="FILE",
        help="the index's .keras model, .h5 weights or preset, where it has moved",
    )
    limits = {
        "max_bytes": "bytes of a request",
        "max_pixels": "pixels of a query image",
        "max_k": "neighbors of a query",
        "max_vectors": "vectors of a request",
        "max_requests": "requests that are worked on at once; more are answered with 429",
        "max_connections": "connections that are open at once; more are answered with 503",
    }
    for name, text in limits.items():
        most = getattr(ServiceSettings, name)
        serve.add_argument(
            f"--{name}", metavar="N", type=whole_number, default=most, help=f"{text} (default: {most:,})"
        )
    seconds = ServiceSettings.seconds
    serve.add_argument(
        "--timeout", metavar="S", type=float, default=seconds, help="seconds for a request to come in, and "
        f"again for its answer (default: {seconds:g})",
    )  # fmt: skip
