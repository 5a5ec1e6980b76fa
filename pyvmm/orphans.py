"""No process left over: a child that ends when its parent does, however that ends.

Source: prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """For `preexec_fn`: get signal `number` when `parent` (the pid before the fork) ends.

    Strictly it comes when the *thread* that forked ends: start such children from a thread that lasts.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), number)
