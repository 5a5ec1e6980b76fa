"""Bytes of the VMBus channel messages: what guest and host post to each other, one message of at most 240 bytes each.

Source: Linux include/linux/hyperv.h, struct vmbus_channel_*; versions and sizes also from OpenVMM's vmbus_core.

Each message starts with `type u32` and four bytes of padding; sizes include them. `parse` turns a guest's message
into one of the classes below or raises WireError. A message may be longer than its structure (QEMU and some guests
round up to 8 bytes), never shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import unpack_from
from typing import Annotated

from pyvmm.errors import GuestProtocolError, WireError
from pyvmm.wire import Buffer, Guid, Wire, u8, u16, u32, u64, wire

MESSAGE_SIZE_MAX = 240
"""Payload of a SynIC message."""
SYNIC_MESSAGE_TYPE = 1
"""Message type of everything on the VMBus, in both directions."""
SINT = 2
"""The interrupt source Linux sets up for VMBus on each VP."""
RELID_MAX = 2047
"""A relid is a channel's event flag, and there are 2048; flag 0 is the obsolete shared one."""

CONTACT_CONNECTION_OLD = 1
"""Connection for all messages of versions before 5.0."""
EVENT_CONNECTION = 2
"""The obsolete shared event: guests before 2.4 signal every channel by it."""
CONTACT_CONNECTION = 4
"""Connection for the contact of versions from 5.0 on."""
MESSAGE_CONNECTION = 5
"""Ours: what VERSION_RESPONSE names for all further messages from 5.0 on."""
FIRST_SIGNAL_CONNECTION = 16
"""Ours, as QEMU's: a channel is signalled by connection 16 + relid."""


class Version(IntEnum):
    """VERSION_*: major << 16 | minor, with the host that brought it."""

    WIN8 = 0x00020004
    WIN8_1 = 0x00030000
    WIN10 = 0x00040000
    WIN10_4_1 = 0x00040001
    WIN10_5_0 = 0x00050000
    WIN10_5_1 = 0x00050001
    WIN10_5_2 = 0x00050002
    WIN10_5_3 = 0x00050003
    COPPER = 0x00060000


LATEST_VERSION = Version.WIN10_5_3
"""The latest that is offered unless the user asks for more: 6.0 exists in Linux since v7.2 only."""


class MessageType(IntEnum):
    """CHANNELMSG_*."""

    OFFER = 1
    RESCIND = 2
    REQUEST_OFFERS = 3
    ALL_OFFERS_DELIVERED = 4
    OPEN = 5
    OPEN_RESULT = 6
    CLOSE = 7
    GPADL_HEADER = 8
    GPADL_BODY = 9
    GPADL_CREATED = 10
    GPADL_TEARDOWN = 11
    GPADL_TORNDOWN = 12
    RELID_RELEASED = 13
    INITIATE_CONTACT = 14
    VERSION_RESPONSE = 15
    UNLOAD = 16
    UNLOAD_RESPONSE = 17
    TL_CONNECT_REQUEST = 21
    MODIFY_CHANNEL = 22
    TL_CONNECT_RESULT = 23
    MODIFY_CHANNEL_RESPONSE = 24


class Status(IntEnum):
    """NTSTATUS values in results. Linux only asks whether it is 0."""

    SUCCESS = 0
    UNSUCCESSFUL = 0xC0000001
    INVALID_PARAMETER = 0xC000000D
    QUOTA_EXCEEDED = 0xC0000044
    CONNECTION_REFUSED = 0xC0000236


@wire
class MessageHeader(Wire):
    """struct vmbus_channel_message_header."""

    type: u32
    padding: u32 = 0


# From the guest


@wire
class InitiateContact(Wire):
    """struct vmbus_channel_initiate_contact. Before 5.0 `target` is the interrupt page's address."""

    type: u32
    padding: u32
    version: u32
    target_vp: u32
    target: u64
    monitor_page1: u64  # host to guest
    monitor_page2: u64  # guest to host

    @property
    def sint(self) -> int:
        """From 5.0 on: where the guest wants its messages."""
        return self.target & 0xFF

    @property
    def feature_flags(self) -> int:
        """From 6.0 on: what the guest would use."""
        return self.target >> 32


