"""Where the raw host stands between pyvmm's devices and the guest: messages of the bus, and packets of channels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.mailbox import Incoming
from pyvmm.vmbus.packet import Packet
from pyvmm.vmbus.states import Post

KEPT = 4096
"""Messages and packets of the guest that are kept for the test, each; the oldest are dropped."""

MessageFilter = Callable[[bytes], bytes | None]
"""Gets a message to the guest and returns the one to post instead, or None for none."""


class GuestPacket(NamedTuple):
    """A packet of the guest."""

    device: VmbusDevice
    type: int
    flags: int
    transaction_id: int
    payload: bytes  # padded to 8 bytes


class Seams:
    """Sees all messages of the bus and all packets of its guest, and filters them.

    `silent` devices get no packets; `outgoing` filters see each message to the guest in turn.
    """

    def __init__(self, bus: Vmbus) -> None:
        self.messages: deque[bytes] = deque(maxlen=KEPT)
        """Messages of the guest, oldest first."""
        self.packets: deque[GuestPacket] = deque(maxlen=KEPT)
        """Packets of the guest, oldest first."""
        self.outgoing: list[MessageFilter] = []
        self.silent: set[VmbusDevice] = set()
        mailbox = bus._mailbox
        self._post, self._receive = mailbox.post, mailbox._receive
        mailbox._receive = self._received
        setattr(mailbox, "post", self._posted)  # noqa: B010 - the seam of tests: the bus looks it up at each call
        self._add = bus.add
        setattr(bus, "add", self._added)  # noqa: B010
        for device in bus.devices():
            self._watch(device)

    def _added(self, device: VmbusDevice) -> None:
        self._watch(device)
        self._add(device)

    def _watch(self, device: VmbusDevice) -> None:
        """See the packets of a device, on this and later channels."""
        if "packet" in vars(device):
            return  # watched before it was removed and added again
        onward = device.packet

        def packet(channel: Channel, packet: Packet) -> None:
            seen = GuestPacket(device, packet.type, packet.flags, packet.transaction_id, packet.payload)
            self.packets.append(seen)
            if device not in self.silent:
                onward(channel, packet)

        setattr(device, "packet", packet)  # noqa: B010 - the channel looks it up at each packet

    def _received(self, message: Incoming) -> None:
        self.messages.append(message.payload)
        self._receive(message)

    def _posted(self, message: Post) -> None:
        payload: bytes | None = message.payload
        for each in list(self.outgoing):
            if payload is not None:
                payload = each(payload)
        if payload is not None:
            self._post(message if payload == message.payload else Post(message.vp, payload))
