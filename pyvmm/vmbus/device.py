"""What a device on the VMBus is: an offer that names it (`offer`), and calls that tell it what the guest does.

    opened(channel)            for each channel: the primary one, and sub-channels that the device had offered
    packet(channel, packet)    the default hands the payload of in-band packets to received(payload)
    leaving(done)              before the bus rescinds an open device: finish, then call done()
    closed(channel)            once for each opened
    restarted(), reset()       another kernel, another power-on

A device is passive until the guest's driver opens its channel. All calls come from the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid5

from pyvmm.errors import GuestProtocolError
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.packet import Packet, PacketType

if TYPE_CHECKING:
    from pyvmm.vmbus.channel import Channel


class VmbusDevice:
    """Base of all VMBus devices. Override what you need; the defaults do nothing."""

    OFFER: ClassVar[Offer]
    OWN_COMPLETIONS: ClassVar[int] = 0
    """Packets of a channel that may wait for a `Channel.complete` of the device; with so many nothing more is read.
    0: the channel completes each packet that asks for it when `packet` returns, with no payload."""
    number: int = 0
    """Counts the devices of one kind in a machine. Set before the device is put on the bus."""

    @property
    def offer(self) -> Offer:
        """What is offered: the class's OFFER; from the second of its kind on, with an instance of its own."""
        return self.OFFER if not self.number else _numbered(self.OFFER, self.number)

    def opened(self, channel: Channel) -> None:
        """The guest's driver opened a channel; it is usable from now until `closed`.

        `channel.sub_channel` tells which one, `channel.user_data` what the driver wrote into its OPEN.
        """

    def packet(self, channel: Channel, packet: Packet) -> None:
        """One packet of any type. The default hands payloads of in-band packets to `received` and refuses others.

        A GuestError raised here is traced and counted, and the channel goes on; the packet is not completed then.
        """
        if packet.type != PacketType.IN_BAND:
            raise GuestProtocolError(f"{channel.name}: packet type {packet.type} is not served")
        self.received(packet.payload)

    def received(self, payload: bytes) -> None:
        """The payload of an in-band packet, padded to a multiple of 8 bytes: a ring keeps no exact lengths."""

    def leaving(self, done: Callable[[], object]) -> None:
        """The bus is about to take the device away while its primary channel is open. Linux reads nothing more after
        that, so answer now what it waits for and call `done()`; the bus waits LEAVING_SECONDS at most."""
        done()

    def closed(self, channel: Channel) -> None:
        """A channel is gone: closed by the guest, rescinded, or the whole bus started afresh. Its timers are
        cancelled and what it still had to send is dropped. Comes once for each `opened`."""

    def restarted(self) -> None:
        """A guest's kernel made contact with the bus, for the first time or anew (module loaded again, kexec, crash
        kernel): nothing is agreed any more. No channel is open."""

    def reset(self) -> None:
        """The machine was reset: back to the state at power-on. Comes after `closed` if a channel was open."""


@lru_cache
def _numbered(offer: Offer, number: int) -> Offer:
    """The offer of a device that is not the first of its kind, the same in each run."""
    return replace(offer, instance=uuid5(offer.instance, str(number)))
