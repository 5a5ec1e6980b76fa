"""Traces into a file without the guest noticing: a queue that vCPU threads only append to, and a thread that writes.

    vCPU threads, loop --append--> queue (bounded) --a few at a time--> format --> write(2)

The writer formats a few records, then gives up the GIL, so that an exit that came meanwhile waits for these and not
for a second's worth of them. What finds the queue full is counted, and the count written as an event of its own
(`trace.dropped`): nothing is lost silently.
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
"""Records that may wait, some 40 MB: 20 seconds of 10,000 a second on a disk that hangs."""

PERIOD = 0.05
"""Seconds between two looks at the queue: what a killed machine may lose of its trace."""

BATCH = 512
"""Records of one write, where so many wait: in the emulated host each is a request to the outside."""


CLOSE_LIMIT = 2.0
"""Seconds without a record written after which the file's end is given up."""


class FileSink:
    """A trace sink that writes to `path`. Raises ConfigError if that cannot be opened. `close()` writes the rest.

    `error` is why writing ended early, if it did; `failed` is told at once, on the writer's thread, and from then on
    records are dropped.
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
        self.lost = 0  # records that found the queue full, all in all
        self._encoder = encoder(format or format_of(path))
        self._limit = queue_limit
        self._queue: deque[Record] = deque()
        self._told = 0  # of `lost`
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
        """Keep `record` for the writer. From any thread."""
        if len(self._queue) < self._limit:
            self._queue.append(record)
        else:
            with self._lock:
                self.lost += 1

    def close(self) -> None:
        """Write what is left and close the file. The sink must be unsubscribed by now. What a file that takes no
        more (a FIFO, a hanging disk) has not got after CLOSE_LIMIT counts as lost.
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
        for _ in range(self._limit // BATCH + 1):  # what comes meanwhile can wait for the next turn
            records = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
            if not records:
                break
            self._write("".join(encode_in_turns(records, encode)))
        lost = self.lost
        if lost > self._told:
            gap, self._told = lost - self._told, lost
            self._write(encode(_record(trace.dropped, gap, "the writer's queue was full")))

    def _write(self, text: str) -> None:
        view = memoryview(text.encode("utf-8", "backslashreplace"))
        while view:
            view = view[self._file.write(view) :]


def _record(event: trace.Event, *values: object) -> Record:
    return Record(time.monotonic(), event, threading.current_thread().name, values)
