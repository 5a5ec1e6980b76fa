"""Output: writes to a terminal, pipe or file on a separate thread, so that a slow one blocks nothing else.

    loop, vCPU threads --write()--> batch --thread: write(2)--> terminal, pipe, file
                                      |
                     level 0, 1, 2 <--+   0: room    1: from HIGH until LOW    2: from LIMIT until HIGH

`write` never blocks. The producer of the bytes checks `level` and stops while it is not 0: `changed` is called at
each change. The descriptor keeps its mode, since O_NONBLOCK would hold for the shell and every other program that
shares it: a thread that may wait needs no O_NONBLOCK, and one that another program has set is handled by
poll(2).
"""

from __future__ import annotations

import io
import os
import select
import stat
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from pyvmm import held_threads

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

HIGH = 256 << 10
"""Unwritten bytes at which their producer must stop."""

LOW = 64 << 10
"""Unwritten bytes at which it may continue: enough for the reader not to run dry."""

LIMIT = 1 << 20
"""Bytes from which a producer that did not stop must be stopped: a kernel's messages do not wait for an interrupt."""

_PIECE = 4096
"""Bytes of one write: at most PIPE_BUF, so that a pipe accepts all or nothing of a write that blocks."""

_FILE_PIECE = 64 << 10


class Output:
    """One descriptor's writer. The thread starts with the first bytes. `changed()` is called, from any thread and
    without a lock held, when `level` has changed or writing has failed, and with `progress` after every write.

    `error` is the error that ended writing; bytes added later or given up count as `lost`.
    """

    def __init__(
        self, fd: int, name: str, changed: Callable[[], None] = lambda: None, *, progress: bool = False
    ) -> None:
        self.fd = fd
        self.name = name
        self.changed = changed
        self.error: OSError | None = None
        self.error_reported = False  # whether the error was reported to the user; for the owner
        self.level = 0
        self.lost = 0
        self.written = 0
        self._progress = progress
        self._batch = bytearray()
        self._pending = 0  # bytes of the batch and of the thread's current write
        self._closed = False
        self._state = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def pending(self) -> int:
        """Return the number of bytes not written yet."""
        return self._pending

    def write(self, data: bytes) -> None:
        """Queue `data`, from any thread."""
        if not data:
            return
        with self._state:
            if self._closed or self.error is not None:
                self.lost += len(data)
                return
            self._batch += data
            changed = self._count(len(data))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                held_threads.start(self._thread)
            self._state.notify_all()
        if changed:
            self.changed()

    def flush(self, seconds: float) -> bool:
        """Wait until all is written or writing has failed; return False after `seconds`."""
        held_threads.release()
        with self._state:
            return self._state.wait_for(lambda: not self._pending, seconds)

    def give_up(self) -> int:
        """Stop writing; return the number of bytes lost now. A hanging write ends with the process."""
        with self._state:
            self._closed = True
            given_up, self._pending = self._pending, 0
            self.lost += given_up
            self._batch.clear()
            self._state.notify_all()
        return given_up

    def text(self, like: TextIO) -> TextIO:
        """Return a text stream that writes to this output, with the encoding of `like`."""
        return io.TextIOWrapper(
            io.BufferedWriter(_Raw(self)), encoding=like.encoding, errors=like.errors, line_buffering=True
        )

    def _count(self, change: int) -> bool:
        """Update `pending`; return whether `level` changed."""
        self._pending += change
        pending, level = self._pending, self.level
        if pending >= LIMIT:
            level = 2
        elif pending >= HIGH:
            level = max(level, 1)
        elif pending > LOW:
            level = min(level, 1)
        else:
            level = 0
        changed, self.level = level != self.level, level
        return changed

    def _run(self) -> None:
        try:
            piece = _FILE_PIECE if stat.S_ISREG(os.fstat(self.fd).st_mode) else _PIECE
            while data := self._next():
                view = memoryview(data)
                while view and not self._closed:
                    try:
                        written = os.write(self.fd, view[:piece])
                    except BlockingIOError:
                        self._wait()
                        continue
                    view = view[written:]
                    self._done(written)
        except OSError as error:
            with self._state:
                self.error = error
                if not self._closed:
                    self.lost += self._pending
                self._pending = self.level = 0
                self._batch.clear()
                self._state.notify_all()
            self.changed()

    def _next(self) -> bytearray | None:
        with self._state:
            self._state.wait_for(lambda: self._batch or self._closed)
            data, self._batch = self._batch, bytearray()
        return data

    def _done(self, written: int) -> None:
        with self._state:
            self.written += written
            if self._closed:
                return
            changed = self._count(-written)
            if not self._pending:
                self._state.notify_all()
        if changed or self._progress:
            self.changed()

    def _wait(self) -> None:
        """Wait until a non-blocking descriptor accepts more; half a second at most, as the output may be given up."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        poll.poll(500)


class _Raw(io.RawIOBase):
    def __init__(self, output: Output) -> None:
        self._output = output

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._output.fd

    def isatty(self) -> bool:
        return os.isatty(self._output.fd)

    def write(self, data: ReadableBuffer) -> int:
        taken = bytes(data)
        self._output.write(taken)
        return len(taken)
