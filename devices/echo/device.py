"""The echo device: carries out the commands of `protocol` on each of its channels apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.echo import events as trace
from pyvmm.devices.echo.protocol import MAGIC, TYPE_GUID, Command, Report, Request
from pyvmm.errors import GuestProtocolError
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.packet import Packet, PacketType, direct_views

PACKETS_PER_TURN = 64
"""Packets that SOURCE sends in one turn of the loop."""
LATER_LIMIT = 64
"""Payloads of a channel that wait for their time."""
SHARED_LIMIT = 8 << 20
"""Bytes of guest memory that one packet may have inverted or written: a fraction of a millisecond's work each MiB."""

_INVERSE = bytes(255 - value for value in range(256))


@dataclass(slots=True)
class Work:
    """What is under way on one channel."""

    channel: Channel
    sink_count: int = 0  # packets that SINK asked for; 0: packets are answered
    sunk: int = 0
    sunk_bytes: int = 0
    source_count: int = 0
    poured: int = 0
    size: int = 0
    waiting: int = 0  # payloads of LATER


class Echo(VmbusDevice):
    """The device. `monitored`: the guest signals it through the monitor page, as uio_hv_generic before Linux 6.10
    needs. `returned` counts the TRANSFER_PAGES packets that the guest completed.
    """

    OFFER: ClassVar[Offer] = Offer(
        "echo", type=UUID(TYPE_GUID), instance=UUID("6a3a6f0e-3c58-4b0f-9c4e-70796d6d0001")
    )
    MONITORED: ClassVar[Offer] = Offer(
        "echo-monitored",
        type=UUID(TYPE_GUID),
        instance=UUID("6a3a6f0e-3c58-4b0f-9c4e-70796d6d0002"),
        monitored=True,
    )

    def __init__(self, *, monitored: bool = False) -> None:
        self.returned = 0
        self._work: dict[Channel, Work] = {}
        self._offer = self.MONITORED if monitored else self.OFFER

    @property
    def offer(self) -> Offer:
        return self.numbered(self._offer)

    def opened(self, channel: Channel) -> None:
        self._work[channel] = Work(channel)

    def closed(self, channel: Channel) -> None:
        del self._work[channel]

    def packet(self, channel: Channel, packet: Packet) -> None:
        work = self._work[channel]
        match packet.type:
            case PacketType.IN_BAND if work.sink_count:
                self._sink(work, len(packet.payload))
            case PacketType.IN_BAND if packet.payload.startswith(MAGIC):
                self._command(work, packet.payload)
            case PacketType.IN_BAND:
                channel.send(packet.payload)
            case PacketType.GPA_DIRECT:
                self._invert(channel, packet)
            case PacketType.COMPLETION:
                self.returned += 1
            case other:
                raise GuestProtocolError(f"echo: packet type {other} is not served")

    def _command(self, work: Work, payload: bytes) -> None:
        request, channel = Request.parse(payload), work.channel
        if trace.commanded.on:
            trace.commanded(self.number, channel.sub_channel, request.command, request.count, request.size)
        match request.command:
            case Command.ECHO:
                channel.send(payload)
            case Command.SINK:
                if not request.count:
                    raise GuestProtocolError("echo: SINK of no packets")
                work.sink_count, work.sunk, work.sunk_bytes = request.count, 0, 0
            case Command.SOURCE:
                self._source(work, request)
            case Command.LATER:
                if work.waiting >= LATER_LIMIT:
                    raise GuestProtocolError(f"echo: {LATER_LIMIT} payloads are waiting already")
                work.waiting += 1
                channel.after(request.milliseconds / 1000, partial(self._late, work, payload))
            case Command.CHANNELS:
                if channel.sub_channel:
                    raise GuestProtocolError("echo: the primary channel asks for sub-channels")
                if request.milliseconds and work.waiting < LATER_LIMIT:
                    work.waiting += 1
                    channel.after(request.milliseconds / 1000, partial(self._offer_late, work, request.count))
                else:
                    self._offer_channels(channel, request.count)
            case Command.PAGES:
                self._write_pages(channel, request)
            case other:
                raise GuestProtocolError(f"echo: command {other}")

    def _offer_late(self, work: Work, count: int) -> None:
        work.waiting -= 1
        self._offer_channels(work.channel, count)

    @staticmethod
    def _offer_channels(channel: Channel, count: int) -> None:
        for number in range(1, count + 1):
            channel.offer_sub_channel(number)
        channel.send(Report(MAGIC, Command.CHANNELS, count, 0).build())

    def _late(self, work: Work, payload: bytes) -> None:
        work.waiting -= 1
        work.channel.send(payload)

    def _sink(self, work: Work, size: int) -> None:
        work.sunk += 1
        work.sunk_bytes += size
        if work.sunk == work.sink_count:
            work.sink_count = 0
            if trace.sunk.on:
                trace.sunk(self.number, work.channel.sub_channel, work.sunk, work.sunk_bytes)
            work.channel.send(Report(MAGIC, Command.SINK, work.sunk, work.sunk_bytes).build())

    def _source(self, work: Work, request: Request) -> None:
        if work.source_count:
            raise GuestProtocolError("echo: SOURCE while one is under way")
        if not 8 <= request.size <= work.channel.max_payload:
            raise GuestProtocolError(f"echo: SOURCE of {request.size} bytes each, 8 to {work.channel.max_payload}")
        work.source_count, work.size, work.poured = request.count, request.size, 0
        self._pour(work)

    def _pour(self, work: Work) -> None:
        channel, padding = work.channel, bytes(work.size - 8)
        for _ in range(PACKETS_PER_TURN):
            if work.poured == work.source_count or not channel.is_open or channel.broken:
                if trace.poured.on:
                    trace.poured(self.number, channel.sub_channel, work.poured)
                work.source_count = 0
                return
            if channel.room() < work.size:
                channel.when_room(work.size, partial(self._pour, work))
                return
            channel.send(work.poured.to_bytes(8, "little") + padding)
            work.poured += 1
        channel.later(partial(self._pour, work))

    def _write_pages(self, channel: Channel, request: Request) -> None:
        """Write the low bytes of the offsets, and pass the pages to the guest until it completes the packet."""
        pages = channel.gpadl(request.count)
        if request.size > SHARED_LIMIT:
            raise GuestProtocolError(f"echo: PAGES of {request.size} bytes, at most {SHARED_LIMIT}")
        pattern, done = bytes(range(256)) * 17, 0
        for view in pages.ranges[0].part(0, request.size).views(channel.memory):
            for at in range(0, len(view), 4096):
                size = min(4096, len(view) - at)
                view[at : at + size] = pattern[done % 256 : done % 256 + size]
                done += size
        payload = Report(MAGIC, Command.PAGES, request.count, request.size).build()
        channel.send_pages(0, [(request.size, 0)], payload, transaction_id=request.count)

    def _invert(self, channel: Channel, packet: Packet) -> None:
        views = direct_views(packet, channel.memory, SHARED_LIMIT)
        for view in views:
            view[:] = bytes(view).translate(_INVERSE)
        if trace.inverted.on:
            trace.inverted(self.number, channel.sub_channel, sum(map(len, views)), len(views))
