"""What a process does that is the child of another one of imgindex."""

import ctypes
import signal

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def end_with_parent() -> None:
    """Has this process killed when the thread ends that has started it, also where its process is killed."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
