"""Bytes of the VMBus channel messages: what guest and host post to each other, one message of at most 240 bytes each.

Source: Linux include/linux/hyperv.h, struct vmbus_channel_*; versions and sizes also from OpenVMM's vmbus_core.

Each message is one class, and its decorator is its row in the table of messages: type and oldest version; the fields
give the size. `parse` turns a guest's message into one of the classes or raises WireError; the server refuses those
that the agreed version lacks. Each message starts with `type u32` and four bytes of padding, which sizes include. A
message may be longer than its structure (QEMU and some guests round up to 8 bytes), never shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from enum import IntEnum
from struct import Struct, pack, unpack_from
from typing import Annotated, ClassVar, Self, TypeVar, dataclass_transform, get_args

from pyvmm.errors import GuestProtocolError, WireError
from pyvmm.wire import Buffer, Guid, Wire, u8, u16, u32, u64, wire

MESSAGE_SIZE_MAX = 240
"""Payload of a SynIC message."""
SYNIC_MESSAGE_TYPE = 1
"""Message type of everything on the VMBus, in both directions."""
SINT = 2
"""The interrupt source Linux sets up for VMBus on each VP."""
NO_VP = 0xFFFFFFFF
"""The target VP of a channel whose guest wants no events."""
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
    """VERSION_*: major << 16 | minor, with the host that brought it.

    Source: Linux include/linux/hyperv.h.
    """

    WIN8 = 0x00020004  # 2.4, the oldest served: channels have event flags and connections of their own.
    WIN8_1 = 0x00030000  # 3.0.
    WIN10 = 0x00040000  # 4.0: Hyper-V sockets by request of the guest.
    WIN10_4_1 = 0x00040001  # VERSION_WIN10_V4_1: 4.1: a channel's interrupts can move to another VP.
    WIN10_5_0 = 0x00050000
    """VERSION_WIN10_V5: 5.0: messages have a connection of their own, which VERSION_RESPONSE names."""
    WIN10_5_1 = 0x00050001  # VERSION_WIN10_V5_1: 5.1.
    WIN10_5_2 = 0x00050002  # VERSION_WIN10_V5_2: 5.2.
    WIN10_5_3 = 0x00050003  # VERSION_WIN10_V5_3: 5.3: MODIFY_CHANNEL is answered.
    COPPER = 0x00060000  # VERSION_WIN10_V6_0: 6.0: feature flags. Linux has it since 7.2.


LATEST_VERSION = Version.WIN10_5_3
"""The latest that is offered unless the user asks for more: 6.0 exists in Linux since v7.2 only."""


class MessageType(IntEnum):
    """CHANNELMSG_*: what a VMBus message is. G: the guest sends it, H: the host.

    Source: Linux include/linux/hyperv.h. The TLFS does not have the VMBus.
    """

    OFFER = 1  # CHANNELMSG_OFFERCHANNEL: H describes a device and its channel, by GUIDs and relid.
    RESCIND = 2  # CHANNELMSG_RESCIND_CHANNELOFFER: H takes an offer back; the guest answers with RELID_RELEASED.
    REQUEST_OFFERS = 3  # CHANNELMSG_REQUESTOFFERS: G asks for all offers, once after contact.
    ALL_OFFERS_DELIVERED = 4  # CHANNELMSG_ALLOFFERS_DELIVERED: H has sent all offers there are for now.
    OPEN = 5  # CHANNELMSG_OPENCHANNEL: G opens a channel, with rings in a GPADL made before.
    OPEN_RESULT = 6  # CHANNELMSG_OPENCHANNEL_RESULT: H says whether the channel is open.
    CLOSE = 7  # CHANNELMSG_CLOSECHANNEL: G closes a channel; it has no answer.
    GPADL_HEADER = 8  # G shares memory: the first list of frames of a GPADL (guest physical address descriptor list).
    GPADL_BODY = 9  # G sends more frames of a GPADL that does not fit in one message.
    GPADL_CREATED = 10  # H has the whole GPADL, or refuses it.
    GPADL_TEARDOWN = 11  # G wants a GPADL's memory back.
    GPADL_TORNDOWN = 12  # H uses a GPADL no longer.
    RELID_RELEASED = 13  # G has forgotten a channel that was rescinded; the number may be given to another.
    INITIATE_CONTACT = 14  # G's first message: proposes a version.
    VERSION_RESPONSE = 15  # H serves the proposed version, or not: then the guest proposes an older one.
    UNLOAD = 16  # G leaves the bus: a crash kernel, kexec or the module's end.
    UNLOAD_RESPONSE = 17  # H has closed and forgotten everything.
    TL_CONNECT_REQUEST = 21  # G connects a Hyper-V socket to a service of the host.
    MODIFY_CHANNEL = 22  # CHANNELMSG_MODIFYCHANNEL: G wants a channel's interrupts on another VP.
    TL_CONNECT_RESULT = 23  # H refuses a socket's connection.
    MODIFY_CHANNEL_RESPONSE = 24  # CHANNELMSG_MODIFYCHANNEL_RESPONSE: H has moved the interrupts.


class Status(IntEnum):
    """NT_STATUS_*: the NTSTATUS in VMBus results. Linux only asks whether it is 0.

    Source: Microsoft [MS-ERREF], "NTSTATUS Values"; Linux fs/smb/client/nterr.h (NT_STATUS_*).
    """

    SUCCESS = 0  # Done.
    UNSUCCESSFUL = 0xC0000001  # Refused, without a particular reason.
    INVALID_PARAMETER = 0xC000000D  # A number in the request names nothing, or has a value that it must not have.
    QUOTA_EXCEEDED = 0xC0000044  # The guest has as many as it may have.
    CONNECTION_REFUSED = 0xC0000236  # No program listens at the service.


@wire
class MessageHeader(Wire):
    """struct vmbus_channel_message_header."""

    type: Annotated[u32, MessageType]
    padding: u32 = 0


class Message(Wire):
    """Base of the messages: `TYPE` and `SINCE` are its row in the table of messages, SIZE includes the header."""

    __slots__ = ()
    TYPE: ClassVar[MessageType]
    SINCE: ClassVar[Version]
    """The oldest version in which it exists."""

    def build(self) -> bytes:
        return self.TYPE.to_bytes(4, "little") + super().build()[4:]


class MessageWithWords(Message):
    """Base of the messages that end in any number of u64, which SIZE does not count."""

    __slots__ = ("words",)
    words: tuple[int, ...]

    def __post_init__(self) -> None:
        self.words = ()

    @classmethod
    def parse(cls, data: Buffer, offset: int = 0) -> Self:
        """Read a message and all whole u64 behind it; a rest of 1 to 7 bytes is the sender's rounding."""
        made, end = super().parse(data, offset), offset + cls.SIZE
        made.words = unpack_from(f"<{(len(data) - end) // 8}Q", data, end)
        return made

    def build(self) -> bytes:
        return super().build() + pack(f"<{len(self.words)}Q", *self.words)


