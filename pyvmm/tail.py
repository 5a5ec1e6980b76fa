"""Keeps the last part of a byte stream: the guest's console for `pyvmm log` and crash reports, a child's stderr."""

from __future__ import annotations

import threading
from collections.abc import Callable

LIMIT = 64 << 10
"""Bytes kept: a whole boot's messages."""


class Tail:
    """A sink that keeps the last `limit` bytes and forwards all to `onward`. Offsets count all bytes since it was
    made: for a console since the machine's start, resets included. Callable from any thread.
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
            if len(self._data) > 2 * self._limit:  # seldom, so that appending does not copy the buffer each time
                del self._data[: -self._limit]
        self._onward(data)

    def since(self, offset: int = 0) -> tuple[int, bytes]:
        """Return the output from byte `offset` on, at most the limit, after the offset of its first byte."""
        with self._lock:
            first = max(offset, self._end - min(len(self._data), self._limit))
            if first >= self._end:
                return self._end, b""
            return first, bytes(self._data[len(self._data) - (self._end - first) :])

    def text(self) -> str:
        """Return the kept bytes as text; bytes that are not UTF-8 become U+FFFD."""
        return self.since()[1].decode("utf-8", "replace")
