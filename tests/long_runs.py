"""Parameters of which only some are for every run of the tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def some_long(names: Iterable[str], *quick: str) -> list[Any]:
    """A test's parameters, of which all but the `quick` are left to long runs."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.long) for name in names]
