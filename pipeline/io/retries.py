"""Another try after errors that pass: of networks, of servers, of disks that are elsewhere.

Not with `apache_beam.utils.retry`: it is for Beam's internal use only, would have every search of a local
index load Beam, and does not look at how long an attempt has taken.
"""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds before each further attempt, of which chance takes off up to half: what failed together must not
# come back together.
_DELAYS = (0.5, 1.0, 2.0, 4.0)

# An attempt that took longer has been repeated by the client below: Beam's for S3 goes on for ten minutes,
# Google's for two.
_PATIENCE_SECONDS = 30.0

_LASTING_KINDS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_LASTING_CODES = frozenset({
    errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENOSPC,
    errno.ENOTSUP, errno.ENXIO, errno.EROFS,
})  # fmt: skip


def is_transient(error: OSError) -> bool:
    """Whether another attempt may succeed; it is also said of what nothing is known of."""
    return not isinstance(error, _LASTING_KINDS) and error.errno not in _LASTING_CODES


def retried(call: Callable[[], T]) -> T:
    """What `call` returns, which is called again, a few seconds in all, while it fails with transient errors.

    Raises the last OSError.
    """
    for delay in _DELAYS:
        started = time.monotonic()
        try:
            return call()
        except OSError as error:
            if not is_transient(error) or time.monotonic() - started > _PATIENCE_SECONDS:
                raise
            logger.debug("trying again: %s", error)
        time.sleep(delay * random.uniform(0.5, 1))
    return call()
