"""Standard streams of the command line: replaces closed ones, and maps write errors to exit statuses.

    what happens to standard output       status   on stderr
    its reader exits (EPIPE)              141      nothing for a listing; a line when it ended a machine
    its terminal hangs up (EIO)           129      a line
    anything else: full disk, closed fd   1        a line

Write errors on standard error are ignored: they cannot be reported, and the exit status stays right.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputError(OSError):
    """Standard output failed: the OSError of the write, with the stream's name."""


class _Raw(io.FileIO):
    """Raw I/O on descriptor 1 or 2: waits while a non-blocking one is full, and names the stream in errors."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "w", closefd=False)

    def write(self, data: ReadableBuffer) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                if self.fileno() == 2:
                    return memoryview(data).nbytes
                raise OutputError(error.errno, error.strerror, "standard output") from None
            if written is not None:
                return written
            self._wait()

    def _wait(self) -> None:
        """Wait until the descriptor is writable: another program may have made it non-blocking."""
        import select

        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        poll.poll()


def prepare() -> None:
    """Set up this process's standard streams, once, before anything else opens a file.

    A closed one is opened on /dev/null, so that no socket or file gets its number: input is empty, a write to output
    fails as on a closed descriptor, and errors are discarded.
    """
    for fd, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free number, which is `fd`
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def _stream(fd: int, before: TextIO | None) -> TextIO:
    if before is not None and not isinstance(before, io.TextIOWrapper):
        return before  # replaced by a test
    encoding = "utf-8" if before is None else before.encoding
    errors = "backslashreplace" if fd == 2 or before is None or before.errors is None else before.errors
    try:
        raw = _Raw(fd)
        return io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=fd == 2 or raw.isatty()
        )
    except OSError:  # the descriptor is a directory
        return before if before is not None else open(os.devnull, "w")


def drop_output() -> None:
    """Discard buffered output after a write error, so that the interpreter reports no error at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
            try:
                stream.flush()
            except (OSError, ValueError):
                os.dup2(null, fd)
    finally:
        os.close(null)
