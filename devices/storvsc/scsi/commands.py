"""The table of SCSI commands: each reads its CDB and returns a Reply or Work, or raises CheckCondition.

Source: T10 SPC-5 chapter 6, SBC-4 chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import pack, unpack_from
from typing import Protocol

from pyvmm.devices.storvsc.scsi import inquiry, sense
from pyvmm.devices.storvsc.scsi.modes import mode_sense
from pyvmm.devices.storvsc.scsi.sense import CheckCondition
from pyvmm.devices.storvsc.scsi.work import Discard, Fill, Flush, Read, Reply, Work, Write

PARAMETERS_LIMIT = 8 + 16 * inquiry.UNMAP_DESCRIPTORS
"""Bytes read of what comes with a command that is no WRITE: the longest list of UNMAP, or a block."""

FORCE_UNIT_ACCESS = 0x08


class Target(inquiry.Described, Protocol):
    """The disk as commands see it."""

    @property
    def sectors(self) -> int:
        """Its size in sectors."""


Answer = Reply | Work


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table. `takes`: it comes with parameters from the guest, that `run` gets."""

    run: Callable[[Target, bytes, bytes], Answer]
    takes: bool = False


def execute(disk: Target, cdb: bytes, parameters: bytes = b"") -> Answer:
    """Execute the command in `cdb`, of 16 bytes. Raises CheckCondition, nothing else."""
    command = COMMANDS.get(cdb[0])
    if command is None:
        raise CheckCondition(sense.UNKNOWN_COMMAND)
    return command.run(disk, cdb, parameters)


def takes_parameters(cdb: bytes) -> bool:
    """Whether the command's data are parameters for `execute`, not data of the disk."""
    command = COMMANDS.get(cdb[0])
    return command is not None and command.takes


def report_luns(luns: list[int], cdb: bytes) -> Reply:
    """REPORT LUNS, which a controller answers for any of its targets."""
    (room,) = unpack_from(">I", cdb, 6)
    entries = b"".join(pack(">BB6x", 0, lun) for lun in luns)
    return Reply((pack(">I4x", len(entries)) + entries)[:room])


# Reading and writing


def _bounds(disk: Target, block: int, blocks: int) -> tuple[int, int]:
    """Return offset and length in bytes. Raises CheckCondition past the disk's end."""
    if block + blocks > disk.sectors:
        raise CheckCondition(sense.OUT_OF_RANGE)
    return block * disk.sector_size, blocks * disk.sector_size


def _place6(cdb: bytes) -> tuple[int, int]:
    (word,) = unpack_from(">I", cdb)
    return word & 0x1FFFFF, cdb[4] or 256


def _place10(cdb: bytes) -> tuple[int, int]:
    return unpack_from(">I", cdb, 2)[0], unpack_from(">H", cdb, 7)[0]


def _place12(cdb: bytes) -> tuple[int, int]:
    block, blocks = unpack_from(">II", cdb, 2)
    return block, blocks


def _place16(cdb: bytes) -> tuple[int, int]:
    block, blocks = unpack_from(">QI", cdb, 2)
    return block, blocks


Place = Callable[[bytes], tuple[int, int]]


