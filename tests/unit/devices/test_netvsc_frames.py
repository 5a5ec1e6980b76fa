"""Frames of the network card: offloads, receive-side scaling, RNDIS packets."""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from struct import pack, unpack_from

import pytest

from pyvmm.devices.netvsc import offload
from pyvmm.devices.netvsc.offload import LSO_SIZE, finish
from pyvmm.devices.netvsc.rndis import FRAME_OFFSET, Reader, Sent, write_packet
from pyvmm.devices.netvsc.rss import Steering
from pyvmm.errors import WireError
from pyvmm.net.checksum import checksum, complete_checksum

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
"""The key of Microsoft's "Verifying the RSS hash calculation", as are the hashes."""


def steering() -> Steering:
    made = Steering()
    head = pack("<BBHHHIHHIHHIIII", 0x89, 2, 40, 0, 0, 0x1701, 8, 0, 40, 40, 0, 48, 0, 0, 0)
    made.set(head + pack("<II", 0, 1) + KEY, 2)
    return made


@pytest.mark.parametrize(
    ("source", "port", "to", "to_port", "plain", "tcp"),
    [
        ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
        ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
        ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
        ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
        ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    ],
)
def test_hashes_are_microsofts(source: str, port: int, to: str, to_port: int, plain: int, tcp: int) -> None:
    addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(to).packed
    assert steering().hash(addresses) == plain
    assert steering().hash(addresses + pack(">HH", port, to_port)) == tcp


@pytest.mark.parametrize(
    "parameters",
    [
        b"",
        bytes(27),
        pack("<BBHHHIHHIHHIIII", 0x89, 2, 40, 0, 0, 0, 8, 0, 40, 40, 0, 48, 0, 0, 0),
        pack("<BBHHHIHHIHHIIII", 0x89, 2, 40, 0, 0, 0, 8, 0, 0xFFFFFFFF, 40, 0, 48, 0, 0, 0) + bytes(100),
        pack("<BBHHHIHHIHHIIII", 0x89, 2, 40, 0, 0, 0, 8, 0, 40, 40, 0, 0xFFFFFFF0, 0, 0, 0) + bytes(100),
        pack("<BBHHHIHHIHHIIII", 0x89, 2, 40, 0, 0, 0, 8, 0, 40, 16, 0, 48, 0, 0, 0) + bytes(100),
        pack("<BBHHHIHHIHHIIII", 0x89, 2, 40, 0, 0, 0, 0, 0, 40, 40, 0, 48, 0, 0, 0) + bytes(100),
        pack("<BBHHHIHHIHHIIII", 0x89, 2, 40, 0, 0, 0, 8, 0, 40, 40, 0, 48, 0, 0, 0) + pack("<II", 0, 2) + KEY,
    ],
)
def test_bad_parameters_are_refused_and_change_nothing(parameters: bytes) -> None:
    made = steering()
    with pytest.raises(WireError):
        made.set(parameters, 2)
    assert made.table == [0, 1]


def ip4(payload: bytes, protocol: int = 6, length: int | None = None) -> bytes:
    """An Ethernet frame with an IPv4 packet, its checksum filled in."""
    size = 20 + len(payload) if length is None else length
    head = pack(">BBHHHBBH4s4s", 0x45, 0, size, 1, 0, 64, protocol, 0, bytes([10, 0, 2, 15]), bytes([10, 0, 2, 2]))
    head = head[:10] + pack(">H", checksum(head)) + head[12:]
    return bytes(12) + b"\x08\x00" + head + payload


def pseudo(size: int) -> int:
    """The sum of the pseudo header of `ip4`'s packets."""
    return ~checksum(bytes([10, 0, 2, 15, 10, 0, 2, 2, 0, 6]) + pack(">H", size)) & 0xFFFF


def sent(frame: bytes, *cuts: int, **more: int) -> Sent:
    """A frame of the guest, in pieces."""
    ends = [0, *cuts, len(frame)]
    parts = [memoryview(frame)[start:end] for start, end in pairwise(ends)]
    return Sent(parts, len(frame), **more)


def tcp(data: bytes, check: int = 0) -> bytes:
    return pack(">HHIIBBHHH", 40000, 80, 1, 2, 0x50, 0x18, 1000, check, 0) + data


def test_a_plain_frame_is_not_copied() -> None:
    frame = sent(bytes(100), 60)
    assert finish(frame, vnet=False) == frame.parts
    assert finish(frame, vnet=True) == [bytes(10), *frame.parts]


