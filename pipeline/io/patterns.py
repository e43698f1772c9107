"""Patterns like those of .gitignore."""

import re
from collections.abc import Iterable

from pathspec import GitIgnoreSpec


def compiled(patterns: Iterable[str]) -> GitIgnoreSpec:
    """Patterns that can be matched. Raises ValueError for what is none."""
    # For Git a/** is what lies in a, and not a itself, which for pathspec it is where a is written a/.
    inside = (re.sub(r"/\*\*(/?)$", r"/**/*\1", pattern) for pattern in patterns)
    # Always the same engine, whatever else is installed.
    return GitIgnoreSpec.from_lines(inside, backend="simple")
