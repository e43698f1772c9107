"""JSON Schemas of dataclasses."""

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema


class _WithOwnTitles(GenerateJsonSchema):
    """Gives a key no title but one of its own: pydantic's is the key again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON Schema of what pydantic reads as a `kind`."""
    return TypeAdapter(kind).json_schema(schema_generator=_WithOwnTitles)
