"""The network card as the guest's driver configures it by RNDIS control messages. No I/O: message in, answer out.

Source: Linux drivers/net/hyperv/rndis_filter.c for what a driver asks; [MS-RNDIS] and NDIS for the objects (OIDs).

Every request gets an answer, whatever it asks for: Linux waits for it without a time limit, holding the lock of all
network configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from struct import pack, unpack_from

from pyvmm.devices.netvsc import offload, rndis
from pyvmm.devices.netvsc.rndis import Status
from pyvmm.devices.netvsc.rss import Steering
from pyvmm.errors import GuestProtocolError, WireError

MTU_LIMIT = 65521
"""The largest MTU that Linux gives the card: with its Ethernet header it is 65535 bytes."""
SPEED_100BPS = 10_000_000_000 // 100
NAME_LIMIT = 256
"""Characters of the card's name: Linux reads 512 bytes."""


class Oid(IntEnum):
    SUPPORTED_LIST = 0x00010101
    HARDWARE_STATUS = 0x00010102
    MEDIA_SUPPORTED = 0x00010103
    MEDIUM = 0x00010104
    LOOKAHEAD_LIMIT = 0x00010105
    FRAME_LIMIT = 0x00010106
    LINK_SPEED = 0x00010107
    SEND_SPACE = 0x00010108
    RECEIVE_SPACE = 0x00010109
    SEND_BLOCK = 0x0001010A
    RECEIVE_BLOCK = 0x0001010B
    VENDOR_ID = 0x0001010C
    VENDOR = 0x0001010D
    PACKET_FILTER = 0x0001010E
    LOOKAHEAD = 0x0001010F
    TOTAL_LIMIT = 0x00010111
    MAC_OPTIONS = 0x00010113
    CONNECT_STATUS = 0x00010114
    SEND_PACKETS_LIMIT = 0x00010115
    PHYSICAL_MEDIUM = 0x00010202
    RSS_CAPABILITIES = 0x00010203
    RSS_PARAMETERS = 0x00010204
    CONFIG_PARAMETER = 0x0001021B
    FRAMES_SENT = 0x00020101
    FRAMES_RECEIVED = 0x00020102
    SEND_ERRORS = 0x00020103
    RECEIVE_ERRORS = 0x00020104
    NO_BUFFER = 0x00020105
    NAME = 0x00020216
    PERMANENT_ADDRESS = 0x01010101
    CURRENT_ADDRESS = 0x01010102
    MULTICAST_LIST = 0x01010103
    MULTICAST_LIMIT = 0x01010104
    OFFLOAD_PARAMETERS = 0xFC01020C
    OFFLOAD_CAPABILITIES = 0xFC01020D


PROMISCUOUS = 0x20
"""Bit of the packet filter."""


@dataclass(slots=True)
class Counters:
    """Frames and bytes through the card since it was made, and frames lost."""

    sent: int = 0
    sent_bytes: int = 0
    send_errors: int = 0
    received: int = 0
    received_bytes: int = 0
    dropped: int = 0
    """Frames to the guest that it would not have: its driver was not up, or the filter or the size refused them."""
    send_dropped: int = 0
    """Frames of the guest that the link would not take."""