T = TypeVar("T", bound=Message)


@dataclass_transform(field_specifiers=(field,))
def message(kind: MessageType, *, since: Version = Version.WIN8) -> Callable[[type[T]], type[T]]:
    """Make a class one row of the table of messages: its fields follow the header of this type."""

    def row(cls: type[T]) -> type[T]:
        made = wire(cls)
        made._struct = Struct(f"<{MessageHeader.SIZE}x{made._struct.format.removeprefix('<')}")
        made.SIZE = made._struct.size
        made.TYPE, made.SINCE = kind, since
        return made

    return row


# From the guest


@message(MessageType.INITIATE_CONTACT)
class InitiateContact(Message):
    """struct vmbus_channel_initiate_contact. Before 5.0 `target` is the interrupt page's address."""

    version: Annotated[u32, Version]
    target_vp: u32
    target: u64
    monitor_page1: u64  # host to guest
    monitor_page2: u64  # guest to host

    @property
    def sint(self) -> int:
        """From 5.0 on: the SINT for the guest's messages."""
        return self.target & 0xFF

    @property
    def feature_flags(self) -> int:
        """From 6.0 on: what the guest would use."""
        return self.target >> 32


@message(MessageType.OPEN)
class OpenChannel(Message):
    """struct vmbus_channel_open_channel. `receive_offset`: ring pages before it carry guest to host."""

    relid: u32
    open_id: u32
    ring_gpadl: u32
    target_vp: u32
    receive_offset: u32
    user_data: Annotated[bytes, "120s"]


@message(MessageType.CLOSE)
class CloseChannel(Message):
    """struct vmbus_channel_close_channel."""

    relid: u32


@message(MessageType.GPADL_HEADER)
class GpadlHeader(MessageWithWords):
    """struct vmbus_channel_gpadl_header. `words`: the ranges' u64 that came with it, the rest follows in bodies."""

    relid: u32
    gpadl: u32
    range_bytes: u16
    range_count: u16


@message(MessageType.GPADL_BODY)
class GpadlBody(MessageWithWords):
    """struct vmbus_channel_gpadl_body. `words`: more of the ranges' u64. Linux leaves `number` 0."""

    number: u32
    gpadl: u32


