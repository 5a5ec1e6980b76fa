"""One SCSI command that needs the disk's file: the job that a thread runs, and what becomes of it.

    loop:    DiskJob --Workers.submit-->            cancel(): guest memory is left alone from now on
    thread:  run(): READ   file --> buffer --> guest memory
                    WRITE  guest memory --> buffer --> file
    loop:    finish()

The buffer is what makes a command end at any time: a read or write of a host's disk that does not answer cannot be
called back, and must not access the memory of a guest that has gone on without it. Only what the page cache does not
hold goes this way (`quick`), so that a copy more costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from pyvmm.devices.storvsc.disk import Disk
from pyvmm.devices.storvsc.protocol import Request
from pyvmm.devices.storvsc.scsi.work import Read, Work, Write
from pyvmm.vmbus.channel import Channel


@dataclass(slots=True, eq=False)
class DiskJob:
    """A command on its way through a thread: `run` there, `finish` on the loop."""

    channel: Channel
    transaction_id: int
    request: Request
    disk: Disk
    work: Work
    views: list[memoryview]
    finished: Callable[[DiskJob], None]
    moved: int = 0
    error: OSError | None = None
    attempt: int = 0  # how often the machine had gone on after an error when this was begun
    cancelled: bool = False  # its channel was closed: the guest waits for no answer
    _lock: Lock = field(default_factory=Lock)  # held while guest memory is accessed

    def run(self) -> None:
        """Do the work; an error is kept."""
        try:
            self.moved = self._run()
        except OSError as error:
            self.error = error
        except Exception as error:  # a bug of ours must not leave the guest without an answer
            self.error = OSError(0, f"{type(error).__name__}: {error}")

    def _run(self) -> int:
        image = self.disk.image
        if isinstance(self.work, Write):
            with self._lock:
                data = b"".join(self.views)
            return 0 if self.cancelled else self.work.run(image, [memoryview(data)])
        if isinstance(self.work, Read):
            buffer = memoryview(bytearray(self.work.length))
            self.work.run(image, [buffer])
            with self._lock:
                at = 0
                for view in self.views:
                    view[:] = buffer[at : at + len(view)]
                    at += len(view)
            return self.work.length
        return 0 if self.cancelled else self.work.run(image, [])

    def cancel(self) -> None:
        """Leave guest memory alone from now on. It waits for a copy at most."""
        with self._lock:
            self.cancelled = True
            self.views = []

    def finish(self) -> None:
        """Hand the outcome to the controller."""
        self.finished(self)
