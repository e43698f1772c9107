"""The JSON Schemas of a config, a manifest and an evaluation: for editors, and for programs that read them.

They lie in this folder as files. ``python -m imgindex.schemas config`` prints one as the code has it.
"""

from typing import Any

from imgindex.config import Config
from imgindex.config.json_schema import json_schema
from imgindex.evaluation.results import Evaluation
from imgindex.generations.manifest import SCHEMA_VERSION, Manifest
from imgindex.io.asked_files import JSON_GENERATOR

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """The JSON Schema of a config file."""
    schema = json_schema(Config)
    keys = {
        # A file may say `pca:` and no more.
        key: {"anyOf": [value, {"type": "null"}]} if "$ref" in value else value
        for key, value in schema["properties"].items()
    }
    return {"$schema": _DIALECT, **schema, "properties": keys}


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of a generation's ``manifest.json``."""
    schema = json_schema(Manifest)
    sealed = {
        "schema_version": {"const": SCHEMA_VERSION, "description": "The version of this format."},
        "digest": {"type": "string", "description": "The SHA-256 of all else, as canonical JSON."},
    }
    return {
        "$schema": _DIALECT,
        **schema,
        "properties": sealed | schema["properties"],
        "required": [*sealed, *schema["required"]],
    }


def evaluation_schema() -> dict[str, Any]:
    """The JSON Schema of what ``imgindex evaluate --json`` writes."""
    schema = json_schema(Evaluation)
    marked = {
        key: {"const": value, "description": "The program that wrote the file."}
        for key, value in JSON_GENERATOR.items()
    }
    return {
        "$schema": _DIALECT,
        **schema,
        "properties": marked | schema["properties"],
        "required": [*marked, *schema["required"]],
    }


SCHEMAS = {"config": config_schema, "manifest": manifest_schema, "evaluation": evaluation_schema}