@wire
class OpenChannel(Wire):
    """struct vmbus_channel_open_channel. `receive_offset`: ring pages before it carry guest to host."""

    type: u32
    padding: u32
    relid: u32
    open_id: u32
    ring_gpadl: u32
    target_vp: u32
    receive_offset: u32
    user_data: Annotated[bytes, "120s"]


@wire
class CloseChannel(Wire):
    """struct vmbus_channel_close_channel."""

    type: u32
    padding: u32
    relid: u32


@wire
class GpadlHeaderFixed(Wire):
    """struct vmbus_channel_gpadl_header, without the ranges."""

    type: u32
    padding: u32
    relid: u32
    gpadl: u32
    range_bytes: u16
    range_count: u16


@dataclass(slots=True)
class GpadlHeader:
    """struct vmbus_channel_gpadl_header. `words`: the ranges' u64 that came with it, the rest follows in bodies."""

    relid: int
    gpadl: int
    range_bytes: int
    range_count: int
    words: tuple[int, ...]

    @classmethod
    def parse(cls, data: Buffer) -> GpadlHeader:
        """Read a message. Raises WireError if it is too short for its fixed part."""
        head = GpadlHeaderFixed.parse(data)
        words = _words(data, GpadlHeaderFixed.SIZE)
        return cls(head.relid, head.gpadl, head.range_bytes, head.range_count, words)


@wire
class GpadlBodyFixed(Wire):
    """struct vmbus_channel_gpadl_body, without the frame numbers. Linux leaves `number` 0."""

    type: u32
    padding: u32
    number: u32
    gpadl: u32


@dataclass(slots=True)
class GpadlBody:
    """struct vmbus_channel_gpadl_body: more of the ranges' u64."""

    gpadl: int
    words: tuple[int, ...]

    @classmethod
    def parse(cls, data: Buffer) -> GpadlBody:
        """Read a message. Raises WireError if it is too short for its fixed part."""
        return cls(GpadlBodyFixed.parse(data).gpadl, _words(data, GpadlBodyFixed.SIZE))


def _words(data: Buffer, offset: int) -> tuple[int, ...]:
    """All whole u64 from `offset` on; a rest of 1 to 7 bytes is the sender's rounding."""
    return unpack_from(f"<{(len(data) - offset) // 8}Q", data, offset)


@wire
class GpadlTeardown(Wire):
    """struct vmbus_channel_gpadl_teardown."""

    type: u32
    padding: u32
    relid: u32
    gpadl: u32


@wire
class RelidReleased(Wire):
    """struct vmbus_channel_relid_released: the guest's last word on a rescinded channel."""

    type: u32
    padding: u32
    relid: u32


@wire
class ModifyChannel(Wire):
    """struct vmbus_channel_modifychannel: events go to another VP from now on."""

    type: u32
    padding: u32
    relid: u32
    target_vp: u32


@wire
class TlConnectRequest(Wire):
    """struct vmbus_channel_tl_connect_request: an hvsock connection asked for by the guest."""

    type: u32
    padding: u32
    endpoint: Guid
    service: Guid


@wire
class RequestOffers(Wire):
    """CHANNELMSG_REQUESTOFFERS: only a header."""

    type: u32
    padding: u32


@wire
class Unload(Wire):
    """CHANNELMSG_UNLOAD: only a header."""

    type: u32
    padding: u32


GuestMessage = (
    InitiateContact
    | RequestOffers
    | OpenChannel
    | CloseChannel
    | GpadlHeader
    | GpadlBody
    | GpadlTeardown
    | RelidReleased
    | ModifyChannel
    | TlConnectRequest
    | Unload
)