@dataclass(slots=True)
class Card:
    """State of the card. `queues` is the number of channels that the guest may use, the primary one included.

    `mac` is the permanent address, `address` the one in use. `filter` is 0 while the guest's interface is down.
    """

    mac: bytes
    name: str
    queues: int = 1
    mtu_limit: int = MTU_LIMIT
    large_send: bool = True
    connected: bool = True
    filter: int = 0
    initialised: bool = False
    address: bytes = b""
    counters: Counters = field(default_factory=Counters)
    steering: Steering = field(default_factory=Steering)

    def __post_init__(self) -> None:
        self.address = self.mac

    def restart(self) -> None:
        """Forget what a driver has set: it halted the card, or its channel was closed."""
        self.initialised, self.filter, self.address = False, 0, self.mac
        self.steering.disable()

    def control(self, message: bytes) -> bytes | None:
        """Return the answer to a control message, None for HALT, which has none. Raises WireError, or
        GuestProtocolError for a type that no driver sends."""
        if len(message) < 12:
            raise WireError(f"RNDIS control message of {len(message)} bytes")
        kind, length, request = unpack_from("<III", message)
        if not 12 <= length <= len(message):
            raise WireError(f"RNDIS control message {kind:#x} of {length} in {len(message)} bytes")
        message = message[:length]
        match kind:
            case rndis.Type.INITIALIZE:
                return self._initialise(request)
            case rndis.Type.HALT:
                self.restart()
                return None
            case rndis.Type.QUERY:
                return self._query(message, request)
            case rndis.Type.SET:
                return rndis.Answer(kind | rndis.COMPLETE, 16, request, self._set(message)).build()
            case rndis.Type.KEEPALIVE:
                return rndis.Answer(kind | rndis.COMPLETE, 16, request, Status.SUCCESS).build()
            case rndis.Type.RESET:
                self.restart()
                return pack("<IIII", kind | rndis.COMPLETE, 16, Status.SUCCESS, 0)
        raise GuestProtocolError(f"RNDIS control message of type {kind:#x}")

    def _initialise(self, request: int) -> bytes:
        self.initialised = True
        return rndis.InitializeComplete(
            rndis.Type.INITIALIZE | rndis.COMPLETE,
            rndis.InitializeComplete.SIZE,
            request,
            Status.SUCCESS,
            major=1,
            minor=0,
            flags=1,  # connectionless
            medium=0,  # 802.3
            max_packets=PACKETS_PER_MESSAGE,
            max_transfer=0xEFFFFFFF,
            alignment=3,
            list_offset=0,
            list_size=0,
        ).build()

    # QUERY

    def _query(self, message: bytes, request: int) -> bytes:
        kind = rndis.Type.QUERY
        if len(message) < rndis.Request.SIZE:
            return rndis.query_complete(request, Status.INVALID_DATA, b"")
        asked = rndis.Request.parse(message)
        assert asked.type == kind
        if asked.oid == Oid.OFFLOAD_CAPABILITIES:
            return rndis.query_complete(request, Status.SUCCESS, self._offload(asked, message))
        answer = _ANSWERS.get(asked.oid)
        if answer is None:
            return rndis.query_complete(request, Status.NOT_SUPPORTED, b"")
        value = answer(self)
        return rndis.query_complete(request, Status.SUCCESS, pack("<I", value) if isinstance(value, int) else value)

    def _offload(self, asked: rndis.Request, message: bytes) -> bytes:
        """Return the capabilities in the size that the request names: it grew with NDIS's versions."""
        try:
            given = rndis.information(asked, message)
        except WireError:
            given = b""
        size: int = unpack_from("<H", given, 2)[0] if len(given) >= 4 else 0
        return offload.capabilities(size=min(size, 156) if size >= 112 else 112, large_send=self.large_send)

    # SET

    def _set(self, message: bytes) -> Status:
        """Set an object; return the status."""
        if len(message) < rndis.Request.SIZE:
            return Status.INVALID_DATA
        asked = rndis.Request.parse(message)
        try:
            value = rndis.information(asked, message)
            match asked.oid:
                case Oid.PACKET_FILTER:
                    if len(value) < 4:
                        return Status.INVALID_DATA
                    (self.filter,) = unpack_from("<I", value)
                case Oid.RSS_PARAMETERS:
                    self.steering.set(value, self.queues)
                case Oid.CONFIG_PARAMETER:
                    return self._configure(value)
                case Oid.OFFLOAD_PARAMETERS | Oid.MULTICAST_LIST | Oid.LOOKAHEAD:
                    pass  # each frame says what is to be done; multicast frames all pass
                case _:
                    return Status.NOT_SUPPORTED
        except WireError:
            return Status.INVALID_DATA
        return Status.SUCCESS

    def _configure(self, value: bytes) -> Status:
        """Set a parameter by its name: Linux sets its address so."""
        if len(value) < 20:
            return Status.INVALID_DATA
        name_at, name_size, _, text_at, text_size = unpack_from("<5I", value)
        name, text = value[name_at : name_at + name_size], value[text_at : text_at + text_size]
        if name.decode("utf-16-le", errors="replace") != "NetworkAddress":
            return Status.NOT_SUPPORTED
        try:
            address = bytes.fromhex(text.decode("utf-16-le"))
        except ValueError:
            return Status.INVALID_DATA
        if len(address) != 6 or address[0] & 1:
            return Status.INVALID_DATA
        self.address = address
        return Status.SUCCESS

    def accepts(self, frame: memoryview) -> bool:
        """Return whether the filter lets a frame to the guest pass: its own, multicast, or any if promiscuous."""
        return bool(frame[0] & 1 or self.filter & PROMISCUOUS or frame[:6] == self.address)


