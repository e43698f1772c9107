"""What a service allows: limits of requests, and what is shown to whom."""

from dataclasses import dataclass, field, fields

from imgindex.errors import UsageError


@dataclass(frozen=True)
class ServiceSettings:
    """The limits of a service. Raises UsageError for one that is not positive."""

    max_bytes: int = 20 << 20  # of the body of a request
    max_pixels: int = 100_000_000  # of a query image
    max_k: int = 1000  # neighbors of a query
    max_vectors: int = 256  # queries of a request that are vectors
    max_images: int = 16  # queries of a request that are images, or uris
    max_requests: int = 64  # that are worked on at once
    max_connections: int = 2000  # that are open at once; `asgi_app` leaves it to its server
    seconds: float = 30.0  # for the body of a request to come in, and again for its answer
    images: bool = False  # whether original images are served
    hosts: tuple[str, ...] | None = None  # names that it may be reached by; None: by any
    token: str | None = field(default=None, repr=False)  # which requests must show, where there is one

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise UsageError(f"{each.name} is {value}; expected a number above 0")
        if self.token is None:
            return
        if len(self.token) < _SHORTEST_TOKEN or not self.token.isascii():
            raise UsageError(f"the token must be at least {_SHORTEST_TOKEN} ASCII characters long")
        if self.token != self.token.strip() or not self.token.isprintable():
            raise UsageError(
                "the token begins or ends with a space, or has a line break or a control character, which no "
                "request can send; make it of letters and digits"
            )


_SHORTEST_TOKEN = 16
