"""The media type of an image's file, by its first bytes: no code that may fail over them runs here."""

import re

# Those that browsers show. An SVG may hold scripts, and is none of them.
_STARTS = (
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/gif", re.compile(rb"GIF8[79]a")),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("image/avif", re.compile(rb"....ftypavi[fs]", re.DOTALL)),
    ("image/bmp", re.compile(rb"BM")),
)


def media_type(data: bytes) -> str:
    """The media type of an image that browsers show; else one that they save to a file."""
    found = (kind for kind, start in _STARTS if start.match(data))
    return next(found, "application/octet-stream")
