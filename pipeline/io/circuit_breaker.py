"""Tells a storage that is out of order from files that are: a run that reads nothing more must end."""

import contextlib
import threading
from collections.abc import Iterator

from imgindex.errors import InputError
from imgindex.io.retries import is_transient
from imgindex.text import printable

# So many reads in a row that have failed, each after its retries, are no accident.
LIMIT = 32


class Reads:
    """How the last reads of the input went, those of all threads of a process together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed = 0

    @contextlib.contextmanager
    def watched(self, path: str) -> Iterator[None]:
        """Notes how the read of `path` in the block ends, whose OSErrors pass through.

        Raises:
          InputError: as many as `LIMIT` have failed for reasons that should have passed, none has succeeded
            between, and this was the last of them; the count begins anew then.
        """
        try:
            yield
        except OSError as error:
            if is_transient(error) and self._count_failure() >= LIMIT:
                self._forget()
                raise InputError(
                    f"the input's storage is out of order: {LIMIT} reads in a row have failed, the last, of "
                    f"{printable(path)}, with {error.strerror or error}; what was embedded is kept, build "
                    "again when it is back"
                ) from error
            raise
        self._forget()

    def _count_failure(self) -> int:
        with self._lock:
            self._failed += 1
            return self._failed

    def _forget(self) -> None:
        with self._lock:
            self._failed = 0


# Beam pickles what runs in its workers: one in this process must find these counts here.
READS = Reads()
