"""Filters: which images of an index a search may answer with, by their label and their uri.

A filter is one condition, or several that must all hold. A condition is a field, an operator and values::

    label=ketch             the label is ketch
    label=ketch,anchor      the label is one of both
    label=                  the image has no label
    uri^=boats/             the uri begins with boats/
    uri^=boats/,planes/     it begins with one of both

The fields are `label` and `uri`, and both operators go with both. A backslash before a comma or a backslash
makes it a part of a value.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imgindex.errors import UsageError
from imgindex.uris import uri_of

Items = npt.NDArray[np.int64]

_FIELDS = ("label", "uri")
_CONDITION = re.compile(r"\s*(?P<field>[A-Za-z_]*)\s*(?P<operator>\^?=)(?P<values>.*)", re.DOTALL)
_EXPECTED = "expected one such as label=ketch,anchor or uri^=boats/"


@dataclass(frozen=True)
class Condition:
    """A condition on one field of an image."""

    field: str  # label or uri
    is_prefix: bool  # whether values are compared with the beginning of the field alone
    values: tuple[str, ...]  # one of which must fit; "" is also the label of an image that has none

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Reads a condition. Raises UsageError."""
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is no condition; {_EXPECTED}")
        field = match["field"]
        if field not in _FIELDS:
            nearest = difflib.get_close_matches(field.lower(), _FIELDS, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; {_EXPECTED}"
            raise UsageError(f"the condition {text!r} is on {field!r}, not on label or uri{hint}")
        return cls(field, match["operator"] == "^=", tuple(map(uri_of, _split(match["values"]))))

    def holds(self, metadata: pa.Table) -> pa.ChunkedArray:
        """For each row of a table of metadata, whether it fulfills the condition: booleans without nulls."""
        column = pc.fill_null(metadata[self.field], "")
        if self.is_prefix:
            return reduce(pc.or_, (pc.starts_with(column, pattern=value) for value in self.values))
        return pc.is_in(column, value_set=pa.array(self.values, column.type))


@dataclass(frozen=True)
class Filter:
    """Conditions that must all hold."""

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, texts: str | Sequence[str]) -> "Filter":
        """Reads one condition or several. Raises UsageError."""
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"where is {texts!r}; expected a condition or a list of them; {_EXPECTED}")
        return cls(tuple(map(Condition.parse, texts)))

    def items(self, metadata: pa.Table) -> Items:
        """The rows of a table of metadata that fulfill all conditions, in ascending order."""
        fulfilled = reduce(pc.and_, (condition.holds(metadata) for condition in self.conditions))
        found: Items = pc.indices_nonzero(fulfilled).to_numpy().astype(np.int64)
        return found


def filter_of(where: str | Sequence[str] | None) -> Filter | None:
    """The filter that conditions make; None where there are none. Raises UsageError."""
    if where is None:
        return None
    parsed = Filter.parse(where)
    return parsed if parsed.conditions else None


def _split(values: str) -> list[str]:
    """Values at the commas between them, without the backslashes before commas and backslashes."""
    parts: list[list[str]] = [[]]
    for token in re.findall(r"\\[\\,]|.", values, re.DOTALL):
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token[1:] or token)
    return list(map("".join, parts))
