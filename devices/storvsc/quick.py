"""READ and WRITE of what lies in the host's page cache: served on the loop, in few steps, as they are most commands.

    GPA_DIRECT packet --QuickPath.serve--> answer
                                   --> None: anything out of the ordinary, which `controller` serves or refuses

A thread would cost more than such a transfer. AT_ONCE_PER_TURN bounds what a guest can have done so in one turn.
"""

from __future__ import annotations

from struct import Struct

from pyvmm.devices.storvsc import events as trace
from pyvmm.devices.storvsc.disk import Disk, Presence
from pyvmm.devices.storvsc.hotplug import Disks
from pyvmm.devices.storvsc.protocol import PACKET_SIZE, Operation, done_packet
from pyvmm.devices.storvsc.workers import Budget
from pyvmm.errors import GuestError
from pyvmm.loop import Poster
from pyvmm.memory import GuestMemory
from pyvmm.views import total
from pyvmm.vmbus.packet import Packet, direct_views

AT_ONCE_PER_TURN = 8 << 20
"""Bytes read and written on the loop's own thread in one turn, if they lie in the page cache: some 1.3 ms. What
exceeds it goes to the threads, with a copy more."""

_EXECUTE_SRB = int(Operation.EXECUTE_SRB)
_SRB = Struct("<I13xBBBxxBxI")  # operation, path, target, LUN, direction, length
_CDB_AT = 28
_TEN, _SIXTEEN = Struct(">xBIxH"), Struct(">xBQI")  # flags, block, blocks
_CDB = {0x28: _TEN, 0x2A: _TEN, 0x88: _SIXTEEN, 0x8A: _SIXTEEN}
_WRITES = 2
"""The bit of the opcodes that says WRITE."""


class QuickPath:
    """Serves transfers on the loop's thread, a bounded number of bytes in each turn."""

    def __init__(self, loop: Poster, disks: Disks) -> None:
        self._budget = Budget(loop, AT_ONCE_PER_TURN)
        self._disks = disks

    def serve(self, packet: Packet, memory: GuestMemory) -> bytes | None:
        """Serve a GPA_DIRECT packet; return the answer, or None if nothing was done and no data are lost thereby."""
        payload = packet.payload
        if len(payload) != PACKET_SIZE:
            return None
        operation, path, target, lun, direction, length = _SRB.unpack_from(payload)
        opcode = payload[_CDB_AT]
        form = _CDB.get(opcode)
        if form is None or operation != _EXECUTE_SRB or path or target or not length:
            return None
        disk = self._disks.all.get(lun)
        if disk is None or disk.presence is not Presence.PRESENT or disk.attention is not None or disk.stale:
            return None
        flags, block, blocks = form.unpack_from(payload, _CDB_AT)
        writes = opcode & _WRITES
        image, sector_size = disk.image, disk.sector_size
        offset = block * sector_size
        if (
            blocks * sector_size != length
            or offset + length > image.size
            or direction != (not writes)
            or (writes and (flags or image.read_only))  # FUA needs a flush
            or not self._budget.take(length)
        ):
            return None
        try:
            views = direct_views(packet, memory, length)
            if total(views) != length or not (image.try_write if writes else image.try_read)(views, offset):
                return None
        except (GuestError, OSError):
            return None  # to be met again, and reported
        self._count(disk, packet.transaction_id, opcode, length)
        return done_packet(payload)

    def _count(self, disk: Disk, number: int, opcode: int, length: int) -> None:
        if trace.command.on:
            trace.command(number, disk.lun, opcode, length)
        if trace.done.on:
            trace.done(number, disk.lun, opcode, length)
        disk.stats.count_transfer(bool(opcode & _WRITES), length)
