"""imgindex's own folder of the user's cache: all that it writes outside an output."""

import os
from pathlib import Path

from imgindex.errors import MachineError


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/imgindex``, by default ``~/.cache/imgindex``.

    Raises:
      MachineError: there is no home directory.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgindex"
    except RuntimeError as error:  # the user has no entry in the machine's list of users
        raise MachineError(
            "this user has no home directory for the cache of converted models: set XDG_CACHE_HOME to a "
            "folder that can be written"
        ) from error
