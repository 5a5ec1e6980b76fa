"""The controller: the VMBus device that serves the guest's commands. See the package's docstring.

    closed --opened--> starting --BEGIN--> begun --VERSION--> agreed --END_INITIALIZATION--> ready --closed--> closed

Sub-channels carry commands as the primary channel does; the rest travels on the primary channel alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.storvsc import events as trace
from pyvmm.devices.storvsc.disk import MAX_TRANSFER, Disk, Presence
from pyvmm.devices.storvsc.errors import ErrorReports
from pyvmm.devices.storvsc.hotplug import GRACE, Disks
from pyvmm.devices.storvsc.protocol import (
    VERSIONS,
    Direction,
    Operation,
    Request,
    Status,
    unsolicited,
)
from pyvmm.devices.storvsc.quick import QuickPath
from pyvmm.devices.storvsc.request import DiskJob
from pyvmm.devices.storvsc.scsi import commands, inquiry
from pyvmm.devices.storvsc.scsi.sense import CheckCondition, Sense, sense_of
from pyvmm.devices.storvsc.scsi.work import Flush, Reply, Work
from pyvmm.devices.storvsc.workers import Workers
from pyvmm.errors import GuestError, GuestProtocolError
from pyvmm.loop import Poster
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.packet import Packet, PacketType, direct_views

DATA_LIMIT = 8 << 20
"""Most bytes that a command may move: what a GPA_DIRECT packet can name. Linux 5.10 exceeds what it was told."""


CLOSE_SECONDS = 10.0
"""Seconds that the machine's end waits for host disks."""


class Phase(IntEnum):
    """How far the driver has come."""

    CLOSED = 0
    STARTING = 1
    BEGUN = 2
    AGREED = 3
    READY = 4


