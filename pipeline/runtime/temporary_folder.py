"""Temporary folders that do not outlive the process, also where a signal ends it."""

import shutil
import tempfile
import weakref
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from imgindex.runtime import signals


class TemporaryFolder(tempfile.TemporaryDirectory[str]):
    """A new folder, which is deleted at the end of `with`, or when nobody holds the object any longer.

    A signal that ends the process by `signals.run` deletes it, too.
    """

    def __init__(self, prefix: str = "imgindex-", place: Path | None = None) -> None:
        """Makes a folder in `place`, by default in the one that ``TMPDIR`` names. Raises OSError."""
        super().__init__(prefix=prefix, dir=place)
        registered = ExitStack()
        registered.enter_context(signals.undone(partial(_delete, self.name)))
        weakref.finalize(self, registered.close)


def _delete(name: str) -> None:
    """Deletes the folder `name`, while threads may be making files in it."""
    with suppress(FileNotFoundError):
        # Under another name, threads make no more files in it.
        shutil.rmtree(Path(name).rename(f"{name}-deleted"), ignore_errors=True)