def test_a_checksum_is_described_for_a_tap_and_left_for_passt() -> None:
    frame = sent(ip4(tcp(b"data", pseudo(24))), checksum=5 | 34 << 16)
    assert finish(frame, vnet=False) == frame.parts
    head, *rest = finish(frame, vnet=True)
    assert unpack_from("<BBHHHH", head) == (1, 0, 0, 0, 34, 16)
    whole = bytearray(b"".join(rest))
    complete_checksum(whole, 34, 16)
    assert checksum(pack(">HH", pseudo(24), 0) + whole[34:]) == 0


@pytest.mark.parametrize("cuts", [(), (14,), (54,), (20, 40, 60)])
def test_a_large_send_gets_its_lengths_and_sums(cuts: tuple[int, ...]) -> None:
    data = bytes(range(256)) * 100
    frame = ip4(tcp(data, pseudo(0)), length=0)
    frame = frame[:24] + b"\0\0" + frame[26:]
    given = sent(frame, *cuts, lso=1460 | 34 << 20 | 1 << 30)
    header, *rest = finish(given, vnet=True)
    whole = b"".join(rest)
    assert unpack_from("<BBHHHH", header) == (1, 1, 54, 1460, 34, 16)
    assert whole == b"".join(finish(given, vnet=False))
    assert unpack_from(">H", whole, 16) == (len(frame) - 14,)
    assert checksum(whole[14:34]) == 0, "IP's checksum"
    assert unpack_from(">H", whole, 50) == (pseudo(len(frame) - 34),), (
        "with the length in it, as Linux's GSO takes it"
    )
    assert whole[54:] == data


def test_a_large_send_over_ipv6() -> None:
    head = pack(">IHBB", 0x60000000, 0, 6, 64) + bytes(32)
    frame = bytes(12) + b"\x86\xdd" + head + tcp(bytes(5000))
    whole = b"".join(finish(sent(frame, lso=1440 | 54 << 20 | 3 << 30), vnet=False))
    assert unpack_from(">H", whole, 18) == (5020,)


@pytest.mark.parametrize(
    ("frame", "lso"),
    [
        (bytes(60), 1460 | 34 << 20),
        (ip4(tcp(b"data")), 0 | 34 << 20),
        (ip4(tcp(b"data")), 1460 | 14 << 20),
        (ip4(tcp(b"data")), 1460 | 1023 << 20),
        (ip4(tcp(b"data")), 1460 | 38 << 20),
        (ip4(tcp(b"data")), 1460 | 54 << 20 | 1 << 31),
        (ip4(tcp(bytes(66000)), length=0), 1460 | 34 << 20),
    ],
)
def test_a_large_send_of_something_else_is_refused(frame: bytes, lso: int) -> None:
    with pytest.raises(WireError):
        finish(sent(frame, lso=lso), vnet=True)


@pytest.mark.parametrize("value", [5 | 2 << 16, 5 | 1023 << 16, 0xC | 34 << 16, 7 | 34 << 16])
def test_an_impossible_checksum_is_refused(value: int) -> None:
    with pytest.raises(WireError):
        finish(sent(ip4(tcp(b"data")), checksum=value), vnet=True)


def test_a_tag_goes_behind_the_addresses_and_moves_the_checksum() -> None:
    frame = ip4(tcp(b"data"))
    header, *rest = finish(sent(frame, 6, 20, checksum=5 | 34 << 16, tag=0x2123), vnet=True)
    assert b"".join(rest) == frame[:12] + b"\x81\x00\x21\x23" + frame[12:]
    assert unpack_from("<BBHHHH", header) == (1, 0, 0, 0, 38, 16)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1500, 65535])
def test_the_checksum_is_the_sum_of_words(size: int) -> None:
    data = bytes(n * 7 & 0xFF for n in range(size))
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, size, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert checksum(data) == ~total & 0xFFFF


def test_a_packet_to_the_guest_reads_back() -> None:
    buffer = bytearray(200)
    for checked in (False, True):
        size = write_packet(buffer, 8, memoryview(b"\1" * 60), checked=checked)
        assert size == FRAME_OFFSET + 60
        (found,) = Reader([memoryview(buffer)[8 : 8 + size]]).frames(1)
        assert b"".join(found.parts) == b"\1" * 60
        assert found.checksum == (0x38 if checked else 0)


def test_capabilities_name_checksums_and_large_sends() -> None:
    full = offload.capabilities(size=156, large_send=True)
    assert unpack_from("<II", full, 80) == (2, LSO_SIZE)
    assert offload.capabilities(size=112, large_send=False)[80:108] == bytes(28)
