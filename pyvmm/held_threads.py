"""Deferred start of threads until the process is confined: Landlock rules and capabilities belong to a thread, and
are inherited only by threads that it starts later.

    hold() ... start(writer) ... start(other) ... confine ... release(): both start
"""

from __future__ import annotations

import threading

_held: list[threading.Thread] | None = None


def start(thread: threading.Thread) -> None:
    """Start `thread`, or have it started by `release`."""
    if _held is None:
        thread.start()
    else:
        _held.append(thread)


def hold() -> None:
    """Hold threads back from now on."""
    global _held
    if _held is None:
        _held = []


def release() -> None:
    """Start the threads held back, and hold back no more. Harmless at any time: call it before waiting for one."""
    global _held
    held, _held = _held, None
    for thread in held or ():
        thread.start()
