"""For processes that another process of imgindex starts: they end with it."""

import ctypes
import signal

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def end_with_parent() -> None:
    """Has the system kill this process when the thread that started it ends, even if that is killed."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
