"""NVSP: the outer protocol of a network card's channel, which lends buffers and carries RNDIS messages.

Source: Linux drivers/net/hyperv/hyperv_net.h, struct nvsp_message; OpenVMM vm/devices/net/netvsp.

    +0 type u32, +4 fields; a message has 40 bytes, whatever it says

    guest                                                    host
    INIT version (each from 6.1 down until one is served) -> INIT_COMPLETE status
    NDIS_CONFIG mtu, capabilities; NDIS_VERSION           ->
    SEND_RECEIVE_BUFFER gpadl                             -> its sections
    SEND_SEND_BUFFER gpadl                                -> size of its sections
    RNDIS_PACKET (its place)                             <-> RNDIS_PACKET_COMPLETE status: the place is free again

Answers are completions of the requests' packets. Linux waits for each without a time limit, and dereferences a null
pointer at one without payload.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct, pack, unpack_from
from typing import ClassVar, Self

from pyvmm.errors import WireError
from pyvmm.wire import Buffer, Wire, u16, u32, u64, wire

SIZE = 40
"""Bytes of a message."""

VERSIONS = (0x00002, 0x30002, 0x40000, 0x50000, 0x60000, 0x60001)
"""The versions served: 1, 2, 4, 5, 6 and 6.1."""

VERSION_2, VERSION_5 = 0x30002, 0x50000

NO_SECTION = 0xFFFFFFFF
"""The section's number in a message that uses none."""

RECEIVE_BUFFER_ID = 0xCAFE
SEND_TABLE_SIZE = 16


class Type(IntEnum):
    """NVSP_MSG*: what a message of the network card is. G: the guest sends it, H: the host.

    Source: Linux drivers/net/hyperv/hyperv_net.h.
    """

    INIT = 1  # NVSP_MSG_TYPE_INIT: G proposes a version.
    INIT_COMPLETE = 2  # NVSP_MSG_TYPE_INIT_COMPLETE: H takes it, or not.
    NDIS_VERSION = 100  # NVSP_MSG1_TYPE_SEND_NDIS_VER: G tells its version of NDIS.
    RECEIVE_BUFFER = 101  # NVSP_MSG1_TYPE_SEND_RECV_BUF: G lends a buffer for frames to it.
    RECEIVE_BUFFER_COMPLETE = 102  # NVSP_MSG1_TYPE_SEND_RECV_BUF_COMPLETE: H has it, in sections.
    REVOKE_RECEIVE_BUFFER = 103  # NVSP_MSG1_TYPE_REVOKE_RECV_BUF: G takes it back.
    SEND_BUFFER = 104  # NVSP_MSG1_TYPE_SEND_SEND_BUF: G lends a buffer for its small frames.
    SEND_BUFFER_COMPLETE = 105  # NVSP_MSG1_TYPE_SEND_SEND_BUF_COMPLETE: H has it, in sections.
    REVOKE_SEND_BUFFER = 106  # NVSP_MSG1_TYPE_REVOKE_SEND_BUF: G takes it back.
    RNDIS_PACKET = 107  # NVSP_MSG1_TYPE_SEND_RNDIS_PKT: an RNDIS message: a frame or a request, either way.
    RNDIS_PACKET_COMPLETE = 108  # NVSP_MSG1_TYPE_SEND_RNDIS_PKT_COMPLETE: its place is free again.
    NDIS_CONFIG = 125  # NVSP_MSG2_TYPE_SEND_NDIS_CONFIG: G tells its MTU and what it supports.
    SUBCHANNEL = 133  # NVSP_MSG5_TYPE_SUBCHANNEL: G wants more channels.
    SEND_TABLE = 134  # NVSP_MSG5_TYPE_SEND_INDIRECTION_TABLE: H tells which channel a flow goes by.


class Status(IntEnum):
    """NVSP_STAT_*. Zero is none of them."""

    SUCCESS = 1  # Done.
    FAIL = 2  # Refused.
    TOO_NEW = 3  # NVSP_STAT_PROTOCOL_TOO_NEW: the version is not known yet.
    TOO_OLD = 4  # NVSP_STAT_PROTOCOL_TOO_OLD: the version is served no more.
    INVALID_RNDIS = 5  # NVSP_STAT_INVALID_RNDIS_PKT: the RNDIS message is wrong.
    BUSY = 6  # Later.


