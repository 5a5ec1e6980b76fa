"""The event loop: one thread that owns VMBus and every device on it, so that none of them needs a lock.

It waits for file descriptors (eventfds of the guest's signals, sockets of the monitor), for timers, and for work
that other threads `post`. Time is the loop's `clock`, which tests replace. Callbacks are short and never block.
"""

from __future__ import annotations

import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

Callback = Callable[..., Any]


class Timer:
    """A callback due at `when` (loop clock, seconds). `cancel()` may be called at any time, twice too."""

    __slots__ = ("_period", "callback", "cancelled", "when")

    def __init__(self, when: float, callback: Callback, period: float | None = None) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False
        self._period = period

    def cancel(self) -> None:
        self.cancelled = True


class Timers:
    """What is due when: the part of the loop that needs no file descriptor, shared with the tests' fake loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Call `callback` once, `seconds` from now."""
        return self._add(Timer(self.clock() + seconds, callback))

    def every(self, period: float, callback: Callback) -> Timer:
        """Call `callback` every `period` seconds, first after one period. A late call is not made up for."""
        return self._add(Timer(self.clock() + period, callback, period))

    def _add(self, timer: Timer) -> Timer:
        heapq.heappush(self._heap, (timer.when, next(self._order), timer))
        return timer

    def next_due(self) -> float | None:
        """When the next live timer is due, in clock seconds."""
        while self._heap and self._heap[0][2].cancelled:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run_due(self) -> None:
        """Call everything that is due now."""
        now = self.clock()
        while (due := self.next_due()) is not None and due <= now:
            timer = heapq.heappop(self._heap)[2]
            if timer._period is not None:
                timer.when = max(timer.when + timer._period, now)
                self._add(timer)
            timer.callback()


class Loop(Timers):
    """epoll, timers and a queue of posted work. All methods but `post` and `stop` belong to the loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._poll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._posted: deque[tuple[Callback, tuple[Any, ...]]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._stopping = False
        self.thread: threading.Thread | None = None

    def post(self, callback: Callback, *args: Any) -> None:
        """Run `callback(*args)` on the loop's thread, in the order posted. From any thread."""
        self._posted.append((callback, args))
        try:
            os.eventfd_write(self._wake, 1)
        except OSError:
            pass  # closed: the machine is going away, and so is the work

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call `callback()` whenever `fd` can be read or was hung up."""
        self._readers[fd] = callback
        self._update(fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call `callback()` whenever `fd` can be written."""
        self._writers[fd] = callback
        self._update(fd)

    def remove_reader(self, fd: int) -> None:
        if self._readers.pop(fd, None) is not None:
            self._update(fd)

    def remove_writer(self, fd: int) -> None:
        if self._writers.pop(fd, None) is not None:
            self._update(fd)

    def _update(self, fd: int) -> None:
        mask = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        try:
            if not mask:
                self._poll.unregister(fd)
            else:
                try:
                    self._poll.register(fd, mask)
                except FileExistsError:
                    self._poll.modify(fd, mask)
        except (FileNotFoundError, OSError):
            if mask:
                raise

    def run(self) -> None:
        """Serve until `stop()`."""
        self.thread = threading.current_thread()
        while not self._stopping:
            self.step()
        self._stopping = False

    def step(self, timeout: float | None = None) -> None:
        """Wait (at most `timeout` seconds) for something to do and do it."""
        due = self.next_due()
        if due is not None:
            wait = max(0.0, due - self.clock())
            timeout = wait if timeout is None else min(wait, timeout)
        if self._posted:
            timeout = 0.0
        for fd, mask in self._poll.poll(timeout):
            if fd == self._wake:
                os.eventfd_read(self._wake)
                continue
            if mask & ~select.EPOLLOUT and (reader := self._readers.get(fd)):
                reader()
            if mask & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP) and (writer := self._writers.get(fd)):
                writer()
        for _ in range(len(self._posted)):
            callback, args = self._posted.popleft()
            callback(*args)
        self.run_due()

    def stop(self) -> None:
        """Make `run` return soon. From any thread."""
        self._stopping = True
        self.post(lambda: None)

    def close(self) -> None:
        """Free the descriptors. Posted work that did not run is dropped."""
        self._poll.close()
        os.close(self._wake)
