"""The event loop: one thread that owns VMBus and every device on it, so that none of them needs a lock.

It waits for file descriptors (eventfds of the guest's signals, sockets of the monitor), for timers, and for work
that other threads `post`. Time is the loop's `clock`, which stops while a machine is frozen (`pyvmm.machine.frozen`).
Callbacks are short and never block.

    turn:  wait --> every ready descriptor once --> due timers --> posted work --> turn ...
                                                    (a slice of each: at most SLICE_CALLBACKS or SLICE_SECONDS)

A guest determines how much work there is, so a turn runs only a slice of it: descriptors and timers are polled again
before the rest. Work that a guest can request over and over is a `Pending`, of which at most one is queued.
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
from typing import Any, Protocol

from pyvmm.stoppable_clock import StoppableClock

Callback = Callable[..., Any]

SLICE_CALLBACKS = 256
"""Timers, and posted callbacks, run in one turn. At some microseconds each this is about a millisecond."""

SLICE_SECONDS = 0.01
"""Seconds after which a turn leaves the rest of the due timers, or of the posted work, to the next turn. The callback
that is running then still ends: bounds on one callback's work are its owner's."""

CANCELLED_LIMIT = 64
"""Cancelled timers that may stay in the heap, or as many as live ones: removing each would search the heap."""


class Timer:
    """A callback due at `when` (loop clock, seconds). `cancel()` may be called at any time, twice too."""

    __slots__ = ("_period", "_timers", "callback", "cancelled", "when")

    def __init__(self, when: float, callback: Callback, period: float | None = None) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False
        self._period = period
        self._timers: Timers | None = None  # the queue whose heap holds this timer

    def cancel(self) -> None:
        """Never call the callback again, and drop the reference to it."""
        if not self.cancelled:
            self.cancelled = True
            self.callback = _nothing
            if self._timers is not None:
                self._timers._count_cancelled()


def _nothing() -> None:
    """Do nothing, as the callback of a cancelled timer."""


class Timers:
    """A timer queue: the part of the loop that needs no file descriptor, shared with the tests' fake loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._cancelled = 0  # of those in the heap
        self._order = count()

    def after(self, seconds: float, callback: Callback) -> Timer:
        """Call `callback` once, `seconds` from now."""
        return self._add(Timer(self.clock() + seconds, callback))

    def every(self, period: float, callback: Callback) -> Timer:
        """Call `callback` every `period` seconds, first after one period. Missed calls are not repeated."""
        return self._add(Timer(self.clock() + period, callback, period))

    def _add(self, timer: Timer) -> Timer:
        timer._timers = self
        heapq.heappush(self._heap, (timer.when, next(self._order), timer))
        return timer

    def _pop(self) -> Timer:
        timer = heapq.heappop(self._heap)[2]
        timer._timers = None
        self._cancelled -= timer.cancelled
        return timer

    def _count_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > max(CANCELLED_LIMIT, len(self._heap) // 2):
            self._heap = [entry for entry in self._heap if not entry[2].cancelled]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_due(self) -> float | None:
        """Return when the next live timer is due, in clock seconds."""
        while self._heap and self._heap[0][2].cancelled:
            self._pop()
        return self._heap[0][0] if self._heap else None

    def run_due(self) -> None:
        """Run the timers due now, a slice of them at most. Timers made meanwhile wait for the next call."""
        now, until, first_new = self.clock(), time.monotonic() + SLICE_SECONDS, next(self._order)
        for _ in range(SLICE_CALLBACKS):
            due = self.next_due()
            if due is None or due > now or self._heap[0][1] > first_new:
                return
            timer = self._pop()
            callback = timer.callback
            if timer._period is not None:
                timer.when = max(timer.when + timer._period, now)
                self._add(timer)
            callback()
            if time.monotonic() > until:
                return


class Poster(Protocol):
    """The part of a loop that `Pending` uses."""

    def post(self, callback: Callback, *args: Any) -> None: ...


class Pending:
    """A coalescing work item of the loop: requests made before it has run are merged into one.

    Use it for all work that a guest can cause. `ask` may be called from any thread; two at once may queue it twice.
    """

    __slots__ = ("_args", "_asked", "_callback", "_loop")

    def __init__(self, loop: Poster, callback: Callback, *args: Any) -> None:
        self._loop = loop
        self._callback = callback
        self._args = args
        self._asked = False

    def ask(self) -> None:
        """Schedule the callback on the loop's thread."""
        if not self._asked:
            self._asked = True
            self._loop.post(self.run)

    def cancel(self) -> None:
        """Drop the pending request, and all later ones. On the loop's thread."""
        self._callback, self._args = _nothing, ()

    def run(self) -> None:
        """Run the callback now, on the loop's thread; this fulfils all requests so far."""
        self._asked = False  # first: later requests need another run
        self._callback(*self._args)


class Loop(Timers):
    """epoll, timers and a queue of posted work. All methods but `post` and `stop` run on the loop's thread.

    `turns`, `longest_turn` (seconds) and `turn_began` (None while it waits) are for `pyvmm.watchdog` and the monitor.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        super().__init__(clock or StoppableClock())
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._posted: deque[tuple[Callback, tuple[Any, ...]]] = deque()
        self._turning: int | None = None  # the thread in whose turn callbacks run
        self._open()
        self._stopping = False
        self.thread: threading.Thread | None = None
        self.turns = 0
        self.longest_turn = 0.0
        self.turn_began: float | None = None

    def _open(self) -> None:
        self._woken = False  # the eventfd was written and not read yet
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)

    def renew(self) -> None:
        """Replace the epoll set and the wake-up eventfd, which a forked process shares with its parent, by its own.

        Readers, writers, timers and posted work stay; the readers' own descriptors are still shared.
        """
        self.close()
        self._open()
        for fd in {*self._readers, *self._writers}:
            self._update(fd)
        if self._posted:
            self._notify()

    @property
    def idle(self) -> bool:
        """Whether neither posted work nor a ready descriptor waits. Timers are not considered."""
        return not self._posted and not self._poll.poll(0)

    def post(self, callback: Callback, *args: Any) -> None:
        """Run `callback(*args)` on the loop's thread, in the order posted. From any thread.

        For work of bounded number; use `Pending` for work that a guest can repeat at will.
        """
        self._posted.append((callback, args))
        self._notify()

    def post_first(self, callback: Callback, *args: Any) -> None:
        """Run `callback(*args)` before all work posted so far: for signals, from whose handlers it may be called."""
        self._posted.appendleft((callback, args))
        self._notify()

    def _notify(self) -> None:
        """End the wait for descriptors. Not needed within a turn, which looks at what is posted before it waits, and
        once is enough.
        """
        if self._woken or self._turning == threading.get_ident():
            return
        self._woken = True
        try:
            os.eventfd_write(self._wake, 1)
        except OSError:
            pass  # closed: the machine ends, and the work is dropped

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
        """Run turns until `stop()`."""
        self.thread = threading.current_thread()
        while not self._stopping:
            self.step()
        self._stopping = False

    def step(self, timeout: float | None = None) -> None:
        """Run one turn: wait (at most `timeout` seconds) for work and run a slice of it."""
        due = self.next_due()
        if due is not None:
            wait = max(0.0, due - self.clock())
            timeout = wait if timeout is None else min(wait, timeout)
        if self._posted:
            timeout = 0.0
        ready = self._poll.poll(timeout)
        self.turn_began = began = time.monotonic()
        self._turning = threading.get_ident()
        try:
            for fd, mask in ready:
                self._serve(fd, mask)
            self.run_due()
            self._run_posted()
        finally:
            self.turn_began = self._turning = None
        self.turns += 1
        self.longest_turn = max(self.longest_turn, time.monotonic() - began)

    def _serve(self, fd: int, mask: int) -> None:
        """Call a ready descriptor's callbacks. If data is left, the next turn finds the descriptor ready again."""
        if fd == self._wake:
            self._woken = False  # first: what is posted from now on needs a write of its own, or is seen in this turn
            os.eventfd_read(fd)
            return
        if mask & ~select.EPOLLOUT and (reader := self._readers.get(fd)):
            reader()
        if mask & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP) and (writer := self._writers.get(fd)):
            writer()

    def _run_posted(self) -> None:
        """Run a slice of the work posted so far."""
        until = time.monotonic() + SLICE_SECONDS
        for _ in range(min(len(self._posted), SLICE_CALLBACKS)):
            callback, args = self._posted.popleft()
            callback(*args)
            if time.monotonic() > until:
                return

    def stop(self) -> None:
        """Make `run` return soon. From any thread."""
        self._stopping = True
        self._notify()

    def close(self) -> None:
        """Free the descriptors. Posted work that did not run is dropped."""
        self._poll.close()
        os.close(self._wake)
