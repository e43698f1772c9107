"""Databases that are folders of this machine: which folder an address names, and whose it is."""

import re
from pathlib import Path

from imgindex.errors import UsageError
from imgindex.generations.layout import Output
from imgindex.io import filesystem

_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")


def local_folder(uri: str, kind: str, mark: str) -> tuple[Path, bool]:
    """The folder that `uri` names, absolute, and whether a database `kind` is there, which has `mark`.

    Without a database, the folder is new or empty. Raises UsageError: `uri` is the address of a server, or
    the folder is something else's.
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
            try:
                held = {path.name for path in folder.iterdir()}
            except NotADirectoryError as error:
                raise UsageError(
                    f"{uri} is a file, and {kind} keeps a database in a folder; choose a new one"
                ) from error
    if held and mark not in held:
        raise UsageError(f"{uri} holds {min(held)} and no database of {kind}; choose a new folder")
    return folder, bool(held)
