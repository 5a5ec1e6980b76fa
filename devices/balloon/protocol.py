"""The messages of the Dynamic Memory protocol: fixed structures, two of them followed by page ranges.

Source: Linux drivers/hv/hv_balloon.c, struct dm_* and union dm_mem_page_range.

Every message opens with `Header`. Pages are 4 KiB. G: the guest sends it, H: the host does.

    G VERSION_REQUEST  H VERSION_RESPONSE     G STATUS_REPORT (once a second)
    G CAPABILITIES     H CAPABILITIES_RESPONSE     H INFO
    H BALLOON_REQUEST     G BALLOON_RESPONSE (one or more, `more` set on all but the last)
    H UNBALLOON_REQUEST (one or more, likewise)     G UNBALLOON_RESPONSE (one)
    H HOT_ADD_REQUEST     G HOT_ADD_RESPONSE

Transaction ids are not used: Linux counts its own and never repeats the host's. An answer is matched by its type.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import pack, unpack_from
from typing import Annotated

from pyvmm.bits import Bits, bit, bits
from pyvmm.errors import GuestProtocolError, WireError
from pyvmm.wire import Buffer, Wire, u16, u32, u64, wire

MESSAGE_LIMIT = 4096
"""Limit of a guest's messages in bytes: the buffer size of Linux's driver. A longer one is refused, as each of its
ranges costs time, and a packet could hold 8189 of them. The host's own messages are shorter, because its packets,
header included, have the same limit (pyvmm.vmbus.ring.PACKET_LIMIT)."""
PAGE_COUNT_SHIFT = 40
_START_MASK = (1 << PAGE_COUNT_SHIFT) - 1
RANGE_PAGES_LIMIT = (1 << 24) - 1
RANGES_AT = 16  # offset of the ranges in both messages that have them, the size of their heads
RANGES_LIMIT = (MESSAGE_LIMIT - RANGES_AT) // 8
ALL_PAGES = (1 << 64) - 1


class MessageType(IntEnum):
    """DM_*: what a message of the Dynamic Memory protocol is. G: the guest sends it, H: the host.

    Source: Linux drivers/hv/hv_balloon.c, enum dm_message_type.
    """

    ERROR = 0  # DM_ERROR: never sent.
    VERSION_REQUEST = 1  # G proposes a version of the protocol, the newest first.
    VERSION_RESPONSE = 2  # H takes the version, or not.
    CAPABILITIES = 3  # DM_CAPABILITIES_REPORT: G tells what it can: balloon, hot-add, alignment.
    CAPABILITIES_RESPONSE = 4  # H accepts: the protocol is running.
    STATUS_REPORT = 5  # G reports its memory pressure, once a second.
    BALLOON_REQUEST = 6  # H wants pages.
    BALLOON_RESPONSE = 7  # G gives ranges of pages, which the host may discard.
    UNBALLOON_REQUEST = 8  # H gives ranges back.
    UNBALLOON_RESPONSE = 9  # G has taken them all.
    HOT_ADD_REQUEST = 10  # DM_MEM_HOT_ADD_REQUEST: H offers memory beyond the boot size.
    HOT_ADD_RESPONSE = 11  # DM_MEM_HOT_ADD_RESPONSE: G has added so many pages of it.
    INFO = 12  # DM_INFO_MESSAGE: H tells the maximum size; Linux logs it.


class Version(Bits):
    """Protocol version as sent. Linux's names 1.0, 2.0 and 3.0 are 0.3, 1.0 and 2.0 here."""

    __slots__ = ()
    minor = bits(0, 16)
    major = bits(16, 16)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


WIN7, WIN8, WIN10 = Version(0x00000003), Version(0x00010000), Version(0x00020000)
VERSIONS = (WIN10, WIN8, WIN7)


class Capabilities(Bits):
    """union dm_caps."""

    __slots__ = ()
    balloon = bit(0)
    hot_add = bit(1)
    alignment_log2_mib = bits(2, 4)
    hot_remove = bit(6)


@wire
class Header(Wire):
    """struct dm_header. `size` counts the header too."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32


@wire
class VersionRequest(Wire):
    """struct dm_version_request."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    version: Annotated[u32, Version]
    is_last: u32  # bit 0: the guest has no other version to offer


@wire
class VersionResponse(Wire):
    """struct dm_version_response."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    is_accepted: u64  # bit 0

    @classmethod
    def of(cls, trans_id: int, accepted: bool) -> VersionResponse:
        return cls(MessageType.VERSION_RESPONSE, cls.SIZE, trans_id, int(accepted))


@wire
class CapabilitiesReport(Wire):
    """struct dm_capabilities. Linux reports 0 minimum pages and all ones for the highest page."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    caps: Annotated[u64, Capabilities]
    min_page_count: u64
    max_page_number: u64


