"""File names as uris: any bytes that a name may hold, as text that can be encoded, stored and printed.

Python gives the bytes of a name that are not UTF-8 as lone surrogates, which neither JSON nor Parquet can
hold. A uri has characters of private use for them, U+10DC80 to U+10DCFF. A name that really holds one of
those has each of that character's bytes written in the same way, so that no two names share a uri.
"""

import re

# What a byte is added to: by Python in a name, and in a uri.
_IN_NAMES, _IN_URIS = 0xDC00, 0x10DC00

_NOT_IN_URIS = re.compile("[\udc80-\udcff\U0010dc80-\U0010dcff]")
_STAND_INS = re.compile("[\U0010dc80-\U0010dcff]+")


def uri_of(name: str) -> str:
    """The uri of a file's name, or of a path, as Python gives it."""
    return _NOT_IN_URIS.sub(lambda match: _stand_ins(match[0]), name)


def name_of(uri: str) -> str:
    """The name, or path, as Python takes it, whose uri is `uri`."""
    return _STAND_INS.sub(lambda match: _bytes_of(match[0]).decode("utf-8", "surrogateescape"), uri)


def byte_of(character: str) -> int | None:
    """The byte that `character`, of a name or of a uri, stands for; None where it stands for itself."""
    for base in (_IN_NAMES, _IN_URIS):
        if 0x80 <= ord(character) - base <= 0xFF:
            return ord(character) - base
    return None


def _stand_ins(character: str) -> str:
    return "".join(chr(_IN_URIS + byte) for byte in character.encode("utf-8", "surrogateescape"))


def _bytes_of(stand_ins: str) -> bytes:
    return bytes(ord(character) - _IN_URIS for character in stand_ins)
