"""Bytes of Hyper-V sockets: names of ports, offers, and the packets of a connection.

Source: Linux net/vmw_vsock/hyperv_transport.c; OpenVMM vmbus_core for the offer.

A port's GUID is `<port>-facb-11e6-bd58-64006a7986d3`. A packet is a header with the number of its data bytes: the
ring pads payloads to 8 bytes and does not keep their length. One without data is a FIN.
"""

from __future__ import annotations

from struct import pack
from uuid import UUID

from pyvmm.errors import GuestProtocolError
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.ring import MAX_PAYLOAD
from pyvmm.wire import Wire, u32, wire

NAME = "hvsock"
PORT_MAX = (1 << 32) - 1

_TEMPLATE = UUID("00000000-facb-11e6-bd58-64006a7986d3")
_REST = _TEMPLATE.int & (1 << 96) - 1

_FLAGS = 0x2011  # enumerate device interface, named pipe mode, TLNPI provider: Linux looks at the last
_BYTE_MODE = 0
_VERSION = 1


def port_guid(port: int) -> UUID:
    """Return the GUID that stands for a port."""
    return UUID(int=port << 96 | _REST)


def guid_port(guid: UUID) -> int:
    """Return the port that a GUID stands for. Raises GuestProtocolError if it is of another form."""
    if guid.int & (1 << 96) - 1 != _REST:
        raise GuestProtocolError(f"hvsock: {guid} is no port")
    return guid.int >> 96


def offer(service: UUID, instance: UUID, *, host_connects: bool) -> Offer:
    """Return the offer of a connection. `service` is the port that listens, `instance` the other end's."""
    user_defined = pack("<IBBI", _BYTE_MODE, host_connects, 0, _VERSION)
    return Offer(NAME, type=service, instance=instance, flags=_FLAGS, user_defined=user_defined)


@wire
class Header(Wire):
    """struct vmpipe_proto_header: precedes the data in each packet."""

    type: u32
    size: u32  # bytes of data; 0: FIN


DATA = 1
"""Header.type of all packets."""

DATA_LIMIT = MAX_PAYLOAD - Header.SIZE
"""Bytes of data in the longest packet to a guest. Linux takes 16 KiB, but in a ring of 24 KiB shorter ones flow
better."""

FIN = Header(DATA, 0).build()


def build_packet(data: bytes) -> bytes:
    """Return the payload of a packet with `data`."""
    return Header(DATA, len(data)).build() + data


def parse_packet(payload: bytes) -> bytes:
    """Return the data of a packet, empty for a FIN. Raises WireError or GuestProtocolError."""
    header = Header.parse(payload)
    if header.type != DATA:
        raise GuestProtocolError(f"hvsock: packet type {header.type}")
    if header.size > len(payload) - Header.SIZE:
        raise GuestProtocolError(f"hvsock: {header.size} bytes of data in a packet of {len(payload)}")
    return payload[Header.SIZE : Header.SIZE + header.size]
