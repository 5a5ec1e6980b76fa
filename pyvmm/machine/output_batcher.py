"""Batches serial output from vCPU threads for the event loop.

    vCPU thread --add()--> batch --at once; then every `period`, as long as there was something--> output(batch)

A single byte, a key's echo, is passed on at once. A kernel that prints its messages would wake the loop for each
line, which slows the guest where the host has few processors; so the loop is woken every `period` instead, and during
a stream of lines only at the owner's ticks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

LIMIT = 64 << 10
"""Bytes in the batch at which the vCPU's own thread passes them on, so that a busy loop slows the guest down."""

STREAM_BYTES = 256
"""Bytes in a period, a few lines, from which the output is a stream, not an echo, and may wait for the tick."""

DIRECT_FLUSHES = 4
"""Batches passed on directly by the vCPU's thread between two turns of the loop: mostly the end of a stream."""


class Scheduler(Protocol):
    """The part of `Loop` that a batcher uses."""

    def post(self, callback: Callable[[], None]) -> None: ...

    def after(self, seconds: float, callback: Callable[[], None]) -> object: ...


class OutputBatcher:
    """Passes added bytes to `output`, in order: on the loop's thread, or on the thread that adds them.

    Without a `period` (seconds) each batch is passed on at the loop's next turn. With one the loop is not woken for
    that long after each turn, and after a turn with STREAM_BYTES not until the owner's next `tick`: meanwhile up to
    DIRECT_FLUSHES additions are passed on directly, and later ones wait.
    """

    def __init__(self, output: Callable[[bytes], None], loop: Scheduler, *, period: float = 0.0) -> None:
        self._output = output
        self._loop = loop
        self._period = period
        self._batch = bytearray()
        self._recent_bytes = 0  # bytes added since the loop's last turn
        self._turn_scheduled = False  # a turn of the loop for this batch is scheduled
        self._tick_awaited = False  # that turn waits for the next tick
        self._direct_left = 0  # direct flushes left before that tick
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        """Add `data` to the batch, from any thread."""
        with self._lock:
            self._batch += data
            self._recent_bytes += len(data)
            if len(self._batch) >= LIMIT:
                self._pass_on()
            elif not self._turn_scheduled:
                self._turn_scheduled = True
                self._loop.post(self._turn)
            elif self._direct_left:
                self._direct_left -= 1
                self._pass_on()

    def tick(self) -> None:
        """Pass on a stream's batch. The owner calls it on the loop's thread, several times a second."""
        if self._tick_awaited:
            self._turn()

    def flush(self) -> None:
        """Pass on the batch, on this thread."""
        with self._lock:
            self._pass_on()

    def _turn(self) -> None:
        with self._lock:
            self._turn_scheduled = bool(self._recent_bytes and self._period)
            self._tick_awaited = self._turn_scheduled and self._recent_bytes >= STREAM_BYTES
            self._recent_bytes = 0
            self._direct_left = DIRECT_FLUSHES if self._turn_scheduled else 0
            self._pass_on()
        if self._turn_scheduled and not self._tick_awaited:
            self._loop.after(self._period, self._turn)

    def _pass_on(self) -> None:
        if self._batch:
            data, self._batch = bytes(self._batch), bytearray()
            self._output(data)
