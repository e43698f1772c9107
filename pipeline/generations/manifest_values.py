"""The values that a manifest may hold: their types, their limits and how its schema describes them."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, Strict, WithJsonSchema

from imgindex.models.engines.registry import is_engine_name


def _number(value: Any) -> float:
    """A whole number stays one."""
    if type(value) is int and 0 <= value <= 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError("it is no number")


def _degree(value: Any) -> bool | float:
    if isinstance(value, bool) or 0 <= _number(value) <= 1:
        return value  # type: ignore[no-any-return]
    raise ValueError("it is no number from 0 to 1")


def _named_as_an_engine(name: str) -> str:
    if not is_engine_name(name):
        raise ValueError("no engine has such a name")
    return name


# Strict: pydantic would take "40" for 40 and true for 1. Only lists and objects of JSON become others here,
# tuples and dataclasses.
Text = Annotated[str, Strict()]
Switch = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, le=2**63)]
Dims = Annotated[int, Strict(), Field(ge=1, le=65_536)]
Level = Annotated[int, Strict(), Field(ge=0, le=255)]
Number = Annotated[float, PlainValidator(_number), WithJsonSchema({"type": "number"})]
Degree = Annotated[
    bool | float,
    PlainValidator(_degree),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": 0, "maximum": 1}]}),
]
EngineName = Annotated[
    Text,
    AfterValidator(_named_as_an_engine),
    WithJsonSchema({"type": "string", "pattern": r"^(?!auto$)[a-z][a-z0-9_-]{0,63}$"}),
]
Sha256 = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]{64}$")]
# A file of a generation lies in one of its folders. So no path leads out of it.
Path = Annotated[str, Strict(), Field(pattern=r"^[a-z]+/[A-Za-z0-9][A-Za-z0-9._-]*$")]


def about(text: str, **more: Any) -> Any:
    """A key's description in the schema, and what else the schema says of it."""
    return Field(description=text, **more)
