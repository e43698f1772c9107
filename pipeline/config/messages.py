"""Mistakes in a config in words: the key, what was given, what was expected, the nearest valid key."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from imgindex.text import printable

# A short file of aliases may stand for more than fits into memory.
_abridged = reprlib.Repr()
_abridged.maxlevel, _abridged.maxstring, _abridged.maxother = 2, 200, 200


def shown(value: Any) -> str:
    """`value` as messages show it."""
    try:
        return _abridged.repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits, but 1:1:1:… makes one
        return "a number of too many digits"


def brief(text: str) -> str:
    """`text` on one line and not endless."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= 300 else f"{line[:299]}…"


def refusal(section: str, schema: Mapping[str, Any], mistake: Mapping[str, Any]) -> str:
    """What is wrong with a section's settings, or with the whole config where `section` is empty.

    Args:
      section: its key.
      schema: its JSON Schema, which says what is expected.
      mistake: one of those that pydantic's `ValidationError.errors` lists.
    """
    where, given, prefix = mistake["loc"], mistake["input"], f"{section}." if section else ""
    keys = [f"{prefix}{key}" for key in schema["properties"]]
    if not where:
        return f"config section {section!r} must hold keys, got {shown(given)}"
    if where[0] not in schema["properties"]:
        given = f"{prefix}{where[0]}"
        return f"unknown config {'key' if section else 'section'} {shown(given)}{_nearest(given, keys)}"
    if mistake["type"] == "value_error":  # one of our own checks, which says what is wrong
        return f"{prefix}{where[0]}: {mistake['ctx']['error']}"
    key, allowed = f"{prefix}{where[0]}", schema["properties"][where[0]]
    if isinstance(where[-1], int):  # the number of a list's item
        key, allowed = f"{key}[{where[-1]}]", allowed["items"]
    return f"{key} is {shown(given)}; expected {_expected(allowed)}"


def _nearest(given: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    matches = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; expected one of {', '.join(valid)}"


_NOUNS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "null": "null",
    "array": "a list of texts",
}


def _expected(schema: Mapping[str, Any]) -> str:
    """The values that a JSON Schema allows, in words."""
    if "anyOf" in schema and "type" not in schema:
        return " or ".join(map(_expected, schema["anyOf"]))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    noun = schema.get("title", _NOUNS[schema["type"]])
    if "minimum" in schema:
        return f"{noun} from {schema['minimum']} to {schema['maximum']}"
    if "exclusiveMinimum" in schema:
        return f"{noun} between {schema['exclusiveMinimum']} and {schema['exclusiveMaximum']}"
    return f"{noun} that is not empty" if "minItems" in schema else noun