DATA, CONTROL = 0, 1
"""Channel types of an RNDIS_PACKET."""


class Message(Wire):
    """Base of the messages with a type."""

    __slots__ = ()
    TYPE: ClassVar[Type]

    @classmethod
    def read(cls, payload: Buffer) -> Self:
        """Read the fields after the type. Raises WireError."""
        return cls.parse(payload, 4)

    def message(self) -> bytes:
        """Return the whole message."""
        return (pack("<I", self.TYPE) + self.build()).ljust(SIZE, b"\0")


@wire
class Init(Message):
    TYPE = Type.INIT
    oldest: u32
    newest: u32


@wire
class InitComplete(Message):
    TYPE = Type.INIT_COMPLETE
    negotiated: u32
    chain_limit: u32
    status: u32


@wire
class NdisVersion(Message):
    TYPE = Type.NDIS_VERSION
    major: u32
    minor: u32


@wire
class NdisConfig(Message):
    """`mtu` counts the Ethernet header, too."""

    TYPE = Type.NDIS_CONFIG
    mtu: u32
    reserved: u32
    capabilities: u64


@wire
class LendBuffer(Message):
    """SEND_RECEIVE_BUFFER and SEND_SEND_BUFFER."""

    TYPE = Type.RECEIVE_BUFFER
    gpadl: u32
    id: u16


@wire
class ReceiveBufferComplete(Message):
    """Linux takes one section only, at offset 0."""

    TYPE = Type.RECEIVE_BUFFER_COMPLETE
    status: u32
    sections: u32
    offset: u32
    size: u32
    count: u32
    end: u32


@wire
class SendBufferComplete(Message):
    TYPE = Type.SEND_BUFFER_COMPLETE
    status: u32
    section_size: u32


@wire
class Revoke(Message):
    TYPE = Type.REVOKE_RECEIVE_BUFFER
    id: u16


@wire
class Subchannels(Message):
    """The request (operation 1: allocate, count) and its answer (status, count)."""

    TYPE = Type.SUBCHANNEL
    operation: u32
    count: u32


@wire
class RndisPacket(Wire):
    """RNDIS_PACKET, after its type. `section` is NO_SECTION for data in memory that the packet names."""

    channel_type: u32  # 0: frames, 1: requests
    section: u32
    section_size: u32


_RNDIS = Struct(f"<I{RndisPacket._struct.format.removeprefix('<')}")
COMPLETE = {status: pack("<II", Type.RNDIS_PACKET_COMPLETE, status).ljust(SIZE, b"\0") for status in Status}
"""RNDIS_PACKET_COMPLETE, by status."""
RNDIS = {kind: _RNDIS.pack(Type.RNDIS_PACKET, kind, NO_SECTION, 0).ljust(SIZE, b"\0") for kind in (DATA, CONTROL)}
"""RNDIS_PACKET to the guest, by channel type."""


def message_type(payload: Buffer) -> int:
    """Return a message's type. Raises WireError."""
    if len(payload) < 4:
        raise WireError(f"NVSP message of {len(payload)} bytes")
    number: int = unpack_from("<I", payload)[0]
    return number


def parse_rndis(payload: Buffer) -> tuple[int, int, int]:
    """Return channel type, section number and bytes in the section of an RNDIS_PACKET. Raises WireError."""
    if len(payload) < 16:
        raise WireError(f"RNDIS_PACKET of {len(payload)} bytes, needs 16")
    _, kind, section, size = _RNDIS.unpack_from(payload)
    return kind, section, size


def send_table(channels: int) -> bytes:
    """Return SEND_TABLE: the channels for the guest's sending, in turn."""
    head = pack("<III", Type.SEND_TABLE, SEND_TABLE_SIZE, SIZE)
    return head.ljust(SIZE, b"\0") + pack("<16I", *(number % channels for number in range(SEND_TABLE_SIZE)))
