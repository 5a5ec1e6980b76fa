"""The balloon's messages: sizes as in C, round trips, and what is refused."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon import protocol as p
from pyvmm.errors import GuestProtocolError, WireError


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (p.Header, 8),
        (p.VersionRequest, 16),
        (p.VersionResponse, 16),
        (p.CapabilitiesReport, 32),
        (p.CapabilitiesResponse, 16),
        (p.StatusReport, 48),
        (p.BalloonRequest, 16),
        (p.UnballoonResponse, 8),
        (p.HotAddResponse, 16),
        (p.Info, 32),
    ],
)
def test_sizes_are_those_of_linux(kind: type[p.Header], size: int) -> None:
    assert size == kind.SIZE


@pytest.mark.parametrize(
    "message",
    [
        p.VersionRequest(1, 16, 7, 0x20000, 1),
        p.CapabilitiesReport(3, 32, 7, 0x1F, 0, p.ALL_PAGES),
        p.StatusReport(5, 48, 7, 100, 50, 0, 0, 0, 0),
        p.BalloonResponse(7, True, [(0xFF_FFFF_FFFF, 1), (0, 0xFF_FFFF)]),
        p.BalloonResponse(7, False, []),
        p.UnballoonResponse(9, 8, 7),
        p.HotAddResponse(11, 16, 7, 512, 1),
    ],
)
def test_guest_messages_survive_a_round_trip(message: p.GuestMessage) -> None:
    assert p.parse_guest_message(message.build() + bytes(5)) == message, "padding is ignored"


@pytest.mark.parametrize(
    "message",
    [
        p.VersionResponse.of(3, True),
        p.CapabilitiesResponse.of(3, suppress_reports=True),
        p.BalloonRequest.of(3, 4096),
        p.UnballoonRequest(3, True, [(1, 2), (5, 6)]),
        p.HotAddRequest(3, (1, 2)),
        p.HotAddRequest(3, (1, 2), (0, 512)),
        p.Info.of(3, 4096),
    ],
)
def test_host_messages_survive_a_round_trip(message: p.HostMessage) -> None:
    assert p.parse_host_message(message.build()) == message


def test_the_two_messages_with_ranges_keep_more_and_count_in_different_places() -> None:
    assert p.BalloonResponse(0, True, [(1, 1)]).build()[8:16] == bytes([0, 0, 0, 0, 3, 0, 0, 0])
    assert p.UnballoonRequest(0, True, [(1, 1)]).build()[8:16] == bytes([1, 0, 0, 0, 1, 0, 0, 0])


def test_a_full_message_fits_linux_receive_buffer() -> None:
    assert len(p.UnballoonRequest(0, False, [(1, 1)] * p.RANGES_LIMIT).build()) == p.MESSAGE_LIMIT


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(7),
        p.VersionRequest(1, 7, 0, 0, 0).build(),  # says less than a header
        p.VersionRequest(1, 17, 0, 0, 0).build(),  # says more than there is
        p.VersionRequest(1, 12, 0, 0, 0).build(),  # says less than the structure
        p.BalloonResponse(0, False, [(1, 1)]).build()[:-1],
        bytes([7, 0, 16, 0]) + bytes(8) + b"\xff" * 4,  # 2^31 - 1 ranges
        bytes([7, 0, 12, 0]) + bytes(8),
        bytes([5, 0, 8, 0]) + bytes(4),
        bytes([11, 0, 8, 0]) + bytes(4),
    ],
)
def test_malformed_messages_are_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        p.parse_guest_message(payload)


@pytest.mark.parametrize("kind", [0, 2, 4, 6, 8, 10, 12, 13, 14, 0xFFFF])
def test_types_that_no_guest_sends_are_refused(kind: int) -> None:
    with pytest.raises(GuestProtocolError, match=f"type {kind}"):
        p.parse_guest_message(p.Header(kind, 8, 0).build())


@pytest.mark.parametrize("body", [bytes(15), bytes(12) + b"\x01\0\0\0" + bytes(7)])
def test_a_malformed_unballoon_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        p.UnballoonRequest.parse(body)


@pytest.mark.parametrize("size", [8, 15, 17, 32])
def test_a_hot_add_is_16_or_24_bytes(size: int) -> None:
    with pytest.raises(WireError):
        p.HotAddRequest.parse(bytes(size))


def test_a_message_longer_than_any_driver_sends_is_refused() -> None:
    most = p.BalloonResponse(7, True, [(n, 1) for n in range(p.RANGES_LIMIT)]).build()
    assert len(most) == p.MESSAGE_LIMIT
    assert isinstance(p.parse_guest_message(most), p.BalloonResponse)
    with pytest.raises(GuestProtocolError, match="4096 at most"):
        p.parse_guest_message(most + bytes(8))
    with pytest.raises(GuestProtocolError, match="4096 at most"):
        p.parse_guest_message(p.BalloonResponse(7, True, [(n, 1) for n in range(8189)]).build())
