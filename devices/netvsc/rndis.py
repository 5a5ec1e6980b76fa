"""RNDIS: the protocol of the card itself, inside NVSP: control requests with their answers, and frames.

Source: Linux include/linux/rndis.h and drivers/net/hyperv/hyperv_net.h; Microsoft's [MS-RNDIS].

    +0 type u32 | length u32 of the whole message | fields

    PACKET  8 data offset, length | 16 out-of-band offset, length, count | 28 info offset, length | 36 0, 0
            44 per-packet information: size u32, type u32, value's offset u32, value; repeated
            data: the frame

Offsets count from byte 8, past type and length. A guest's packet lies in several pieces of memory, possibly with more
after it, and the guest can change it at any time: `Reader` copies what is read once and cuts the rest into views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct, pack, unpack_from
from typing import Annotated

from pyvmm.errors import WireError
from pyvmm.wire import Wire, u32, wire

HEADER_SIZE = 8
BASE = 8
"""Where the offsets of a message begin to count."""
PACKET_SIZE = 44
"""Bytes of a packet before its per-packet information."""
INFO_LIMIT = 256
"""Bytes of per-packet information in a packet: Linux sends 64 at most, Windows somewhat more."""
CONTROL_LIMIT = 4096
"""Bytes of a control message: Linux sends it in one page."""


class Type(IntEnum):
    """RNDIS_MSG_*: what an RNDIS message is; an answer has COMPLETE, too.

    Source: [MS-RNDIS]; Linux include/linux/rndis.h.
    """

    PACKET = 1  # A frame.
    INITIALIZE = 2  # RNDIS_MSG_INIT: G begins.
    HALT = 3  # G ends.
    QUERY = 4  # G asks for an object (OID).
    SET = 5  # G sets an object (OID).
    RESET = 6  # G resets the card.
    INDICATE = 7  # H tells that the cable came or went.
    KEEPALIVE = 8  # Are you there.


COMPLETE = 0x80000000
"""Bit of the type of an answer."""


class Info(IntEnum):
    """Types of per-packet information."""

    CHECKSUM = 0
    LSO = 2
    VLAN = 6
    HASH = 8


class Status(IntEnum):
    """RNDIS_STATUS_*: results, and what INDICATE tells.

    Source: [MS-RNDIS]; Linux include/linux/rndis.h.
    """

    SUCCESS = 0  # Done.
    FAILURE = 0xC0000001  # Refused.
    NOT_SUPPORTED = 0xC00000BB  # The object (OID) is not there.
    INVALID_DATA = 0xC0010015  # The value is not valid.
    CONNECT = 0x4001000B  # RNDIS_STATUS_MEDIA_CONNECT: the cable is in.
    DISCONNECT = 0x4001000C  # RNDIS_STATUS_MEDIA_DISCONNECT: the cable is out.


@wire
class Packet(Wire):
    """struct rndis_packet with its header: a frame. Offsets count from byte 8."""

    type: Annotated[u32, Type]
    length: u32
    data_offset: u32
    data_length: u32
    oob_offset: u32
    oob_length: u32
    oob_count: u32
    info_offset: u32  # of per-packet information
    info_length: u32
    vc: u32
    reserved: u32


@wire
class Initialize(Wire):
    type: Annotated[u32, Type]
    length: u32
    request: u32
    major: u32
    minor: u32
    max_transfer: u32


@wire
class InitializeComplete(Wire):
    type: Annotated[u32, Type]
    length: u32
    request: u32
    status: Annotated[u32, Status]
    major: u32
    minor: u32
    flags: u32
    medium: u32
    max_packets: u32
    max_transfer: u32
    alignment: u32
    list_offset: u32
    list_size: u32


@wire
class Request(Wire):
    """QUERY and SET, before the information."""

    type: Annotated[u32, Type]
    length: u32
    request: u32
    oid: u32
    info_size: u32
    info_offset: u32
    vc: u32


@wire
class Answer(Wire):
    """SET_COMPLETE, KEEPALIVE_COMPLETE and the beginning of QUERY_COMPLETE."""

    type: Annotated[u32, Type]
    length: u32
    request: u32
    status: Annotated[u32, Status]


def query_complete(request: int, status: int, value: bytes) -> bytes:
    """Return the answer to a QUERY."""
    head = Answer(Type.QUERY | COMPLETE, 24 + len(value), request, status).build()
    return head + pack("<II", len(value), 16) + value


def indicate(status: int) -> bytes:
    """Return INDICATE_STATUS without a buffer."""
    return pack("<5I", Type.INDICATE, 20, status, 0, 0)


def information(request: Request, message: bytes) -> bytes:
    """Return the information of a QUERY or SET. Raises WireError if it is not within the message."""
    start = BASE + request.info_offset
    if not request.info_size:
        return b""
    if start < Request.SIZE or start + request.info_size > len(message):
        raise WireError(f"RNDIS: {request.info_size} bytes of information at {start} of {len(message)}")
    return message[start : start + request.info_size]


# Frames to the guest

_PACKET = Packet._struct
_INFO = Struct("<IIII")
CHECKED = 0x38
"""Value of the checksum information to the guest: TCP's, UDP's and IP's checksums are right."""
CHECKED_INFO = _INFO.pack(16, Info.CHECKSUM, 12, CHECKED)
FRAME_OFFSET = 60
"""Where the frame begins in a packet to the guest, behind one piece of information."""


