"""Offload: work on a frame that the guest leaves to the card. A link takes it on, or needs only what its peer reads.

Source: Linux drivers/net/hyperv/netvsc_drv.c, netvsc_xmit(); include/uapi/linux/virtio_net.h, struct virtio_net_hdr.

    checksum     the guest has put the pseudo header's sum into the checksum's field
    large send   a TCP segment of up to LSO_SIZE bytes, to be cut into some of `mss` bytes; the guest leaves the IP
                 length and checksum zero, and the length out of the pseudo header's sum
    802.1Q       the tag is beside the frame, and is inserted

A tap's kernel does all this if the frame has a virtio header (`vnet`). passt takes frames of 64 KiB and looks at no
checksum of TCP's or UDP's: it reads the data and sends them by a socket of its own.
"""

from __future__ import annotations

from struct import pack, pack_into, unpack_from

from pyvmm.devices.netvsc.rndis import Sent
from pyvmm.errors import WireError
from pyvmm.net.checksum import checksum, fold
from pyvmm.wire import Buffer

ETHERNET_SIZE = 14
LSO_SIZE = 62780
"""Bytes of a frame for a large send, as on Hyper-V: with its headers it stays below 64 KiB."""
LSO_SEGMENTS = 2

TCP4, UDP4, TCP6, UDP6 = 0x5, 0x9, 0x6, 0xA  # of the checksum information's bits: IPv4 1, IPv6 2, TCP 4, UDP 8
CHECKSUM_FIELD = {TCP4: 16, TCP6: 16, UDP4: 6, UDP6: 6}
"""Where the checksum lies in the transport header, by what the guest asks for."""

NEEDS_CHECKSUM = 1
GSO_TCP4, GSO_TCP6 = 1, 4
NO_WORK = bytes(10)
"""The virtio header of a finished frame."""
VNET_SIZE = len(NO_WORK)

_IPV4, _IPV6, _VLAN = b"\x08\x00", b"\x86\xdd", b"\x81\x00"


def finish(sent: Sent, *, vnet: bool) -> list[Buffer]:
    """Return the parts of a frame for the link, with a virtio header in front for one with `vnet`.

    Raises WireError if the frame does not have the headers that the guest's information says.
    """
    tag = b"" if sent.tag is None else _VLAN + pack(">H", sent.tag)
    header, parts = NO_WORK, list[Buffer](sent.parts)
    if sent.lso:
        header, parts = _large_send(sent, len(tag))
    elif sent.checksum & 0xC and vnet:
        header = _checksum_header(sent, len(tag))
    if tag:
        parts = _tagged(parts, tag)
    return [header, *parts] if vnet else parts


def frame_size(sent: Sent) -> int:
    """Return the bytes of the frame on the wire, its tag included."""
    return sent.size if sent.tag is None else sent.size + 4


def _checksum_header(sent: Sent, shift: int) -> bytes:
    start, field = sent.checksum >> 16 & 0x3FF, CHECKSUM_FIELD.get(sent.checksum & 0xF)
    if field is None or start < ETHERNET_SIZE or start + field + 2 > sent.size:
        raise WireError(f"RNDIS: checksum {sent.checksum:#x} of a frame of {sent.size} bytes")
    return pack("<BBHHHH", NEEDS_CHECKSUM, 0, 0, 0, start + shift, field)


def _large_send(sent: Sent, shift: int) -> tuple[bytes, list[Buffer]]:
    """Return the virtio header and the parts, with IP's length and checksum and the sum for TCP's filled in."""
    mss, tcp, is_ipv6 = sent.lso & 0xFFFFF, sent.lso >> 20 & 0x3FF, bool(sent.lso >> 31)
    ip = ETHERNET_SIZE
    least = ip + (40 if is_ipv6 else 20)
    if not mss or tcp < least or sent.size < tcp + 20 or sent.size - ip > 0xFFFF:
        raise WireError(f"RNDIS: large send {sent.lso:#x} of {sent.size} bytes")
    head, rest = _split(sent.parts, tcp + 20)
    length = sent.size - tcp
    if is_ipv6:
        if head[12:14] != _IPV6:
            raise WireError("RNDIS: large send of a frame that is not IPv6")
        pack_into(">H", head, ip + 4, sent.size - ip - 40)
    else:
        size = (head[ip] & 0xF) * 4
        if head[12:14] != _IPV4 or ip + size != tcp:
            raise WireError("RNDIS: large send of a frame that is not IPv4")
        pack_into(">H", head, ip + 2, sent.size - ip)
        pack_into(">H", head, ip + 10, 0)
        pack_into(">H", head, ip + 10, checksum(head[ip:tcp]))
    (pseudo,) = unpack_from(">H", head, tcp + 16)
    pack_into(">H", head, tcp + 16, fold(pseudo + length))
    headers = tcp + (head[tcp + 12] >> 4) * 4 + shift
    kind = GSO_TCP6 if is_ipv6 else GSO_TCP4
    header = pack("<BBHHHH", NEEDS_CHECKSUM, kind, headers, mss & 0xFFFF, tcp + shift, 16)
    return header, [head, *rest]


def _split(parts: list[memoryview], size: int) -> tuple[bytearray, list[Buffer]]:
    """Return a copy of the first `size` bytes, and views of the rest."""
    head, rest = bytearray(), list[Buffer]()
    for part in parts:
        missing = size - len(head)
        if missing:
            head += part[:missing]
            part = part[missing:]
        if len(part):
            rest.append(part)
    return head, rest


def _tagged(parts: list[Buffer], tag: bytes) -> list[Buffer]:
    """Insert a tag after the addresses."""
    head, rest = _split([memoryview(part) for part in parts], 12)
    if len(head) < 12:
        raise WireError(f"RNDIS: a tag for a frame of {len(head)} bytes")
    return [bytes(head) + tag, *rest]


# What the guest is offered


def capabilities(*, size: int, large_send: bool) -> bytes:
    """Return NDIS_OFFLOAD of `size` bytes: checksums of TCP and UDP, and large sends if `large_send`.

    Source: hyperv_net.h, struct ndis_offload. Linux leaves IP's checksum to no card.
    """
    sending4, sending6 = 0x1 | 0x4 | 0x10 | 0x40, 0x1 | 0x4 | 0x10 | 0x40  # options, TCP options, TCP, UDP
    ethernet = 2
    checksums = (ethernet, sending4, ethernet, sending4 | 0x100, ethernet, sending6, ethernet, sending6)
    large = (ethernet, LSO_SIZE, LSO_SEGMENTS, ethernet, LSO_SIZE, LSO_SEGMENTS, 0x5) if large_send else (0,) * 7
    body = pack("<8I", *checksums) + bytes(16 + 28) + pack("<7I", *large)
    return (pack("<BBH", 0xA7, 2 if size >= 156 else 1, size) + body).ljust(size, b"\0")[:size]