PACKETS_PER_MESSAGE = 8
"""Frames that the guest may put into one message."""


def _rss(card: Card) -> bytes:
    flags = 0x10000000 | 0x100 | 0x200 | 1  # on ports, TCP over IPv4 and IPv6; Toeplitz
    return pack("<BBHIIIH", 0x88, 2, 18, flags, card.queues, card.queues, 128)


_ANSWERS: dict[int, Callable[[Card], int | bytes]] = {
    Oid.HARDWARE_STATUS: lambda card: 0,  # ready
    Oid.MEDIA_SUPPORTED: lambda card: 0,
    Oid.MEDIUM: lambda card: 0,
    Oid.LOOKAHEAD_LIMIT: lambda card: card.mtu_limit,
    Oid.FRAME_LIMIT: lambda card: card.mtu_limit,
    Oid.LINK_SPEED: lambda card: SPEED_100BPS,
    Oid.SEND_SPACE: lambda card: 1 << 20,
    Oid.RECEIVE_SPACE: lambda card: 1 << 24,
    Oid.SEND_BLOCK: lambda card: 1,
    Oid.RECEIVE_BLOCK: lambda card: 1,
    Oid.VENDOR_ID: lambda card: 0xFFFFFF,
    Oid.VENDOR: lambda card: b"pyvmm\0",
    Oid.PACKET_FILTER: lambda card: card.filter,
    Oid.LOOKAHEAD: lambda card: card.mtu_limit,
    Oid.TOTAL_LIMIT: lambda card: card.mtu_limit + offload.ETHERNET_SIZE,
    Oid.MAC_OPTIONS: lambda card: 0,
    Oid.CONNECT_STATUS: lambda card: int(not card.connected),
    Oid.SEND_PACKETS_LIMIT: lambda card: PACKETS_PER_MESSAGE,
    Oid.PHYSICAL_MEDIUM: lambda card: 0,
    Oid.RSS_CAPABILITIES: _rss,
    Oid.FRAMES_SENT: lambda card: card.counters.sent & 0xFFFFFFFF,
    Oid.FRAMES_RECEIVED: lambda card: card.counters.received & 0xFFFFFFFF,
    Oid.SEND_ERRORS: lambda card: card.counters.send_errors & 0xFFFFFFFF,
    Oid.RECEIVE_ERRORS: lambda card: 0,
    Oid.NO_BUFFER: lambda card: card.counters.dropped & 0xFFFFFFFF,
    Oid.NAME: lambda card: card.name[:NAME_LIMIT].encode("utf-16-le")[:512],
    Oid.PERMANENT_ADDRESS: lambda card: card.mac,
    Oid.CURRENT_ADDRESS: lambda card: card.address,
    Oid.MULTICAST_LIST: lambda card: b"",
    Oid.MULTICAST_LIMIT: lambda card: 128,
    Oid.SUPPORTED_LIST: lambda card: pack(f"<{len(Oid)}I", *Oid),
}
