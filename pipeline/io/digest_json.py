"""JSON that carries its own digest, so that no value of it is altered unnoticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGEST = "digest"


def seal(content: Mapping[str, Any]) -> bytes:
    """`content` as JSON for people to read, with the SHA-256 of all else under ``digest``."""
    sealed = {**content, _DIGEST: _digest_of(content)}
    return (json.dumps(sealed, indent=2, ensure_ascii=False) + "\n").encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Reads `seal`'s bytes. Raises ValueError for anything else."""
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if content.get(_DIGEST) != _digest_of(content):
            raise ValueError("its values do not match its digest")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return content


def _digest_of(content: Mapping[str, Any]) -> str:
    """The SHA-256 of what `content` says, however it is laid out."""
    rest = {key: value for key, value in content.items() if key != _DIGEST}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
