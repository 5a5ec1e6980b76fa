"""An alarm of the event loop with the precision of the kernel's timers: epoll's own time-out counts milliseconds.

Source: timerfd_create(2). Python has it from 3.13 on.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Protocol

from pyvmm.errors import HostError

_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_LAST_SECOND = (1 << 62) // 1_000_000_000
_libc = ctypes.PyDLL(None, use_errno=True)  # with the GIL: the calls take less time than to let it go
_itimerspec = ctypes.c_long * 4


class Readers(Protocol):
    """The part of the loop that an alarm uses."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None: ...
    def remove_reader(self, fd: int) -> None: ...


class Alarm:
    """Calls `callback` on the loop's thread at the time that was set last. `set` may be called from any thread."""

    def __init__(self, loop: Readers, callback: Callable[[], None]) -> None:
        self._fd = -1
        self._loop = loop
        self._callback = callback
        self.open()

    def open(self) -> None:
        """Create the kernel's timer. Called by the constructor, and after `close` to use the alarm again."""
        fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise HostError(f"timerfd_create: {os.strerror(ctypes.get_errno())}")
        self._fd = fd
        self._loop.add_reader(fd, self._ring)

    def set(self, when: int | None) -> None:
        """Set the alarm to `when` (time.monotonic_ns), or switch it off. A time in the past rings at once."""
        seconds, nanoseconds = (0, 0) if when is None else divmod(max(1, when), 1_000_000_000)
        value = _itimerspec(0, 0, min(seconds, _LAST_SECOND), nanoseconds)
        if self._fd >= 0 and _libc.timerfd_settime(self._fd, _ABSOLUTE, value, None):
            raise HostError(f"timerfd_settime: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """Free the descriptor. On the loop's thread."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # it was set anew meanwhile
        self._callback()
