"""Databases that are folders of this machine: which folder an address names, and whose it is."""

import re
from pathlib import Path

from imgindex.errors import OutputError, UsageError
from imgindex.generations.layout import Output
from imgindex.io import filesystem

_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")


class NoDatabaseError(OutputError):
    """There is no database in a folder, and none is to be made."""


def local_folder(uri: str, kind: str, mark: str, *, make: bool) -> Path:
    """The folder that `uri` names, absolute; new or empty, or one of the database `kind`, which has `mark`.

    Raises:
      UsageError: `uri` is an address, or the folder is something else's.
      NoDatabaseError: no database is there, and `make` is false.
    """
    if _HOST_AND_PORT.fullmatch(uri):
        raise UsageError(f"{uri} is read as a path of {kind}; if it is a server, write http://{uri}")
    folder = Path(uri).expanduser().absolute()
    for parent in (folder, *folder.parents):
        if filesystem.exists(Output(str(parent)).current):
            raise UsageError(f"{uri} lies in the index {parent}; choose a place outside of it")
    if not filesystem.exists(str(folder.parent)):
        raise UsageError(f"{uri} cannot be made: {folder.parent} is not there")
    held = set()
    if filesystem.exists(str(folder)):
        with filesystem.as_output_error("list", str(folder)):
            held = {path.name for path in folder.iterdir()}
    if held and mark not in held:
        raise UsageError(f"{uri} holds {min(held)} and no database of {kind}; choose a new folder")
    if not held and not make:
        raise NoDatabaseError(f"{uri} holds no database of {kind}; `imgindex push` makes it")
    return folder