class ResponseFlag(IntFlag):
    """Bits of the answer to the guest's capabilities."""

    ACCEPTED = 1
    HOT_REMOVE = 2
    SUPPRESS_PRESSURE_REPORTS = 4


@wire
class CapabilitiesResponse(Wire):
    """struct dm_capabilities_resp_msg. Linux ignores the request to suppress pressure reports."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    flags: Annotated[u64, ResponseFlag]

    @classmethod
    def of(cls, trans_id: int, *, suppress_reports: bool) -> CapabilitiesResponse:
        flags = ResponseFlag.ACCEPTED | (ResponseFlag.SUPPRESS_PRESSURE_REPORTS if suppress_reports else 0)
        return cls(MessageType.CAPABILITIES_RESPONSE, cls.SIZE, trans_id, flags)


@wire
class StatusReport(Wire):
    """struct dm_status. Linux fills the first two."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    available_pages: u64
    committed_pages: u64
    page_file_size: u64
    zero_free_pages: u64
    page_file_writes: u32
    io_difference: u32


@wire
class BalloonRequest(Wire):
    """struct dm_balloon."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    pages: u32
    reserved: u32

    @classmethod
    def of(cls, trans_id: int, pages: int) -> BalloonRequest:
        return cls(MessageType.BALLOON_REQUEST, cls.SIZE, trans_id, pages, 0)


class PageRange(Bits):
    """union dm_mem_page_range: pages of 4 KiB from frame `start` on."""

    __slots__ = ()
    start = bits(0, PAGE_COUNT_SHIFT)
    pages = bits(PAGE_COUNT_SHIFT, 24)


class MoreAndCount(Bits):
    """The word before the ranges of a BALLOON_RESPONSE."""

    __slots__ = ()
    more = bit(0)
    count = bits(1, 31)


@wire
class BalloonResponseHead(Wire):
    """struct dm_balloon_response, without its ranges."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    reserved: u32
    count_word: Annotated[u32, MoreAndCount]


@dataclass(slots=True)
class BalloonResponse:
    """struct dm_balloon_response: pages that the guest has released, as (start, pages). `more` responses follow."""

    trans_id: int
    more: bool
    ranges: list[tuple[int, int]]

    @classmethod
    def parse(cls, data: Buffer) -> BalloonResponse:
        """Read a whole message. Raises WireError if the announced ranges do not fit in it."""
        head = BalloonResponseHead.parse(data)
        word = MoreAndCount(head.count_word)
        return cls(head.trans_id, bool(word.more), _parse_ranges(data, word.count, "BalloonResponse"))

    def build(self) -> bytes:
        return _build(MessageType.BALLOON_RESPONSE, self.trans_id, 0, self.more | len(self.ranges) << 1, self.ranges)


@wire
class UnballoonRequestHead(Wire):
    """struct dm_unballoon_request, without its ranges."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    more: u32  # bit 0: another request follows
    range_count: u32


@dataclass(slots=True)
class UnballoonRequest:
    """struct dm_unballoon_request: pages given back to the guest. It answers after the request without `more`."""

    trans_id: int
    more: bool
    ranges: list[tuple[int, int]]

    @classmethod
    def parse(cls, data: Buffer) -> UnballoonRequest:
        """Read a whole message, as a guest does."""
        head = UnballoonRequestHead.parse(data)
        return cls(head.trans_id, bool(head.more & 1), _parse_ranges(data, head.range_count, "UnballoonRequest"))

    def build(self) -> bytes:
        return _build(MessageType.UNBALLOON_REQUEST, self.trans_id, int(self.more), len(self.ranges), self.ranges)


@wire
class UnballoonResponse(Wire):
    """struct dm_unballoon_response."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32


@dataclass(slots=True)
class HotAddRequest:
    """struct dm_hot_add, with the region of struct dm_hot_add_with_region when there is one.

    Both are (start, pages). Linux distinguishes the forms by their size: 16 bytes have no region.
    """

    trans_id: int
    range: tuple[int, int]
    region: tuple[int, int] | None = None

    @classmethod
    def parse(cls, data: Buffer) -> HotAddRequest:
        if len(data) not in (16, 24):
            raise WireError(f"HotAddRequest: {len(data)} bytes, needs 16 or 24")
        words = unpack_from(f"<{len(data) // 8 - 1}Q", data, 8)
        ranges = [(w & _START_MASK, w >> PAGE_COUNT_SHIFT) for w in words]
        return cls(unpack_from("<I", data, 4)[0], ranges[0], ranges[1] if len(ranges) > 1 else None)

    def build(self) -> bytes:
        ranges = [self.range] if self.region is None else [self.range, self.region]
        head = pack("<HHI", MessageType.HOT_ADD_REQUEST, 8 + 8 * len(ranges), self.trans_id)
        return head + _pack_ranges(ranges)


