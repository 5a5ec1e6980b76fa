"""A VMBus device that records the calls of the bus, for the bus's tests."""

from __future__ import annotations

from uuid import UUID

from pyvmm.errors import GuestProtocolError
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer

BALLOON = UUID("525074dc-8985-46e2-8057-a307dc18a502")


class Recorder(VmbusDevice):
    """Records each call."""

    OFFER = Offer("recorder", type=BALLOON, instance=UUID(int=1))

    def __init__(self, offer: Offer | None = None) -> None:
        self.calls: list[str] = []
        self.payloads: list[bytes] = []
        self._offer = offer or self.OFFER

    @property
    def offer(self) -> Offer:
        return self._offer

    def opened(self, channel: Channel) -> None:
        self.calls.append("opened")
        self.channel = channel

    def received(self, payload: bytes) -> None:
        if payload.startswith(b"bad"):
            raise GuestProtocolError("bad packet")
        if payload.startswith(b"echo"):
            self.channel.send(payload)
        self.payloads.append(payload)

    def closed(self, channel: Channel) -> None:
        self.calls.append("closed")

    def reset(self) -> None:
        self.calls.append("reset")
