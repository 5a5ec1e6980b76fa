"""What bytes are: tries each form that host and guest exchange, and keeps those whose types and lengths fit.

message        a VMBus message          post-message   the input of HvPostMessage, with one in it
packet         a ring's packet          synic          a slot of the page of messages
DEVICE         a packet's payload: hv-balloon, heartbeat, kvp, ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from pyvmm.decode import Decoded, message, packet, post_message, synic_message
from pyvmm.decode.payloads import decoders, payload
from pyvmm.devices.balloon import protocol as dm
from pyvmm.devices.ic import protocol as ic
from pyvmm.devices.netvsc import nvsp, rndis
from pyvmm.devices.storvsc import protocol as storvsc
from pyvmm.errors import ConfigError
from pyvmm.hyperv import tlfs
from pyvmm.vmbus import protocol as vmbus
from pyvmm.vmbus.packet import PacketHeader, PacketType

BALLOON = "hv-balloon"
_UNIT = 8
_TRAILER = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read bytes: its form, in words, and the fields. `name` finds the thing's entry."""

    form: str
    words: str
    decoded: Decoded
    kind: str = ""
    """The kind of the entry that `decoded.name` has in the catalogue."""


def forms() -> dict[str, str]:
    """Return the forms that can be asked for, with what they are."""
    devices = {name: f"payload of a packet of {name}" for name in decoders()}
    return {
        "message": "VMBus message",
        "post-message": "input of HvPostMessage",
        "synic": "slot of the SynIC's page of messages",
        "packet": "packet of a ring",
    } | devices


def read_as(data: bytes, form: str) -> Reading:
    """Return bytes read in a form that was asked for. Raises ConfigError for an unknown one."""
    words = forms().get(form)
    if words is None:
        raise ConfigError(f"no form is called {form[:40]!r}: {', '.join(forms())}")
    match form:
        case "message":
            return Reading(form, words, message(data), "message")
        case "post-message":
            return Reading(form, words, post_message(data), "message")
        case "synic":
            return Reading(form, words, synic_message(data), "message")
        case "packet":
            return _packet(data)
    return Reading(form, words, payload(data, 0, form), _kind_of(form))


def readings(data: bytes) -> list[Reading]:
    """Return the ways to read bytes whose types and lengths fit. Raises ConfigError if none does."""
    found = [read_as(data, form) for form, fits in _FITS.items() if fits(data)]
    if not found and _begins_message(data):
        return [read_as(data, "message")]  # cut off, or with something behind it
    if not found:
        raise ConfigError(
            f"{len(data)} bytes from {data[:8].hex(' ')} on fit no message or packet: --as says what they are, "
            f"one of {', '.join(forms())}"
        )
    return found


def _packet(data: bytes) -> Reading:
    """Read a packet; its payload as that of the device whose messages it fits."""
    header = PacketHeader.parse(data) if len(data) >= PacketHeader.SIZE else None
    device = _device_of(data[header.offset8 * _UNIT : header.length8 * _UNIT]) if header else ""
    words = f"packet of a ring, of {device}" if device else "packet of a ring"
    return Reading("packet", words, packet(data, device), _kind_of(device) if device else "packet")


def _kind_of(device: str) -> str:
    """Return the kind of the entries that a device's messages have."""
    return {BALLOON: "balloon", "netvsc": "network", "rndis": "network", "storvsc": "scsi"}.get(device, "service")


def _device_of(body: bytes) -> str:
    """Return the device whose messages a payload fits; empty for none."""
    if _is_balloon(body):
        return BALLOON
    if _is_service(body):
        return _service_of(body)
    return "storvsc" if _is_scsi(body) else "netvsc" if _is_network(body) else ""


def _service_of(body: bytes) -> str:
    number = ic.IcHeader.parse(body).type
    names = {
        ic.IcType.SHUTDOWN: "shutdown",
        ic.IcType.TIME_SYNC: "timesync",
        ic.IcType.KVP_EXCHANGE: "kvp",
        ic.IcType.VSS: "vss",
        ic.IcType.FILE_COPY: "fcopy",
    }
    return next((name for kind, name in names.items() if kind == number), "heartbeat")


