"""Loaded by every Python process of a build under test."""

import sys

if "imgindex.models.decoder" not in sys.orig_argv:  # a decoder needs no stand-ins
    import stand_ins  # noqa: F401
