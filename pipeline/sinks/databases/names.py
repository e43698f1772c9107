"""Names of collections: what clients ask a database for, and what that leads to."""

import re

from imgindex.errors import UsageError

# What clients ask for, where nothing else is said.
DEFAULT_NAME = "imgindex"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# What the name of a collection has beside that of its alias, as _20260101T000000Z_0123abcd.
_GENERATION_LENGTH = 26
_OF_GENERATION = re.compile(r"_[0-9]{8}T[0-9]{6}Z_[0-9a-f]{8}")


def checked_name(name: str, longest: int) -> str:
    """`name`, which clients use, and which is the beginning of the names of its collections.

    Raises UsageError where it, or what `collection_name` makes of it, is longer than `longest`.
    """
    most = longest - _GENERATION_LENGTH
    if not _NAME.fullmatch(name) or len(name) > most:
        raise UsageError(
            f"--collection is {name!r}; expected at most {most} letters, digits and underscores, of which "
            "the first is no digit"
        )
    return name


def collection_name(name: str, generation: str) -> str:
    """The collection of a generation: its name after that of the alias, without the hyphen."""
    return f"{name}_{generation.replace('-', '_')}"


def is_collection_of(name: str, collection: str) -> bool:
    """Whether `collection` has such a name as `collection_name` gives."""
    return collection.startswith(name) and bool(_OF_GENERATION.fullmatch(collection[len(name) :]))
