"""The last of what the guest wrote to its console, kept for whoever asks later: `pyvmm log`, a crash report."""

from __future__ import annotations

import threading
from collections.abc import Callable

LIMIT = 64 << 10
"""Bytes kept: a whole boot's messages."""


class ConsoleTail:
    """A sink for console output, which it also gives to `onward`. Bytes are counted from the machine's start, resets
    included. From any thread.
    """

    def __init__(self, limit: int = LIMIT, *, onward: Callable[[bytes], object] = lambda data: None) -> None:
        self._onward = onward
        self._limit = limit
        self._data = bytearray()
        self._end = 0
        self._lock = threading.Lock()

    def __call__(self, data: bytes) -> None:
        with self._lock:
            self._data += data
            self._end += len(data)
            if len(self._data) > 2 * self._limit:  # seldom, so that keeping a byte costs no copy of the rest
                del self._data[: -self._limit]
        self._onward(data)

    def since(self, offset: int = 0) -> tuple[int, bytes]:
        """What came from byte `offset` on, at most the limit; and the number of its first byte."""
        with self._lock:
            first = max(offset, self._end - min(len(self._data), self._limit))
            if first >= self._end:
                return self._end, b""
            return first, bytes(self._data[len(self._data) - (self._end - first) :])
