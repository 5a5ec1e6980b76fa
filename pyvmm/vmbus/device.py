"""Base class of VMBus devices: an offer that identifies the device (`offer`), and callbacks for the guest's actions.

    opened(channel)            for each channel: the primary one, and sub-channels that the device had offered
    packet(channel, packet)    the default hands the payload of in-band packets to received(payload)
    leaving(done)              before the bus rescinds an open device: finish, then call done()
    closed(channel)            once for each opened
    bus_connected(), reset()       another kernel, another power-on

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
    """Limit of packets per channel that await the device's `Channel.complete`; at the limit reading stops.
    0: the channel completes each packet that requests it when `packet` returns, with no payload."""
    LEAVING_SECONDS: ClassVar[float] = 5.0
    """Seconds of guest time that `leaving` may take before the bus rescinds the device all the same."""
    number: int = 0
    """Number of this device among those of its kind in a machine. Set before the device is added to the bus."""

    @property
    def offer(self) -> Offer:
        """Return the offer: the class's OFFER; from the second of its kind on, with an instance of its own."""
        return self.numbered(self.OFFER)

    def numbered(self, offer: Offer) -> Offer:
        """Return an offer with an instance of its own if the device is not the first of its kind."""
        return offer if not self.number else _numbered(offer, self.number)

    def opened(self, channel: Channel) -> None:
        """Handle a channel that the guest's driver has opened; it is usable until `closed`.

        `channel.sub_channel` is its number, `channel.user_data` the driver's data from OPEN.
        """

    def packet(self, channel: Channel, packet: Packet) -> None:
        """Handle one packet of any type. The default passes in-band payloads to `received` and refuses other packets.

        A GuestError raised here is traced and counted, and the channel goes on; the packet is not completed then.
        """
        if packet.type != PacketType.IN_BAND:
            raise GuestProtocolError(f"{channel.name}: packet type {packet.type} is not served")
        self.received(packet.payload)

    def received(self, payload: bytes) -> None:
        """Handle the payload of an in-band packet, padded to a multiple of 8 bytes: a ring keeps no exact lengths."""

    def leaving(self, done: Callable[[], object]) -> None:
        """Finish before the bus rescinds the device while its primary channel is open. Linux reads nothing more after
        the RESCIND, so answer pending requests and call `done()`; the bus waits LEAVING_SECONDS at most."""
        done()

    def closed(self, channel: Channel) -> None:
        """Handle the end of a channel: closed by the guest, rescinded, or the bus was reset. Its timers are cancelled
        and its queued packets dropped. Called once for each `opened`."""

    def bus_connected(self) -> None:
        """Handle a kernel's contact with the bus, the first or a later one (module reload, kexec, crash kernel): all
        earlier agreements are void. No channel is open."""

    def reset(self) -> None:
        """Return to power-on state after a machine reset. Called after `closed` if a channel was open."""

    def resumed(self) -> None:
        """Handle the end of a pause of the machine."""

    def quiesce(self) -> None:
        """End all threads, once what they do is done: the process is about to be forked. The vCPUs are paused."""

    def close(self) -> None:
        """Free files and threads at the machine's end. May be called twice."""


@lru_cache
def _numbered(offer: Offer, number: int) -> Offer:
    """Return the offer of a device that is not the first of its kind; it is the same in each run."""
    return replace(offer, instance=uuid5(offer.instance, str(number)))
