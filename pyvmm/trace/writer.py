"""Trace files written without delaying the guest: vCPU threads only append to a queue, and a thread writes.

    vCPU threads, loop --append--> queue (bounded) --a few at a time--> format --> write(2)

The writer formats a few records, then releases the GIL, so that an exit that came meanwhile waits for these and not
for a second's worth of them. Records that find the queue full are counted, and the count is written as an event of
its own (`trace.dropped`): nothing is lost silently.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pyvmm import held_threads, trace
from pyvmm.errors import ConfigError
from pyvmm.trace import Record
from pyvmm.trace.formats import encode_in_turns, encoder, format_of

QUEUE_LIMIT = 200_000
"""Most records in the queue, some 40 MB: 20 seconds of 10,000 a second on a disk that hangs."""

PERIOD = 0.05
"""Seconds between two polls of the queue: the most that a killed machine loses of its trace."""

BATCH = 512
"""Most records of one write: in the emulated host each write is a request to the outer side."""


CLOSE_LIMIT = 2.0
"""Seconds without progress after which `close` gives up the unwritten rest."""


class FileSink:
    """A trace sink that writes to `path`. Raises ConfigError if that cannot be opened. `close()` writes the rest.

    `error` is why writing ended early, if it did; `failed` is called with it at once, on the writer's thread, and
    from then on records are dropped.
    """

    def __init__(
        self,
        path: Path,
        format: str | None = None,
        *,
        queue_limit: int = QUEUE_LIMIT,
        machine: str = "",
        failed: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self.path = path
        self._failed = failed
        self.error: OSError | None = None
        self.lost = 0  # total of records that found the queue full
        self._encoder = encoder(format or format_of(path))
        self._limit = queue_limit
        self._queue: deque[Record] = deque()
        self._reported_lost = 0  # how many of `lost` are reported
        self._lock = threading.Lock()  # for `lost`
        self._ending = threading.Event()
        try:
            self._file = open(path, "wb", buffering=0)
        except OSError as error:
            raise ConfigError(f"trace file {path}: {error.strerror}") from error
        wall_clock = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._queue.append(_record(trace.started, machine or path.name, wall_clock))
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        held_threads.start(self._thread)

    def __call__(self, record: Record) -> None:
        """Queue `record` for the writer. From any thread."""
        if len(self._queue) < self._limit:
            self._queue.append(record)
        else:
            with self._lock:
                self.lost += 1

    def close(self) -> None:
        """Write the rest and close the file. The sink must be unsubscribed by now. Records that a stuck file (a FIFO,
        a hanging disk) has not accepted after CLOSE_LIMIT count as lost.
        """
        held_threads.release()
        self._ending.set()
        before = -1
        while self._thread.is_alive() and len(self._queue) != before:
            before = len(self._queue)
            self._thread.join(CLOSE_LIMIT)
        if self._thread.is_alive():
            with self._lock:
                self.lost += len(self._queue) + 1

    def _run(self) -> None:
        try:
            self._write(self._encoder.head())
            while not self._ending.wait(PERIOD):
                self._drain()
            self._drain()
            self._write(self._encoder.tail())
        except OSError as error:
            self.error = error
            self._failed(error)
            self._limit = 0
            self._queue.clear()
        finally:
            self._file.close()

    def _drain(self) -> None:
        queue, encode = self._queue, self._encoder.encode
        for _ in range(self._limit // BATCH + 1):  # records added meanwhile wait for the next round
            records = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
            if not records:
                break
            self._write("".join(encode_in_turns(records, encode)))
        lost = self.lost
        if lost > self._reported_lost:
            gap, self._reported_lost = lost - self._reported_lost, lost
            self._write(encode(_record(trace.dropped, gap, "the writer's queue was full")))

    def _write(self, text: str) -> None:
        view = memoryview(text.encode("utf-8", "backslashreplace"))
        while view:
            view = view[self._file.write(view) :]


def _record(event: trace.Event, *values: object) -> Record:
    return Record(time.monotonic(), event, threading.current_thread().name, values)