@wire
class HotAddResponse(Wire):
    """struct dm_hot_add_response. result 1 with 0 pages: refused for good; 0 with 0: try again later."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    pages: u32
    result: u32


INFO_MAX_PAGES = 0


@wire
class Info(Wire):
    """struct dm_info_msg with struct dm_info_header: the guest's maximum size. Linux logs it."""

    type: Annotated[u16, MessageType]
    size: u16
    trans_id: u32
    reserved: u32
    info_size: u32
    info_type: u32
    data_size: u32
    pages: u64

    @classmethod
    def of(cls, trans_id: int, pages: int) -> Info:
        return cls(MessageType.INFO, cls.SIZE, trans_id, 0, 16, INFO_MAX_PAGES, 8, pages)


GuestMessage = (
    VersionRequest | CapabilitiesReport | StatusReport | BalloonResponse | UnballoonResponse | HotAddResponse
)


def parse_guest_message(payload: Buffer) -> GuestMessage:
    """Parse the message in one packet from the guest; bytes after its announced size are padding.

    Raises WireError if it is shorter than announced, GuestProtocolError for a type that no guest sends.
    """
    if len(payload) > MESSAGE_LIMIT:
        raise GuestProtocolError(f"balloon message of {len(payload)} bytes: drivers send {MESSAGE_LIMIT} at most")
    header = Header.parse(payload)
    if not Header.SIZE <= header.size <= len(payload):
        raise WireError(f"balloon message type {header.type}: says {header.size} bytes, has {len(payload)}")
    body = payload[: header.size]
    match header.type:
        case MessageType.STATUS_REPORT:
            return StatusReport.parse(body)
        case MessageType.BALLOON_RESPONSE:
            return BalloonResponse.parse(body)
        case MessageType.UNBALLOON_RESPONSE:
            return UnballoonResponse.parse(body)
        case MessageType.HOT_ADD_RESPONSE:
            return HotAddResponse.parse(body)
        case MessageType.VERSION_REQUEST:
            return VersionRequest.parse(body)
        case MessageType.CAPABILITIES:
            return CapabilitiesReport.parse(body)
    raise GuestProtocolError(f"balloon message of unknown type {header.type}, {header.size} bytes")


HostMessage = VersionResponse | CapabilitiesResponse | BalloonRequest | UnballoonRequest | HotAddRequest | Info


def parse_host_message(payload: Buffer) -> HostMessage:
    """Parse the message in one packet from the host: for tests, which act as the guest, and for captures."""
    header = Header.parse(payload)
    body = payload[: header.size]
    match header.type:
        case MessageType.VERSION_RESPONSE:
            return VersionResponse.parse(body)
        case MessageType.CAPABILITIES_RESPONSE:
            return CapabilitiesResponse.parse(body)
        case MessageType.BALLOON_REQUEST:
            return BalloonRequest.parse(body)
        case MessageType.UNBALLOON_REQUEST:
            return UnballoonRequest.parse(body)
        case MessageType.HOT_ADD_REQUEST:
            return HotAddRequest.parse(body)
        case MessageType.INFO:
            return Info.parse(body)
    raise WireError(f"balloon message of unknown type {header.type} from the host")


def _parse_ranges(data: Buffer, count: int, name: str) -> list[tuple[int, int]]:
    if count > (len(data) - RANGES_AT) // 8:
        raise WireError(f"{name}: {count} ranges in {len(data)} bytes")
    words = unpack_from(f"<{count}Q", data, RANGES_AT)
    return [(word & _START_MASK, word >> PAGE_COUNT_SHIFT) for word in words]


def _pack_ranges(ranges: list[tuple[int, int]]) -> bytes:
    return pack(f"<{len(ranges)}Q", *[start | pages << PAGE_COUNT_SHIFT for start, pages in ranges])


def _build(kind: MessageType, trans_id: int, first: int, second: int, ranges: list[tuple[int, int]]) -> bytes:
    size = RANGES_AT + 8 * len(ranges)
    return pack("<HHIII", kind, size, trans_id, first, second) + _pack_ranges(ranges)
