"""Mirror: sends each packet of the guest back to it. The example of docs/adding-a-device.md."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer

mirrored = event("mirror.mirrored", "device {number}: {size} bytes, packet {count}")
device_view(DeviceView(packages=("mirror",), track="mirror"))


class Mirror(VmbusDevice):
    """`packets` counts what came since the driver opened the channel."""

    OFFER: ClassVar[Offer] = Offer(
        "mirror",
        type=UUID("6d5c0b1e-3f0c-4c6f-9a55-70796d6d0001"),  # selects the guest's driver
        instance=UUID("6d5c0b1e-3f0c-4c6f-9a55-70796d6d0002"),  # of the first; others get one of their own
    )

    def __init__(self) -> None:
        self.packets = 0
        self._channel: Channel | None = None

    def opened(self, channel: Channel) -> None:
        self.packets = 0
        self._channel = channel

    def received(self, payload: bytes) -> None:
        """Answer. A guest that sends and does not read fills the channel's queue, and is read no further."""
        assert self._channel is not None
        self.packets += 1
        if mirrored.on:
            mirrored(self.number, len(payload), self.packets)
        self._channel.send(payload)

    def closed(self, channel: Channel) -> None:
        self._channel = None
