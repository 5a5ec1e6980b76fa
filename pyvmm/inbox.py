"""Inbox: a bounded queue of bytes from vCPU threads to a consumer on the loop, which gets one piece each turn.

    vCPU thread --add()--> waiting (LIMIT) --a PIECE a turn--> take(piece), on the loop
         ^----------------- hold(): the vCPU blocks while the queue is full (back pressure)

The vCPU thread blocks after the exit that brought the bytes, when it holds no lock that the loop may need.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyvmm.loop import Pending, Poster

LIMIT = 32 << 10
"""Bytes in the queue at which vCPUs block. The exit that reaches the limit may exceed it."""

PIECE = 1 << 10
"""Bytes taken in one turn. The agent's protocol costs some 5 µs a line: 3 ms where each line is a byte."""

STOP_POLL = 0.05
"""Seconds after which a blocked vCPU checks whether it has to stop."""


class Inbox:
    """Queues added bytes for `take`, which is called on the loop's thread."""

    def __init__(self, take: Callable[[bytes], None], loop: Poster) -> None:
        self._take = take
        self._waiting = bytearray()
        self._lock = threading.Condition()
        self._work = Pending(loop, self._turn)
        self.full = False
        """Whether vCPUs have to `hold`. An attribute, because every exit reads it."""

    def add(self, data: bytes) -> None:
        """Queue `data` for the loop. From any thread."""
        with self._lock:
            self._waiting += data
            self.full = len(self._waiting) >= LIMIT
        self._work.ask()

    def hold(self, has_to_go: Callable[[], bool]) -> None:
        """Block the vCPU's thread until there is room, or `has_to_go()`."""
        while self.full and not has_to_go():
            with self._lock:
                self._lock.wait_for(lambda: not self.full, STOP_POLL)

    def flush(self) -> None:
        """Pass the whole queue to the consumer now. On the loop's thread."""
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
