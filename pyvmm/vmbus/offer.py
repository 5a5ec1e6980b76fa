"""Offers: the description of a device that a guest gets before it opens the device's channel.

Source: Linux include/linux/hyperv.h, struct vmbus_channel_offer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from pyvmm.vmbus.ring import PACKET_LIMIT


class ChannelKey(NamedTuple):
    """Identifies a channel on the bus. The channels of one device differ in `sub_channel` alone."""

    type: UUID
    instance: UUID
    sub_channel: int


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer: describes a device to the guest before it opens the channel.

    `type` selects the guest's driver, `instance` names this very device: Linux makes its sysfs name from it and
    finds it again by it after hibernation, so it must stay the same across resets and re-offers.
    """

    name: str  # for people and traces; the guest never sees it
    type: UUID
    instance: UUID
    flags: int = 0  # Linux VMBUS_CHANNEL_*; 7.2 refuses the confidential bits 2 and 4 in an ordinary guest
    mmio_mib: int = 0  # address space the driver needs, in MiB
    sub_channel: int = 0  # 0: the primary channel; others come from Channel.offer_sub_channel
    user_defined: bytes = b""  # at most 120 bytes, e.g. a pipe's type
    monitored: bool = False
    """The guest signals the host by a bit in the monitor page, which is polled, in place of a hypercall."""
    packet_limit: int = PACKET_LIMIT
    """Bytes of the longest packet that the driver reads, with its header."""
    signal_each: bool = False
    """Signal the guest for every packet, not only for the first in an empty ring. For drivers that take a single
    packet per event (Linux: shutdown, KVP, VSS) where the host may send a second one before that."""

    @property
    def key(self) -> ChannelKey:
        """Return the key that identifies the channel on the bus."""
        return ChannelKey(self.type, self.instance, self.sub_channel)
