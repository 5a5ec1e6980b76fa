"""INQUIRY: what a disk tells about itself, the standard data and the pages of vital product data (VPD).

Source: T10 SPC-5, 6.6 and 7.7, SBC-4, 6.6; Linux drivers/scsi/{scsi_scan,scsi,sd}.c for what is read.
"""

from __future__ import annotations

from struct import pack
from typing import Protocol

from pyvmm.devices.storvsc.scsi.sense import BAD_FIELD, CheckCondition

VENDOR, PRODUCT, REVISION = b"pyvmm   ", b"Virtual Disk    ", b"1.0 "
"""Not Hyper-V's "Msft": for that Linux claims another SCSI level than the one announced."""

NO_DEVICE = 0x7F
"""First byte of the answer for a LUN that is not there: qualifier 3, type 31."""

UNMAP_DESCRIPTORS = 256
UNMAP_BLOCKS = 0xFFFFFFFF
FILL_BYTES = 8 << 20
"""Longest WRITE SAME: on a file system without holes the zeroes are written one by one."""

LBPU, LBPWS, LBPWS10 = 0x80, 0x40, 0x20
"""UNMAP, WRITE SAME(16) and (10) can unmap. What was unmapped need not read as zeroes: a file system without holes
keeps it."""
THIN = 2


class Described(Protocol):
    """The part of a disk that INQUIRY shows."""

    serial: str
    sector_size: int
    physical_size: int

    @property
    def read_only(self) -> bool: ...

    @property
    def max_transfer(self) -> int:
        """Most bytes of one command."""


def standard() -> bytes:
    """Return the standard data of a disk: SPC-3, with tagged queueing."""
    return pack(">BBBBBBBB8s16s4s", 0, 0, 5, 2, 91, 0, 0, 2, VENDOR, PRODUCT, REVISION).ljust(96, b"\0")


def absent(size: int = 96) -> bytes:
    """Return the standard data for a LUN that is not there. Linux takes any error, even an empty answer, for a
    disk."""
    return pack(">BBBBB", NO_DEVICE, 0, 5, 2, 91).ljust(size, b"\0")


def vital(disk: Described, page: int) -> bytes:
    """Return a page of vital product data. Raises CheckCondition for one that there is not."""
    make = _PAGES.get(page)
    if make is None:
        raise CheckCondition(BAD_FIELD)
    data = make(disk)
    return pack(">BBH", 0, page, len(data)) + data


def _supported(disk: Described) -> bytes:
    return bytes(sorted(_PAGES))


def _serial(disk: Described) -> bytes:
    return disk.serial.encode("ascii", "replace")


def _identification(disk: Described) -> bytes:
    """Return a T10 vendor identification, of which udev makes /dev/disk/by-id/scsi-1pyvmm_..."""
    name = VENDOR + disk.serial.encode("ascii", "replace")
    return pack(">BBxB", 0x02, 0x01, len(name)) + name


def _limits(disk: Described) -> bytes:
    largest = disk.max_transfer // disk.sector_size
    unmap = (0, 0) if disk.read_only else (UNMAP_BLOCKS, UNMAP_DESCRIPTORS)
    granularity = disk.physical_size // disk.sector_size
    return pack(
        ">BBHIIIIIIIQ20x",
        0x01,  # WSNZ: WRITE SAME of "all to the end" is not supported
        0,
        granularity,
        largest,
        largest,
        0,
        *unmap,
        granularity,
        1 << 31,  # the alignment of discards is valid: 0
        0 if disk.read_only else FILL_BYTES // disk.sector_size,
    )


def _characteristics(disk: Described) -> bytes:
    return pack(">H", 1).ljust(60, b"\0")  # does not rotate


def _provisioning(disk: Described) -> bytes:
    if disk.read_only:
        return bytes(4)
    return pack(">BBBB", 0, LBPU | LBPWS | LBPWS10, THIN, 0)


_PAGES = {
    0x00: _supported,
    0x80: _serial,
    0x83: _identification,
    0xB0: _limits,
    0xB1: _characteristics,
    0xB2: _provisioning,
}
