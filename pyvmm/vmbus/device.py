"""What a device on the VMBus is: an offer that names it, and four calls that tell it what the guest does.

Source: Linux include/linux/hyperv.h, struct vmbus_channel_offer.

A device is passive until the guest's driver opens its channel. All calls come from the loop's thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID

if TYPE_CHECKING:
    from pyvmm.vmbus.channel import Channel


@dataclass(frozen=True, slots=True)
class Offer:
    """What the guest learns of a device before it opens the channel.

    `type` selects the guest's driver, `instance` names this very device: Linux makes its sysfs name from it and
    finds it again by it after hibernation, so it must stay the same across resets and re-offers.
    """

    name: str  # for people and traces; the guest never sees it
    type: UUID
    instance: UUID
    flags: int = 0  # Linux VMBUS_CHANNEL_*; 7.2 refuses the confidential bits 2 and 4 in an ordinary guest
    mmio_mib: int = 0  # address space the driver needs, in MiB
    sub_channel: int = 0  # 0: the primary channel
    user_defined: bytes = b""  # at most 120 bytes, e.g. a pipe's type
    signal_each: bool = False
    """Signal the guest for every packet, not only for the first in an empty ring. For drivers that take a single
    packet per event (Linux: shutdown, KVP, VSS) where the host may send a second one before that."""


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