def _read(place: Place) -> Command:
    def run(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
        offset, length = _bounds(disk, *place(cdb))
        return Read(offset, length) if length else Reply()

    return Command(run)


def _write(place: Place) -> Command:
    through = FORCE_UNIT_ACCESS if place is not _place6 else 0

    def run(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
        offset, length = _bounds(disk, *place(cdb))
        _check_writable(disk)
        return Write(offset, length, bool(cdb[1] & through)) if length else Reply()

    return Command(run)


def _verify(place: Place) -> Command:
    """VERIFY without a comparison: the range must exist."""

    def run(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
        if cdb[1] & 0x06:  # BYTCHK: compare with data of the guest
            raise CheckCondition(sense.BAD_FIELD)
        _bounds(disk, *place(cdb))
        return Reply()

    return Command(run)


def _synchronize(place: Place) -> Command:
    def run(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
        _bounds(disk, *place(cdb))
        return Reply() if disk.read_only else Flush()

    return Command(run)


def _check_writable(disk: Target) -> None:
    if disk.read_only:
        raise CheckCondition(sense.WRITE_PROTECTED)


def _write_same(place: Place, *, no_block: int) -> Command:
    """WRITE SAME; `no_block` is the bit of byte 1 by which the block is left out and is zeroes."""

    def run(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
        block, blocks = place(cdb)
        offset, length = _bounds(disk, block, blocks)
        _check_writable(disk)
        if not blocks or length > inquiry.FILL_BYTES or cdb[1] & 0x10:  # ANCHOR
            raise CheckCondition(sense.BAD_FIELD)
        if cdb[1] & no_block:
            return Fill(offset, length, bytes(disk.sector_size), 0, unmap=bool(cdb[1] & 0x08))
        if len(parameters) < disk.sector_size:
            raise CheckCondition(sense.BAD_FIELD)
        pattern = parameters[: disk.sector_size]
        return Fill(offset, length, pattern, disk.sector_size, unmap=bool(cdb[1] & 0x08))

    return Command(run, takes=True)


def _unmap(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    (size,) = unpack_from(">H", cdb, 7)
    if cdb[1] & 1:  # ANCHOR
        raise CheckCondition(sense.BAD_FIELD)
    _check_writable(disk)
    if not size:
        return Reply()
    if size < 8 or len(parameters) < min(size, PARAMETERS_LIMIT):
        raise CheckCondition(sense.BAD_LENGTH)
    (listed,) = unpack_from(">H", parameters, 2)
    count = min(listed, size - 8) // 16
    if count > inquiry.UNMAP_DESCRIPTORS:
        raise CheckCondition(sense.BAD_PARAMETER)
    ranges = []
    for at in range(8, 8 + 16 * count, 16):
        block, blocks = unpack_from(">QI", parameters, at)
        offset, length = _bounds(disk, block, blocks)
        if length:
            ranges.append((offset, length))
    return Discard(ranges, size)


# What the disk is


def _inquiry(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    (room,) = unpack_from(">H", cdb, 3)
    if cdb[1] & 1:
        return Reply(inquiry.vital(disk, cdb[2])[:room])
    if cdb[2]:
        raise CheckCondition(sense.BAD_FIELD)
    return Reply(inquiry.standard()[:room])


def _read_capacity10(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    return Reply(pack(">II", min(disk.sectors - 1, 0xFFFFFFFF), disk.sector_size))


def _service_in16(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    if cdb[1] & 0x1F != 0x10:  # READ CAPACITY(16)
        raise CheckCondition(sense.BAD_FIELD)
    (room,) = unpack_from(">I", cdb, 10)
    exponent = (disk.physical_size // disk.sector_size).bit_length() - 1
    provisioning = 0 if disk.read_only else 0x80
    return Reply(
        pack(">QIBBB17x", disk.sectors - 1, disk.sector_size, 0, exponent, provisioning)[:room],
    )


def _mode_sense6(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    return Reply(mode_sense(cdb, read_only=disk.read_only, ten=False)[: cdb[4]])


def _mode_sense10(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    (room,) = unpack_from(">H", cdb, 7)
    return Reply(mode_sense(cdb, read_only=disk.read_only, ten=True)[:room])


def _mode_select(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    """Nothing can be changed: only an empty list is right."""
    if any(parameters):
        raise CheckCondition(sense.BAD_PARAMETER)
    return Reply()


def _request_sense(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    return Reply(sense.NO_SENSE.build()[: cdb[4]])


def _nothing(disk: Target, cdb: bytes, parameters: bytes) -> Answer:
    return Reply()


COMMANDS: dict[int, Command] = {
    0x00: Command(_nothing),  # TEST UNIT READY
    0x03: Command(_request_sense),
    0x08: _read(_place6),
    0x0A: _write(_place6),
    0x12: Command(_inquiry),
    0x15: Command(_mode_select, takes=True),
    0x16: Command(_nothing),  # RESERVE
    0x17: Command(_nothing),  # RELEASE
    0x1A: Command(_mode_sense6),
    0x1B: Command(_nothing),  # START STOP UNIT
    0x1D: Command(_nothing),  # SEND DIAGNOSTIC
    0x1E: Command(_nothing),  # PREVENT ALLOW MEDIUM REMOVAL
    0x25: Command(_read_capacity10),
    0x28: _read(_place10),
    0x2A: _write(_place10),
    0x2F: _verify(_place10),
    0x35: _synchronize(_place10),
    0x41: _write_same(_place10, no_block=0),
    0x42: Command(_unmap, takes=True),
    0x55: Command(_mode_select, takes=True),
    0x5A: Command(_mode_sense10),
    0x88: _read(_place16),
    0x8A: _write(_place16),
    0x8F: _verify(_place16),
    0x91: _synchronize(_place16),
    0x93: _write_same(_place16, no_block=1),
    0x9E: Command(_service_in16),
    0xA8: _read(_place12),
    0xAA: _write(_place12),
    0xAF: _verify(_place12),
}

INQUIRY, TEST_UNIT_READY, SYNCHRONIZE_CACHE, REPORT_LUNS = 0x12, 0x00, 0x35, 0xA0