class Controller(VmbusDevice):
    """A SCSI controller with the disks `disks`. `sub_channels` is how many the guest may ask for."""

    OFFER: ClassVar[Offer] = Offer(
        "storvsc",
        type=UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"),
        instance=UUID("0f3c2b8e-51d7-4a0c-9a3e-70796d6d0010"),
    )
    OWN_COMPLETIONS: ClassVar[int] = 256
    """Linux has 217 outstanding at most (of 124 KiB of ring)."""

    LEAVING_SECONDS: ClassVar[float] = GRACE + 5.0

    def __init__(self, loop: Poster, reports: ErrorReports, *, sub_channels: int = 0) -> None:
        self.phase = Phase.CLOSED
        self.version = 0
        self.workers = Workers(loop)
        self.disks = Disks(self)
        self._quick = QuickPath(loop, self.disks)
        self.primary: Channel | None = None
        self._reports = reports
        self._sub_channels = sub_channels
        self._jobs: set[DiskJob] = set()  # all that were not finished
        self._resumes = 0  # how often the machine went on
        self._stopped: list[DiskJob] = []  # those that failed and are tried again when the machine goes on
        self._left: Callable[[], object] | None = None  # `done` of leaving

    # The bus

    def opened(self, channel: Channel) -> None:
        if not channel.sub_channel:
            self.primary = channel
            self.phase = Phase.STARTING

    def closed(self, channel: Channel) -> None:
        """Cancel the channel's commands: no thread may use guest memory when the answer is sent to the guest.
        What the threads do with the disks still has to end before anything new is done with them.
        """
        for job in [each for each in self._jobs if each.channel is channel]:
            job.cancel()
            job.disk.stale += 1
            if job in self._stopped or job in job.disk.waiting:
                self._finished(job)
        self._stopped = [each for each in self._stopped if not each.cancelled]
        if not channel.sub_channel:
            self.primary = None
            self.phase = Phase.CLOSED
            self._left = None
            self.disks.driver_left()

    def leaving(self, done: Callable[[], object]) -> None:
        """Take the disks away first: Linux hangs if a disk is in use when its controller is rescinded."""
        self._left = done
        for disk in list(self.disks.present()):
            self.disks.hide(disk)
        self.check_left()

    def check_left(self) -> None:
        """Let the bus rescind the controller once no disk and no command is left."""
        if self._left is not None and self.disks.all_gone() and not self._jobs:
            done, self._left = self._left, None
            done()

    def reset(self) -> None:
        self.disks.driver_left()

    def quiesce(self) -> None:
        """End the threads, once what they do is done."""
        self.workers.stop()

    def resumed(self) -> None:
        """Try what failed again, as the machine goes on."""
        self._resumes += 1
        stopped, self._stopped = self._stopped, []
        for job in stopped:
            job.disk.failed = False
            self._submit(job)

    def close(self) -> None:
        """Close the images. The bus was reset. Those of host disks that do not answer stay open."""
        self.workers.stop(CLOSE_SECONDS)
        self.disks.close()

    @property
    def serving(self) -> bool:
        """Whether a driver uses the disks."""
        return self.phase is Phase.READY

    def enumerate(self) -> None:
        """Have the guest scan for disks again."""
        if self.primary is not None and self.serving:
            with suppress(GuestError):  # it reads nothing, and will not scan either
                self.primary.send(unsolicited(Operation.ENUMERATE_BUS))

    # Packets

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Serve one packet."""
        if packet.type == _GPA_DIRECT and packet.flags & 1 and self.phase is Phase.READY:
            answer = self._quick.serve(packet, channel.memory)
            if answer is not None:
                channel.complete(packet.transaction_id, answer)
                return
        if packet.type not in (PacketType.IN_BAND, PacketType.GPA_DIRECT):
            raise GuestProtocolError(f"storvsc: packet type {packet.type} is not served")
        if not packet.flags & 1:
            raise GuestProtocolError("storvsc: a packet that wants no completion")
        request = Request.parse(packet.payload)
        if request.operation == Operation.EXECUTE_SRB:
            if self.phase is not Phase.READY:
                channel.complete(packet.transaction_id, bytes(request.answer(Status.INVALID_DEVICE_STATE)))
            else:
                self._execute(channel, packet, request)
        else:
            channel.complete(packet.transaction_id, bytes(self._serve(channel, request)))

    def _serve(self, channel: Channel, request: Request) -> bytearray:
        """Answer what is no command: the handshake, in its order, and resets."""
        if trace.handshake.on:
            trace.handshake(channel.sub_channel, request.operation, request.version)
        if channel.sub_channel and request.operation not in _RESETS:
            return request.answer(Status.INVALID_DEVICE_STATE)
        match request.operation:
            case Operation.BEGIN_INITIALIZATION if self.phase is Phase.STARTING:
                self.phase = Phase.BEGUN
            case Operation.QUERY_PROTOCOL_VERSION if self.phase is Phase.BEGUN:
                if request.version not in VERSIONS:
                    return request.answer(Status.REVISION_MISMATCH)
                self.version = request.version
                self.phase = Phase.AGREED
            case Operation.QUERY_PROPERTIES if self.phase is Phase.AGREED:
                return request.answer_properties(sub_channels=self._sub_channels, max_transfer=MAX_TRANSFER)
            case Operation.END_INITIALIZATION if self.phase is Phase.AGREED:
                self.phase = Phase.READY
                if trace.ready.on:
                    trace.ready(self.version, self._sub_channels)
            case Operation.CREATE_SUB_CHANNELS if self.phase is Phase.READY:
                return self._create_sub_channels(channel, request)
            case Operation.RESET_LUN | Operation.RESET_ADAPTER | Operation.RESET_BUS:
                pass  # what is outstanding is answered in its time
            case _:
                return request.answer(Status.INVALID_DEVICE_STATE)
        return request.answer()

    def _create_sub_channels(self, channel: Channel, request: Request) -> bytearray:
        if not 1 <= request.sub_channels <= self._sub_channels:
            return request.answer(Status.INVALID_PARAMETER)
        try:
            for number in range(1, request.sub_channels + 1):
                channel.offer_sub_channel(number)
        except GuestError:  # offered already
            return request.answer(Status.INVALID_DEVICE_STATE)
        return request.answer()

    # Commands

    def _execute(self, channel: Channel, packet: Packet, request: Request) -> None:
        cdb, number = request.cdb, packet.transaction_id
        disk = self.disks.find(request.path, request.target, request.lun)
        try:
            if disk is None or disk.presence is not Presence.PRESENT:
                absent = self._absent(channel, packet, request, disk)
                if disk is None or absent:
                    return
            if trace.command.on:
                trace.command(number, request.lun, cdb[0], request.length)
            if disk.attention is not None and cdb[0] not in _QUIET:
                sense, disk.attention = disk.attention, None
                raise CheckCondition(sense)
            views: list[memoryview] = []
            if packet.type == PacketType.GPA_DIRECT:
                views = direct_views(packet, channel.memory, DATA_LIMIT)
            if cdb[0] == commands.REPORT_LUNS:
                self._reply(channel, number, request, commands.report_luns(self.disks.luns(), cdb), views)
                return
            parameters = _copy(views, commands.PARAMETERS_LIMIT) if commands.takes_parameters(cdb) else b""
            answer = commands.execute(disk, cdb, parameters)
            if isinstance(answer, Reply):
                self._reply(channel, number, request, answer, views)
                if disk.asked and cdb[0] == commands.SYNCHRONIZE_CACHE:  # of a read-only disk
                    self.disks.flushed_last(disk)
            else:
                self._begin(channel, number, request, disk, answer, views)
        except CheckCondition as failure:
            self._fail(channel, number, request, failure.sense)
        except GuestError:
            channel.complete(number, bytes(request.answer_invalid()))
            raise

    def _absent(self, channel: Channel, packet: Packet, request: Request, disk: Disk | None) -> bool:
        """Answer a command for a LUN that is not there, or leaving: return False if a leaving one serves it."""
        opcode, number = request.cdb[0], packet.transaction_id
        if opcode == commands.INQUIRY:
            views = direct_views(packet, channel.memory, DATA_LIMIT) if packet.type == PacketType.GPA_DIRECT else []
            room = request.cdb[3] << 8 | request.cdb[4]
            self._reply(channel, number, request, Reply(inquiry.absent()[:room]), views)
        elif opcode == commands.REPORT_LUNS:
            views = direct_views(packet, channel.memory, DATA_LIMIT) if packet.type == PacketType.GPA_DIRECT else []
            luns = self.disks.luns() if not (request.path or request.target) else []
            self._reply(channel, number, request, commands.report_luns(luns, request.cdb), views)
        elif disk is not None and disk.presence is Presence.LEAVING and opcode != commands.TEST_UNIT_READY:
            return False  # Linux flushes a disk that it lets go of
        else:
            if trace.no_lun.on:
                trace.no_lun(number, request.path, request.target, request.lun, opcode)
            channel.complete(number, bytes(request.answer_no_lun()))
            if disk is not None:
                self.disks.found_missing(disk)
        return True

    def _reply(self, channel: Channel, number: int, request: Request, reply: Reply, views: list[memoryview]) -> None:
        moved = 0
        for view in views:
            piece = reply.data[moved : moved + len(view)]
            view[: len(piece)] = piece
            moved += len(piece)
        self._complete(channel, number, request, moved)

    def _complete(self, channel: Channel, number: int, request: Request, moved: int) -> None:
        if trace.done.on:
            trace.done(number, request.lun, request.cdb[0], moved)
        channel.complete(number, bytes(request.answer_done(moved)))

    def _fail(self, channel: Channel, number: int, request: Request, sense: Sense) -> None:
        if trace.failed.on:
            trace.failed(number, request.lun, request.cdb[0], str(sense))
        channel.complete(number, bytes(request.answer_check_condition(sense.build())))

    def _begin(
        self, channel: Channel, number: int, request: Request, disk: Disk, work: Work, views: list[memoryview]
    ) -> None:
        """Give the work to a thread, with as much of the guest's memory as it moves."""
        wanted = getattr(work, "length", 0) if request.direction != Direction.NONE else 0
        if request.cdb[0] in _MOVING:
            views = _first(views, wanted)
        job = DiskJob(channel, number, request, disk, work, views, self._finished)
        disk.outstanding += 1
        self._jobs.add(job)
        self._submit(job)

    def _submit(self, job: DiskJob) -> None:
        """Give a job to a thread, after the commands of a channel that was closed."""
        job.error, job.attempt = None, self._resumes
        if job.disk.stale:
            job.disk.waiting.append(job)
        else:
            self.workers.submit(job)

    def _finished(self, job: DiskJob) -> None:
        """Answer a command whose thread is done; or keep it, if the machine stops for the error."""
        if job.cancelled:
            self._release(job)
            return
        if job.error is not None and job.attempt != self._resumes:  # whatever it was may have been put right
            self._submit(job)
            return
        if job.channel.is_open and job.error is not None and self._reports.stops(job.disk, job.work, job.error):
            self._stopped.append(job)
            return
        try:
            if job.channel.is_open:
                self._answer(job)
        except GuestError as error:  # it reads no answers, and has as many commands outstanding as there may be
            if trace.unanswered.on:
                trace.unanswered(job.transaction_id, str(error))
        finally:
            self._release(job)

    def _answer(self, job: DiskJob) -> None:
        if job.error is None:
            job.disk.stats.count(job.work, job.moved)
            self._complete(job.channel, job.transaction_id, job.request, job.moved)
            if job.disk.asked and isinstance(job.work, Flush):
                self.disks.flushed_last(job.disk)
        else:
            job.disk.stats.failed += 1
            sense = sense_of(job.error, writing=job.work.writes)
            self._fail(job.channel, job.transaction_id, job.request, sense)

    def _release(self, job: DiskJob) -> None:
        disk = job.disk
        self._jobs.remove(job)
        disk.outstanding -= 1
        disk.stale -= job.cancelled
        if not disk.stale:
            waiting, disk.waiting = disk.waiting, []
            for each in waiting:
                if not each.cancelled:
                    self.workers.submit(each)
        self.disks.check_gone(disk)
        self.check_left()


