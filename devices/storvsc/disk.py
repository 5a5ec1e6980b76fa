"""A disk: a LUN of the controller, with its image, its counters and what it does when the image fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from pyvmm.devices.storvsc.scsi.sense import CAPACITY_CHANGED, Sense
from pyvmm.devices.storvsc.scsi.work import Discard, Flush, Read, Work, Write
from pyvmm.disks.spec import ErrorPolicy, ReadErrorPolicy

if TYPE_CHECKING:
    from pyvmm.devices.storvsc.request import DiskJob
    from pyvmm.disks.image import Image

SECTOR_SIZE, PHYSICAL_SIZE = 512, 4096

MAX_TRANSFER = 1 << 20
"""Most bytes of one command. Hyper-V's hosts announce 256 KiB; each command costs us some hundred µs of Python, so
that larger ones are what makes sequential I/O fast. A GPA_DIRECT packet for it has 2 KiB."""


class Presence(Enum):
    """Whether the guest finds the disk: `leaving` while it is to let go of it."""

    PRESENT = "present"
    LEAVING = "leaving"
    GONE = "gone"


@dataclass(slots=True)
class Statistics:
    """QEMU's BlockDeviceStats, as far as they are counted."""

    rd_bytes: int = 0
    wr_bytes: int = 0
    rd_operations: int = 0
    wr_operations: int = 0
    flush_operations: int = 0
    unmap_operations: int = 0
    failed: int = 0

    def count(self, work: Work, moved: int) -> None:
        """Count one command that succeeded."""
        if isinstance(work, (Read, Write)):
            self.count_transfer(work.writes, moved)
        elif isinstance(work, Flush):
            self.flush_operations += 1
        elif isinstance(work, Discard):
            self.unmap_operations += 1

    def count_transfer(self, writes: bool, moved: int) -> None:
        """Count one READ or WRITE that succeeded."""
        if writes:
            self.wr_operations += 1
            self.wr_bytes += moved
        else:
            self.rd_operations += 1
            self.rd_bytes += moved


@dataclass(slots=True, eq=False)
class Disk:
    """One disk on the controller. `lun` is its number there."""

    id: str
    image: Image
    lun: int
    serial: str
    werror: ErrorPolicy = "enospc"
    rerror: ReadErrorPolicy = "report"
    presence: Presence = Presence.PRESENT
    outstanding: int = 0  # commands in the hands of threads, or waiting for the machine to go on
    stale: int = 0  # those of them whose channel was closed: nothing new may overtake them
    waiting: list[DiskJob] = field(default_factory=list)  # commands that wait for the stale ones
    asked: bool = False  # since it is leaving: the guest has found it missing
    failed: bool = False  # the machine stopped for it, and has not gone on
    no_space: bool = False
    attention: Sense | None = None  # to be told with the next command
    stats: Statistics = field(default_factory=Statistics)
    sector_size: int = SECTOR_SIZE
    physical_size: int = PHYSICAL_SIZE

    @property
    def read_only(self) -> bool:
        return self.image.read_only

    @property
    def sectors(self) -> int:
        return self.image.size // self.sector_size

    @property
    def max_transfer(self) -> int:
        return MAX_TRANSFER

    def resized(self) -> None:
        """Tell the guest with its next command that the size has changed."""
        self.attention = CAPACITY_CHANGED