def write_packet(buffer: bytearray, position: int, frame: memoryview, *, checked: bool) -> int:
    """Write a packet to the guest at `position` and return its length."""
    size = len(frame)
    total = FRAME_OFFSET + size
    if checked:
        _PACKET.pack_into(buffer, position, 1, total, FRAME_OFFSET - BASE, size, 0, 0, 0, 36, 16, 0, 0)
        buffer[position + PACKET_SIZE : position + FRAME_OFFSET] = CHECKED_INFO
    else:  # the space of the information stays unused: Linux would loop for ever over one that is not whole
        _PACKET.pack_into(buffer, position, 1, total, FRAME_OFFSET - BASE, size, 0, 0, 0, 0, 0, 0, 0)
    buffer[position + FRAME_OFFSET : position + total] = frame
    return total


# Frames from the guest


@dataclass(slots=True)
class Sent:
    """A frame that the guest sends, in pieces of its memory, and the work that it leaves to the host.

    `checksum`: the checksum information's value, `lso`: the segmentation's; 0 for none. `tag`: the 802.1Q tag
    to be inserted, None for none.
    """

    parts: list[memoryview]
    size: int
    checksum: int = 0
    lso: int = 0
    tag: int | None = None


class Reader:
    """A guest's packets, one behind the other, in pieces of guest memory."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = parts
        self.size = sum(map(len, parts))
        self._copied = bytes(parts[0][: PACKET_SIZE + INFO_LIMIT]) if parts else b""

    def copy(self, start: int, length: int) -> bytes:
        """Return a copy; `start + length` is at most `size`."""
        return b"".join(self.cut(start, length))

    def cut(self, start: int, length: int) -> list[memoryview]:
        """Return views of the bytes from `start`; `start + length` is at most `size`."""
        found = []
        for part in self._parts:
            if start < len(part):
                piece = part[start : start + length]
                found.append(piece)
                length -= len(piece)
                if not length:
                    break
                start = 0
            else:
                start -= len(part)
        return found

    def frames(self, limit: int) -> list[Sent]:
        """Return the frames of the PACKETs, at most `limit`. Raises WireError if one does not fit, or is none."""
        found: list[Sent] = []
        position = 0
        while position < self.size:
            if len(found) == limit:
                raise WireError(f"RNDIS: more than {limit} packets in one message")
            position = self._frame(position, found)
        return found

    def _frame(self, position: int, found: list[Sent]) -> int:
        """Add the frame of the PACKET at `position`; return where the next begins."""
        left = self.size - position
        if left < PACKET_SIZE:
            raise WireError(f"RNDIS: a packet in {left} bytes")
        head = self._copied if not position and len(self._copied) >= PACKET_SIZE else self.copy(position, PACKET_SIZE)
        kind, length, offset, size, _, _, _, info_offset, info_size, _, _ = _PACKET.unpack_from(head)
        data = BASE + offset
        if kind != Type.PACKET or not PACKET_SIZE <= length <= left or data + size > length or not size:
            raise WireError(f"RNDIS: message {kind} of {length} in {left} bytes, {size} bytes of data at {data}")
        sent = Sent(self.cut(position + data, size), size)
        if info_size:
            start = BASE + info_offset
            if start < PACKET_SIZE or start + info_size > length or info_size > INFO_LIMIT:
                raise WireError(f"RNDIS: {info_size} bytes of information at {start} of {length}")
            copied = not position and len(self._copied) >= start + info_size
            where = self._copied[start : start + info_size] if copied else self.copy(position + start, info_size)
            _read_information(sent, where)
        found.append(sent)
        end: int = position + length
        return end


def _read_information(sent: Sent, information: bytes) -> None:
    at = 0
    while at < len(information):
        if len(information) - at < 12:
            raise WireError(f"RNDIS: {len(information) - at} bytes of information left")
        size, kind, offset = unpack_from("<III", information, at)
        if size < 12 or size > len(information) - at:
            raise WireError(f"RNDIS: information of {size} bytes, {len(information) - at} left")
        if kind in (Info.CHECKSUM, Info.LSO, Info.VLAN):
            if offset < 12 or offset > size - 4:
                raise WireError(f"RNDIS: information {kind} of {size} bytes with its value at {offset}")
            (value,) = unpack_from("<I", information, at + offset)
            if kind == Info.CHECKSUM:
                sent.checksum = value
            elif kind == Info.LSO:
                sent.lso = value
            else:  # priority 0-2, CFI 3, id 4-15; a tag has them from the top
                sent.tag = (value & 7) << 13 | (value >> 3 & 1) << 12 | value >> 4 & 0xFFF
        at += size
