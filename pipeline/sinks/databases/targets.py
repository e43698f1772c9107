"""The databases that `imgindex push` writes to, a line each."""

import importlib
import re
from typing import TYPE_CHECKING

from imgindex.errors import MachineError, UsageError

if TYPE_CHECKING:
    from imgindex.sinks.databases.protocol import Database

# The module of this package that has the target's name speaks to it, by its function `connect`. The extra of
# imgindex with its client has that name, too.
TARGETS = {
    "milvus": "Milvus or Zilliz Cloud by its address, Milvus Lite by a path (token: MILVUS_TOKEN)",
    "pgvector": "PostgreSQL with pgvector, by postgresql://user@host/database (password: PGPASSWORD)",
    "qdrant": "Qdrant by its address, or a folder of its local mode (key: QDRANT_API_KEY)",
}

# Also passwords with characters that should have been encoded, such as a slash.
_SECRETS = re.compile(
    r"(?:^(?!\w+://)|://)[^:@/?#\s]*:[^@]+@|(?:^|[?&\s])(?:\w*password|passwd|token|api[-_]?key|secret)\s*=",
    re.IGNORECASE,
)


def connected(target: str, uri: str, *, make: bool) -> "Database":
    """Connects to the database `target` at `uri`; its module is loaded only now.

    Without `make`, nothing is made there that is missing.

    Raises:
      UsageError: there is no such target, or `uri` is none of its, or holds a password.
      MachineError: its client is not installed.
      OutputError: it does not answer, or refuses the credentials.
      NoDatabaseError: it is a folder without a database, and `make` is false.
    """
    if target not in TARGETS:
        raise UsageError(f"{target!r} is no database to push to; expected one of {', '.join(TARGETS)}")
    _refuse_secrets(target, uri)
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


def _refuse_secrets(target: str, uri: str) -> None:
    """Raises UsageError, which does not repeat it, for a URI with a password: others see command lines."""
    if _SECRETS.search(uri):
        variable = TARGETS[target].rpartition(" ")[2].rstrip(")")
        raise UsageError(
            f"the address of {target} holds a password or a key, which logs and other users may see; leave "
            f"it out and set the environment variable {variable}"
        )
