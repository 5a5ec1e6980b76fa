"""Where the raw host stands between pyvmm's devices and the guest: at the taps of messages and packets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from pyvmm.tap import Deliver, Item
from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.ring import parse_packet

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
        self._bus = bus
        bus.taps.message.attach(self._message)
        bus.taps.packet.attach(self._packet)

    def _message(self, item: Item, deliver: Deliver) -> Any:
        if item.point == "message.in":
            self.messages.append(item.data)
            return deliver(item)
        for each in list(self.outgoing):
            changed = each(item.data)
            if changed is None:
                return None
            item = item.but(changed)
        return deliver(item)

    def _packet(self, item: Item, deliver: Deliver) -> Any:
        if item.point == "packet.in":
            device = self._bus.device_of(int(item.fields["relid"]))
            packet = parse_packet(item.data)
            if device is not None:
                seen = GuestPacket(device, packet.type, packet.flags, packet.transaction_id, packet.payload)
                self.packets.append(seen)
                if device in self.silent:
                    return None
        return deliver(item)
