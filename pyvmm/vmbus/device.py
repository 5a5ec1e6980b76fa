"""What a device on the VMBus is: an offer that names it (`offer`), and calls that tell it what the guest does.

A device is passive until the guest's driver opens its channel. All calls come from the loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyvmm.vmbus.offer import Offer

if TYPE_CHECKING:
    from pyvmm.vmbus.channel import Channel


class VmbusDevice:
    """Base of all VMBus devices. Override what you need; the defaults do nothing."""

    OFFER: ClassVar[Offer]

    @property
    def offer(self) -> Offer:
        """What is offered: the class's OFFER, unless an instance has its own (two disks, two network cards)."""
        return self.OFFER

    def opened(self, channel: Channel) -> None:
        """The guest's driver opened the channel; it is usable from now until `closed`."""

    def received(self, payload: bytes) -> None:
        """One in-band packet, padded to a multiple of 8 bytes: a ring keeps no exact lengths.

        A GuestError raised here is traced and counted, and the channel goes on.
        """

    def closed(self) -> None:
        """The channel is gone: closed by the guest, rescinded, or the whole bus started afresh. Its timers are
        cancelled and what it still had to send is dropped. Comes once for each `opened`."""

    def restarted(self) -> None:
        """A guest's kernel made contact with the bus, for the first time or anew (module loaded again, kexec, crash
        kernel): nothing is agreed any more. No channel is open."""

    def reset(self) -> None:
        """The machine was reset: back to the state at power-on. Comes after `closed` if a channel was open."""
