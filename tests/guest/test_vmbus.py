"""hv_vmbus and a driver, played by FakeGuest, against the whole bus: messages, GPADLs, rings, timers."""

from __future__ import annotations

from uuid import UUID

from pyvmm.errors import GuestProtocolError
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import Offer, VmbusDevice
from tests.support.fake_guest import FakeGuest


class Recorder(VmbusDevice):
    """Keeps what it is told."""

    OFFER = Offer(
        "recorder",
        type=UUID("525074dc-8985-46e2-8057-a307dc18a502"),
        instance=UUID("11111111-2222-3333-4444-555555555555"),
    )

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.payloads: list[bytes] = []

    def opened(self, channel: Channel) -> None:
        self.calls.append("opened")
        self.channel = channel

    def received(self, payload: bytes) -> None:
        if payload.startswith(b"bad"):
            raise GuestProtocolError("bad packet")
        self.payloads.append(payload)

    def closed(self) -> None:
        self.calls.append("closed")

    def reset(self) -> None:
        self.calls.append("reset")


def test_packets_go_both_ways() -> None:
    guest, device = FakeGuest(), Recorder()
    guest.open(device)
    guest.send(b"12345678")
    device.channel.send(b"abcdefgh")
    assert device.payloads == [b"12345678"]
    assert guest.take_bytes() == b"abcdefgh"
