"""Bytes that a guest sends to a consumer on the loop: bounded, and taken in pieces, a piece a turn of the loop.

    vCPU thread --add()--> waiting (LIMIT) --a PIECE a turn--> take(piece), on the loop
         ^----------------- hold(): the guest waits while it is full

The vCPU's thread holds after the exit that brought the bytes, when it has no lock: the loop may need those meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyvmm.loop import Pending, Poster

LIMIT = 32 << 10
"""Bytes that may wait, before the vCPUs do; and what the exit that reached it brought more."""

PIECE = 1 << 10
"""Bytes taken in one turn. The agent's protocol costs some 5 µs a line: 3 ms where each line is a byte."""

LOOK_AGAIN = 0.05
"""Seconds after which a vCPU that holds looks whether it has to stop."""


class Inbox:
    """Gathers what is added for `take`, which is called on the loop's thread."""

    def __init__(self, take: Callable[[bytes], None], loop: Poster) -> None:
        self._take = take
        self._waiting = bytearray()
        self._lock = threading.Condition()
        self._work = Pending(loop, self._turn)
        self.full = False
        """Whether vCPUs have to `hold`. An attribute, because every exit looks at it."""

    def add(self, data: bytes) -> None:
        """Keep `data` for the loop. From any thread."""
        with self._lock:
            self._waiting += data
            self.full = len(self._waiting) >= LIMIT
        self._work.ask()

    def hold(self, has_to_go: Callable[[], bool]) -> None:
        """Wait, on a vCPU's thread, until there is room, or it has to go."""
        while self.full and not has_to_go():
            with self._lock:
                self._lock.wait_for(lambda: not self.full, LOOK_AGAIN)

    def flush(self) -> None:
        """Have all of it taken now, on this thread, which is the loop's."""
        while self._waiting:
            self._step()

    def _turn(self) -> None:
        self._step()
        if self._waiting:
            self._work.ask()

    def _step(self) -> None:
        with self._lock:
            piece = bytes(self._waiting[:PIECE])
            del self._waiting[:PIECE]
            self.full = len(self._waiting) >= LIMIT
            if not self.full:
                self._lock.notify_all()
        if piece:
            self._take(piece)
