"""What a client did wrong, or cannot have now: each with its HTTP status and a stable code."""

from collections.abc import Mapping

# Characters of a message at most: it may repeat what a client has sent.
_MOST = 500


class RefusedError(Exception):
    """A request that is not answered."""

    def __init__(
        self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """`reason` is a stable code, and `message` a sentence for people. A long one loses its middle."""
        if len(message) > _MOST:
            message = f"{message[: _MOST // 2]} … {message[-_MOST // 2 :]}"
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.headers = dict(headers or {})


def bad_request(message: str) -> RefusedError:
    """A request that is not as the API has it."""
    return RefusedError(400, "bad_request", message)


def too_large(message: str) -> RefusedError:
    """A request that is more than the limits allow."""
    return RefusedError(413, "too_large", message)


def not_found(message: str) -> RefusedError:
    """What is asked for is not there."""
    return RefusedError(404, "not_found", message)


def busy(message: str) -> RefusedError:
    """There are too many requests already."""
    return RefusedError(429, "busy", message, {"Retry-After": "1"})
