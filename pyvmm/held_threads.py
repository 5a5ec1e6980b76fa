"""Deferred start of threads until the process is confined: Landlock rules and capabilities belong to a thread, and
are inherited only by threads that it starts later.

    hold() ... start(writer) ... start(other) ... confine ... release(): both start
"""

from __future__ import annotations

import threading

_held: list[threading.Thread] | None = None


def start(thread: threading.Thread) -> None:
    """Start `thread` now, or on `release` while threads are held."""
    if _held is None:
        thread.start()
    else:
        _held.append(thread)


def hold() -> None:
    """Defer the start of threads from now on."""
    global _held
    if _held is None:
        _held = []


def release() -> None:
    """Start the deferred threads, and stop deferring. Harmless at any time: call it before waiting for a thread."""
    global _held
    held, _held = _held, None
    for thread in held or ():
        thread.start()