_GPA_DIRECT = int(PacketType.GPA_DIRECT)
_RESETS = (Operation.RESET_LUN, Operation.RESET_ADAPTER, Operation.RESET_BUS)
_QUIET = (commands.INQUIRY, commands.REPORT_LUNS, 0x03)
"""Commands that a unit attention does not fail."""
_MOVING = frozenset((0x08, 0x0A, 0x28, 0x2A, 0x88, 0x8A, 0xA8, 0xAA))
"""READ and WRITE."""


def _copy(views: list[memoryview], limit: int) -> bytes:
    """Return a copy of the first bytes: the guest may change them meanwhile."""
    parts, left = [], limit
    for view in views:
        parts.append(bytes(view[:left]))
        left -= len(parts[-1])
        if not left:
            break
    return b"".join(parts)


def _first(views: list[memoryview], length: int) -> list[memoryview]:
    """Return the first `length` bytes of the guest's memory. Raises GuestProtocolError if there are not so many."""
    size = sum(map(len, views))
    if size == length:
        return views
    if size < length:
        raise GuestProtocolError(f"storvsc: a command moves {length} bytes, and comes with memory of {size}")
    kept: list[memoryview] = []
    for view in views:
        kept.append(view[:length])
        length -= len(kept[-1])
        if not length:
            break
    return kept
