"""One SCSI command that needs the disk's file: the job that a thread runs, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyvmm.devices.storvsc.disk import Disk
from pyvmm.devices.storvsc.protocol import Request
from pyvmm.devices.storvsc.scsi.work import Work
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

    def run(self) -> None:
        """Do the work; an error is kept."""
        try:
            self.moved = self.work.run(self.disk.image, self.views)
        except OSError as error:
            self.error = error
        except Exception as error:  # a bug of ours must not leave the guest without an answer
            self.error = OSError(0, f"{type(error).__name__}: {error}")

    def finish(self) -> None:
        """Hand the outcome to the controller."""
        self.finished(self)
