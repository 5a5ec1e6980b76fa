"""Bytes on their way from vCPU threads to somebody on the loop, gathered where they come in a stream.

    vCPU thread --add()--> batch --at once; then every `period`, as long as there was something--> output(batch)

A single byte, a key's echo, is handed on at once. A kernel that prints its messages would wake the loop for each
line, which the guest pays for where the host has few processors; it wakes it every `period` instead, and where lines
come fast only at its owner's ticks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

LIMIT = 64 << 10
"""Bytes kept for the loop before the vCPU's own thread hands them on, so that a busy loop slows the guest down."""

MUCH = 256
"""Bytes, a few lines: so much in a period is no typing's echo, and what follows may wait longer."""

STRAIGHT = 4
"""Batches that need not wait for the loop, between two of those that do: the last words of a stream, mostly."""


class Soon(Protocol):
    """What an outbox needs of a `Loop`."""

    def post(self, callback: Callable[[], None]) -> None: ...

    def after(self, seconds: float, callback: Callable[[], None]) -> object: ...


class Outbox:
    """Hands what is added to `output`, in order: on the loop's thread, or on the adding one.

    Without a `period` (seconds) each batch is handed on at the loop's next turn. With one the loop is left alone for
    so long after each turn, and after one that had MUCH until the owner's next `tick`: what is added meanwhile goes
    straight on for STRAIGHT times, and waits then.
    """

    def __init__(self, output: Callable[[bytes], None], loop: Soon, *, period: float = 0.0) -> None:
        self._output = output
        self._loop = loop
        self._period = period
        self._batch = bytearray()
        self._lately = 0  # bytes added since the loop's last turn
        self._coming = False  # the loop will look at the batch without being told
        self._tick_awaited = False  # and does so at the next tick
        self._straight = 0  # how often what is added may go on at once before that
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        """Take `data`, from any thread."""
        with self._lock:
            self._batch += data
            self._lately += len(data)
            if len(self._batch) >= LIMIT:
                self._hand_on()
            elif not self._coming:
                self._coming = True
                self._loop.post(self._turn)
            elif self._straight:
                self._straight -= 1
                self._hand_on()

    def tick(self) -> None:
        """What the owner calls on the loop's thread, several times a second."""
        if self._tick_awaited:
            self._turn()

    def flush(self) -> None:
        """Hand on what there is, on this thread."""
        with self._lock:
            self._hand_on()

    def _turn(self) -> None:
        with self._lock:
            self._coming = bool(self._lately and self._period)
            self._tick_awaited = self._coming and self._lately >= MUCH
            self._lately = 0
            self._straight = STRAIGHT if self._coming else 0
            self._hand_on()
        if self._coming and not self._tick_awaited:
            self._loop.after(self._period, self._turn)

    def _hand_on(self) -> None:
        if self._batch:
            data, self._batch = bytes(self._batch), bytearray()
            self._output(data)
