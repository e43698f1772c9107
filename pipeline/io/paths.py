"""Paths that people give, settled once: a later step may run elsewhere, or in another directory."""

import os

from imgindex.io.filesystem import is_local


def absolute(path: str) -> str:
    """`path` as an absolute one, with ``~`` expanded; one with a scheme, such as ``s3://``, as it is."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path
