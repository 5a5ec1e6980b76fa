"""A VMBus device with sub-channels, completions of its own and transfer pages, as disks and network cards have them.

The guest sends commands in packets that ask for a completion, in-band: command u32, argument u32.

    OFFER n     sub-channels 1 to n are offered     completed with n
    RESCIND n   sub-channel n is taken away         completed with n
    LATER n     nothing                             completed with n, after n milliseconds
    PAGES id    TRANSFER_PAGES of the GPADL `id`    completed with the number of ranges; the guest completes the pages

A GPA_DIRECT packet is completed with the bytes that its ranges hold, READ_LIMIT at most.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from struct import pack, unpack_from
from uuid import UUID

from pyvmm.errors import GuestProtocolError, WireError
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.packet import Packet, PacketFlag, PacketType, direct_views

READ_LIMIT = 64


class Command(IntEnum):
    OFFER = 1
    RESCIND = 2
    LATER = 3
    PAGES = 4


class Queues(VmbusDevice):
    """Records the bus's calls in `calls`, open channels in `channels`, and which pages the guest gave back."""

    OFFER = Offer("queues", type=UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"), instance=UUID(int=0xC0FFEE))
    OWN_COMPLETIONS = 8

    def __init__(self, offer: Offer | None = None) -> None:
        self.calls: list[str] = []
        self.channels: dict[int, Channel] = {}
        self.released: list[int] = []
        self.answers_before_it_leaves = True
        self._leave: Callable[[], object] | None = None
        self._offer = offer or self.OFFER

    @property
    def offer(self) -> Offer:
        return self._offer

    @property
    def leaves(self) -> bool:
        """Whether `leaving` was called and requests are still outstanding."""
        return self._leave is not None

    def opened(self, channel: Channel) -> None:
        self.calls.append(f"opened {channel.sub_channel}")
        self.channels[channel.sub_channel] = channel

    def closed(self, channel: Channel) -> None:
        self.calls.append(f"closed {channel.sub_channel}")
        del self.channels[channel.sub_channel]
        if not self.channels:
            self._leave = None

    def leaving(self, done: Callable[[], object]) -> None:
        self.calls.append("leaving")
        self._leave = done
        self._leave_if_finished()

    def packet(self, channel: Channel, packet: Packet) -> None:
        match packet.type:
            case PacketType.COMPLETION:
                self.released.append(packet.transaction_id)
            case PacketType.GPA_DIRECT:
                self._read(channel, packet)
            case PacketType.IN_BAND if packet.flags & PacketFlag.COMPLETION_REQUESTED:
                self._command(channel, packet)
            case _:
                raise GuestProtocolError(f"queues: packet type {packet.type}")

    def _command(self, channel: Channel, packet: Packet) -> None:
        if len(packet.payload) < 8:
            raise WireError("queues: no command")
        command, argument = unpack_from("<II", packet.payload)
        done = partial(self._complete, channel, packet.transaction_id, pack("<I", argument))
        match command:
            case Command.OFFER | Command.RESCIND if channel.sub_channel:
                raise GuestProtocolError("queues: sub-channels are asked for over the primary")
            case Command.OFFER:
                for number in range(1, min(argument, 100) + 1):
                    channel.offer_sub_channel(number)
                done()
            case Command.RESCIND:
                channel.rescind_sub_channel(argument)
                done()
            case Command.LATER:
                channel.after(argument / 1000, done)
            case Command.PAGES:
                ranges = [(each.length, each.offset) for each in channel.gpadl(argument).ranges[:16]]
                channel.send_pages(0xCAFE, ranges, b"pages", transaction_id=packet.transaction_id)
                self._complete(channel, packet.transaction_id, pack("<I", len(ranges)))
            case _:
                raise GuestProtocolError(f"queues: command {command}")

    def _read(self, channel: Channel, packet: Packet) -> None:
        views = direct_views(packet, channel.memory, READ_LIMIT)
        if packet.flags & PacketFlag.COMPLETION_REQUESTED:
            self._complete(channel, packet.transaction_id, b"".join(views))

    def _complete(self, channel: Channel, transaction_id: int, payload: bytes) -> None:
        channel.complete(transaction_id, payload)
        self._leave_if_finished()

    def _leave_if_finished(self) -> None:
        busy = any(channel.outstanding for channel in self.channels.values()) or not self.answers_before_it_leaves
        if self._leave is not None and not busy:
            leave, self._leave = self._leave, None
            leave()
