"""The databases that `imgindex push` writes to, a line each."""

import importlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgindex.errors import MachineError, UsageError

if TYPE_CHECKING:
    from imgindex.sinks.databases.protocol import Database


@dataclass(frozen=True)
class Target:
    """What the command line says of a database, before its client is loaded."""

    text: str  # how its address is written
    secret: str  # the environment variable with the password, token or key
    index_kinds: tuple[str, ...]  # in its own words; the first is the default
    has_folders: bool = False  # whether it can be a folder of this machine, which one process writes to


# The module of this package that has the target's name speaks to it, by its function `connect`. The extra of
# imgindex with its client has that name, too.
TARGETS = {
    "milvus": Target(
        "Milvus or Zilliz Cloud by its address, Milvus Lite by a path",
        "MILVUS_TOKEN",
        ("HNSW", "IVF_FLAT", "FLAT", "AUTOINDEX"),
        has_folders=True,
    ),
    "pgvector": Target(
        "PostgreSQL with pgvector, by postgresql://user@host/database", "PGPASSWORD", ("hnsw", "ivfflat")
    ),
    "qdrant": Target(
        "Qdrant by its address, or a folder of its local mode", "QDRANT_API_KEY", ("hnsw",), has_folders=True
    ),
}

# Also passwords with characters that should have been encoded, such as a slash.
_SECRETS = re.compile(
    r"(?:^(?!\w+://)|://)[^:@/?#\s]*:[^@]+@|(?:^|[?&\s])(?:\w*password|passwd|token|api[-_]?key|secret)\s*=",
    re.IGNORECASE,
)

# What a variable that is not set leaves of an address. Clients take it for the current folder, or for this
# machine.
_NOWHERE = re.compile(r"\s*|\w+:/*(?::\d*)?/*\s*")


def checked_target(target: str, uri: str) -> Target:
    """What is known of a database. Raises UsageError: there is no such target, or `uri` holds a password."""
    if target not in TARGETS:
        raise UsageError(f"{target!r} is no database to push to; expected one of {', '.join(TARGETS)}")
    found = TARGETS[target]
    if _SECRETS.search(uri):
        raise secret_error(target)
    if found.has_folders and _NOWHERE.fullmatch(uri):
        raise UsageError(f"the address of {target} is {uri!r}, which names neither a host nor a folder")
    return found


def secret_error(target: str) -> UsageError:
    """That an address holds a password, which is not repeated: others see command lines."""
    return UsageError(
        f"the address of {target} holds a password or a key, which logs and other users may see; leave "
        f"it out and set the environment variable {TARGETS[target].secret}"
    )


def credential(target: str) -> str:
    """The token or key of a server, from the environment; empty where there is none.

    Raises UsageError where no request can hold it. Clients would repeat it in their messages.
    """
    variable = TARGETS[target].secret
    value = os.environ.get(variable, "")
    if not value.isprintable():
        raise UsageError(f"{variable} holds a line break, or another character that no key has; set it anew")
    return value


def checked_kind(target: str, kind: str | None) -> str | None:
    """The kind of index as `target` writes it; None where none was asked for. Raises UsageError."""
    if kind is None:
        return None
    known = {each.upper(): each for each in TARGETS[target].index_kinds}
    if kind.upper() not in known:
        raise UsageError(f"--index_kind is {kind!r}; {target} has {', '.join(known.values())} here")
    return known[kind.upper()]


def connected(target: str, uri: str, *, make: bool) -> "Database":
    """Connects to the database `target` at `uri`; its module is loaded only now.

    Without `make`, nothing is made there that is missing; where all is, its methods raise NoDatabaseError.

    Raises:
      UsageError: there is no such target, or `uri` is none of its, or holds a password.
      MachineError: its client is not installed.
      OutputError: it does not answer, or refuses the credentials.
    """
    checked_target(target, uri)
    try:
        module = importlib.import_module(f"imgindex.sinks.databases.{target}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("imgindex"):
            raise
        raise MachineError(
            f"{target} needs the extra {target}: pip install 'imgindex[{target}]' ({error.name} is missing)"
        ) from error
    database: Database = module.connect(uri, make=make)
    return database