def _begins_message(data: bytes) -> bool:
    """Return whether bytes begin as a message does, with a known type and zeros."""
    if len(data) < vmbus.MessageHeader.SIZE:
        return False
    head = vmbus.MessageHeader.parse(data)
    return head.type in set(vmbus.MessageType) and head.padding == 0


def _is_message(data: bytes) -> bool:
    """Return whether the type is known, and the length that of its structure, rounded up at most."""
    if not _begins_message(data) or len(data) > vmbus.MESSAGE_SIZE_MAX:
        return False
    classes: list[type[vmbus.Message]] = [*get_args(vmbus.GuestMessage), *get_args(vmbus.HostMessage)]
    return any(
        0 <= len(data) - cls.SIZE < _UNIT or (issubclass(cls, vmbus.MessageWithWords) and len(data) >= cls.SIZE)
        for cls in classes
        if int.from_bytes(data[:4], "little") == cls.TYPE
    )


def _is_post_message(data: bytes) -> bool:
    size = tlfs.PostMessageInput.SIZE
    if len(data) < size + vmbus.MessageHeader.SIZE:
        return False
    head = tlfs.PostMessageInput.parse(data)
    return (
        head.message_type == vmbus.SYNIC_MESSAGE_TYPE
        and head.reserved == 0
        and 0 < head.payload_size <= min(tlfs.MAX_PAYLOAD, len(data) - size)
        and _is_message(data[size : size + head.payload_size])
    )


def _is_synic(data: bytes) -> bool:
    size = tlfs.MessageHeader.SIZE
    if not size < len(data) <= tlfs.MESSAGE_SIZE:
        return False
    head = tlfs.MessageHeader.parse(data)
    if head.type == tlfs.MessageType.TIMER_EXPIRED:
        return head.payload_size == tlfs.TimerMessage.SIZE
    inner = data[size : size + head.payload_size]
    return head.type == vmbus.SYNIC_MESSAGE_TYPE and len(inner) == head.payload_size and _is_message(inner)


def _is_packet(data: bytes) -> bool:
    if len(data) < PacketHeader.SIZE:
        return False
    head = PacketHeader.parse(data)
    length = head.length8 * _UNIT
    return (
        head.type in set(PacketType)
        and PacketHeader.SIZE <= head.offset8 * _UNIT <= length
        and len(data) in (length, length + _TRAILER)
    )


def _is_balloon(data: bytes) -> bool:
    if len(data) < dm.Header.SIZE:
        return False
    head = dm.Header.parse(data)
    return head.type in set(dm.MessageType) and dm.Header.SIZE <= head.size <= len(data) < head.size + _UNIT


def _is_service(data: bytes) -> bool:
    if len(data) < ic.IcHeader.SIZE:
        return False
    head = ic.IcHeader.parse(data)
    return (
        head.type in set(ic.IcType)
        and head.pipe_size >= ic.IcHeader.SIZE - ic.PIPE_SIZE
        and head.size <= len(data) - ic.IcHeader.SIZE
        and head.flags < 8
    )


def _is_network(data: bytes) -> bool:
    """Return whether bytes are an NVSP message: its length is always the same, but for SEND_TABLE's."""
    return len(data) == nvsp.SIZE and int.from_bytes(data[:4], "little") in set(nvsp.Type)


def _is_rndis(data: bytes) -> bool:
    if len(data) < rndis.HEADER_SIZE:
        return False
    kind, length = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    return kind & ~rndis.COMPLETE in set(rndis.Type) and length == len(data) > rndis.HEADER_SIZE


def _is_scsi(data: bytes) -> bool:
    return (
        len(data) in (storvsc.SHORT_SIZE, storvsc.PACKET_SIZE)
        and int.from_bytes(data[:4], "little") in set(storvsc.Operation)
        and int.from_bytes(data[4:8], "little") <= storvsc.COMPLETION_REQUESTED
    )


_FITS: dict[str, Callable[[bytes], bool]] = {
    "post-message": _is_post_message,
    "synic": _is_synic,
    "packet": _is_packet,
    "message": _is_message,
    BALLOON: _is_balloon,
    "heartbeat": _is_service,
    "netvsc": _is_network,
    "rndis": _is_rndis,
    "storvsc": _is_scsi,
}
