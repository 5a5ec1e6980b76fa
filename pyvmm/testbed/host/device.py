"""A VMBus device without behaviour: a test offers it, sees what a driver sends, and answers or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.packet import Packet

Answers = Callable[[bytes], Iterable[bytes]]


class RawDevice(VmbusDevice):
    """A device that opens and closes with the guest's driver and is otherwise silent.

    `answers(payload)`, if given, yields the payloads to send for one in-band packet of the guest.
    """

    def __init__(self, offer: Offer, answers: Answers | None = None) -> None:
        self._offer = offer
        self.answers = answers
        self.channel: Channel | None = None
        self.opens = 0
        """How often a driver has opened the device's primary channel."""

    @property
    def offer(self) -> Offer:
        return self._offer

    def opened(self, channel: Channel) -> None:
        if not channel.sub_channel:
            self.channel = channel
            self.opens += 1

    def packet(self, channel: Channel, packet: Packet) -> None:
        if self.answers is not None:
            for answer in self.answers(packet.payload):
                channel.send(answer)

    def closed(self, channel: Channel) -> None:
        if channel is self.channel:
            self.channel = None