_PARSERS: dict[int, type[GuestMessage]] = {
    MessageType.INITIATE_CONTACT: InitiateContact,
    MessageType.REQUEST_OFFERS: RequestOffers,
    MessageType.OPEN: OpenChannel,
    MessageType.CLOSE: CloseChannel,
    MessageType.GPADL_HEADER: GpadlHeader,
    MessageType.GPADL_BODY: GpadlBody,
    MessageType.GPADL_TEARDOWN: GpadlTeardown,
    MessageType.RELID_RELEASED: RelidReleased,
    MessageType.MODIFY_CHANNEL: ModifyChannel,
    MessageType.TL_CONNECT_REQUEST: TlConnectRequest,
    MessageType.UNLOAD: Unload,
}


def parse(data: Buffer) -> GuestMessage:
    """A guest's message. Raises WireError if too short or too long, GuestProtocolError for a type not known."""
    if len(data) > MESSAGE_SIZE_MAX:
        raise WireError(f"message of {len(data)} bytes, at most {MESSAGE_SIZE_MAX}")
    kind = MessageHeader.parse(data).type
    parser = _PARSERS.get(kind)
    if parser is None:
        raise GuestProtocolError(f"message type {kind} is not served")
    return parser.parse(data)


# To the guest


@wire
class OfferChannel(Wire):
    """struct vmbus_channel_offer_channel."""

    type: u32
    padding: u32
    device_type: Guid
    instance: Guid
    reserved: Annotated[bytes, "16s"]
    flags: u16
    mmio_mib: u16
    user_defined: Annotated[bytes, "120s"]
    sub_channel: u16
    mmio_optional: u16
    relid: u32
    monitor_id: u8
    monitor_allocated: u8  # 0: Linux signals by hypercall, not through the monitor page
    dedicated: u16  # 1: the channel has an event flag of its own
    connection_id: u32


@wire
class Rescind(Wire):
    """struct vmbus_channel_rescind_offer."""

    type: u32
    padding: u32
    relid: u32


@wire
class AllOffersDelivered(Wire):
    """CHANNELMSG_ALLOFFERS_DELIVERED: only a header."""

    type: u32
    padding: u32


@wire
class OpenResult(Wire):
    """struct vmbus_channel_open_result."""

    type: u32
    padding: u32
    relid: u32
    open_id: u32
    status: u32


@wire
class GpadlCreated(Wire):
    """struct vmbus_channel_gpadl_created."""

    type: u32
    padding: u32
    relid: u32
    gpadl: u32
    status: u32


@wire
class GpadlTorndown(Wire):
    """struct vmbus_channel_gpadl_torndown."""

    type: u32
    padding: u32
    gpadl: u32


@wire
class VersionResponse(Wire):
    """struct vmbus_channel_version_response. Before 5.0 `connection_id` is the version."""

    type: u32
    padding: u32
    supported: u8
    state: u8
    padding2: u16
    connection_id: u32


@wire
class VersionResponseFeatures(Wire):
    """The same from 6.0 on, with the features that guest and host both have."""

    type: u32
    padding: u32
    supported: u8
    state: u8
    padding2: u16
    connection_id: u32
    feature_flags: u32


@wire
class UnloadResponse(Wire):
    """CHANNELMSG_UNLOAD_RESPONSE: only a header."""

    type: u32
    padding: u32


@wire
class TlConnectResult(Wire):
    """CHANNELMSG_TL_CONNECT_RESULT. Linux ignores it."""

    type: u32
    padding: u32
    endpoint: Guid
    service: Guid
    status: u32


@wire
class ModifyChannelResponse(Wire):
    """struct vmbus_channel_modifychannel_response; from 5.3 on."""

    type: u32
    padding: u32
    relid: u32
    status: u32


HostMessage = (
    OfferChannel
    | Rescind
    | AllOffersDelivered
    | OpenResult
    | GpadlCreated
    | GpadlTorndown
    | VersionResponse
    | VersionResponseFeatures
    | UnloadResponse
    | TlConnectResult
    | ModifyChannelResponse
)