@message(MessageType.GPADL_TEARDOWN)
class GpadlTeardown(Message):
    """struct vmbus_channel_gpadl_teardown."""

    relid: u32
    gpadl: u32


@message(MessageType.RELID_RELEASED)
class RelidReleased(Message):
    """struct vmbus_channel_relid_released: the guest's last word on a rescinded channel."""

    relid: u32


@message(MessageType.MODIFY_CHANNEL, since=Version.WIN10_4_1)
class ModifyChannel(Message):
    """struct vmbus_channel_modifychannel: events go to another VP from now on."""

    relid: u32
    target_vp: u32


@message(MessageType.TL_CONNECT_REQUEST, since=Version.WIN10)
class TlConnectRequest(Message):
    """struct vmbus_channel_tl_connect_request: an hvsock connection requested by the guest."""

    endpoint: Guid
    service: Guid


@message(MessageType.REQUEST_OFFERS)
class RequestOffers(Message):
    """CHANNELMSG_REQUESTOFFERS: only a header."""


@message(MessageType.UNLOAD)
class Unload(Message):
    """CHANNELMSG_UNLOAD: only a header."""


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

_RELID_FIRST = {
    each.TYPE for each in (OpenChannel, CloseChannel, GpadlHeader, GpadlTeardown, RelidReleased, ModifyChannel)
}

GUEST_MESSAGES: dict[int, type[GuestMessage]] = {kind.TYPE: kind for kind in get_args(GuestMessage)}
"""The messages that are served, by type."""


def relid_of(data: Buffer) -> int:
    """Return the relid of the channel that a guest's message is about, as it says; 0 if it names none."""
    if len(data) < MessageHeader.SIZE + 4 or int.from_bytes(data[:4], "little") not in _RELID_FIRST:
        return 0
    return int.from_bytes(data[MessageHeader.SIZE : MessageHeader.SIZE + 4], "little")


def parse(data: Buffer) -> GuestMessage:
    """A guest's message. Raises WireError if too short or too long, GuestProtocolError for a type not known."""
    if len(data) > MESSAGE_SIZE_MAX:
        raise WireError(f"message of {len(data)} bytes, at most {MESSAGE_SIZE_MAX}")
    number = MessageHeader.parse(data).type
    kind = GUEST_MESSAGES.get(number)
    if kind is None:
        raise GuestProtocolError(f"message type {number} is not served")
    return kind.parse(data)


# To the guest


@message(MessageType.OFFER)
class OfferChannel(Message):
    """struct vmbus_channel_offer_channel."""

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


@message(MessageType.RESCIND)
class Rescind(Message):
    """struct vmbus_channel_rescind_offer."""

    relid: u32


@message(MessageType.ALL_OFFERS_DELIVERED)
class AllOffersDelivered(Message):
    """CHANNELMSG_ALLOFFERS_DELIVERED: only a header."""


@message(MessageType.OPEN_RESULT)
class OpenResult(Message):
    """struct vmbus_channel_open_result."""

    relid: u32
    open_id: u32
    status: Annotated[u32, Status]


@message(MessageType.GPADL_CREATED)
class GpadlCreated(Message):
    """struct vmbus_channel_gpadl_created."""

    relid: u32
    gpadl: u32
    status: Annotated[u32, Status]


@message(MessageType.GPADL_TORNDOWN)
class GpadlTorndown(Message):
    """struct vmbus_channel_gpadl_torndown."""

    gpadl: u32


@message(MessageType.VERSION_RESPONSE)
class VersionResponse(Message):
    """struct vmbus_channel_version_response. Before 5.0 `connection_id` is the version."""

    supported: u8
    state: u8
    padding2: u16
    connection_id: u32


@message(MessageType.VERSION_RESPONSE, since=Version.COPPER)
class VersionResponseFeatures(Message):
    """The same from 6.0 on, with the features that guest and host both have."""

    supported: u8
    state: u8
    padding2: u16
    connection_id: u32
    feature_flags: u32


@message(MessageType.UNLOAD_RESPONSE)
class UnloadResponse(Message):
    """CHANNELMSG_UNLOAD_RESPONSE: only a header."""


@message(MessageType.TL_CONNECT_RESULT, since=Version.WIN10_4_1)
class TlConnectResult(Message):
    """CHANNELMSG_TL_CONNECT_RESULT. Linux ignores it."""

    endpoint: Guid
    service: Guid
    status: Annotated[u32, Status]


@message(MessageType.MODIFY_CHANNEL_RESPONSE, since=Version.WIN10_5_3)
class ModifyChannelResponse(Message):
    """struct vmbus_channel_modifychannel_response; from 5.3 on."""

    relid: u32
    status: Annotated[u32, Status]


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
