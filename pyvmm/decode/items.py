"""Messages, packets and hypercalls, decoded: which structure the bytes are, from the types in them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import get_args

from pyvmm.decode.fields import Decoded, Part, bytes_row, meaning, number_row, number_rows, structure
from pyvmm.decode.payloads import payload
from pyvmm.hyperv import tlfs
from pyvmm.vmbus import protocol as vmbus
from pyvmm.vmbus.packet import PacketHeader, PacketType
from pyvmm.wire import Buffer

UNIT = 8  # bytes that a packet's offset and length count


def message(data: Buffer) -> Decoded:
    """Decode a VMBus message: the payload of a SynIC message or of HvPostMessage."""
    head = structure(vmbus.MessageHeader, data)
    number = int.from_bytes(data[:4], "little")
    kind = _messages().get(number) if len(data) >= vmbus.MessageHeader.SIZE else None
    if kind is None:
        rest = (bytes_row("body", data, vmbus.MessageHeader.SIZE),) if len(data) > vmbus.MessageHeader.SIZE else ()
        return Decoded(f"message type {number}", (head, Part("a body of unknown form", rest)) if rest else (head,))
    if issubclass(kind, vmbus.VersionResponse) and len(data) >= vmbus.VersionResponseFeatures.SIZE:
        kind = vmbus.VersionResponseFeatures
    name = vmbus.MessageType(number).name
    part = structure(kind, data)
    if issubclass(kind, vmbus.MessageWithWords) and len(data) > kind.SIZE:
        count = (len(data) - kind.SIZE) // 8
        part = Part(part.title, (*part.rows, *number_rows("word", data, kind.SIZE, count, 8)), kind)
    return Decoded(name, (head, part) if part.rows else (head,))


def packet(data: Buffer, channel: str = "", to_guest: bool | None = None) -> Decoded:
    """Decode a ring's packet. `channel` is the name of its device; without one the payload is bytes.

    `to_guest` is who sent it, where that is known: the same type may have another structure in an answer.
    """
    head = structure(PacketHeader, data)
    if len(data) < PacketHeader.SIZE:
        return Decoded("packet", (head,))
    header = PacketHeader.parse(data)
    begin, end = header.offset8 * UNIT, min(header.length8 * UNIT, len(data))
    parts = [head]
    if not PacketHeader.SIZE <= begin <= end:
        parts.append(Part("bytes", (bytes_row("rest", data, PacketHeader.SIZE),)))
        return Decoded("packet with invalid offsets", tuple(parts))
    if begin > PacketHeader.SIZE:
        parts.append(_descriptor(header.type, data, begin))
    name = meaning(header.type, PacketType)
    if begin < end:
        inner = payload(data[:end], begin, channel, to_guest)
        parts += inner.parts
        name = inner.name or name
    if len(data) > end:
        parts.append(_trailer(data, end))
    return Decoded(name, tuple(parts))


def post_message(data: Buffer) -> Decoded:
    """Decode the input of HvPostMessage with its payload, which is a VMBus message."""
    head = structure(tlfs.PostMessageInput, data)
    return _enclosed(head, data, tlfs.PostMessageInput.SIZE, "message_type", vmbus.SYNIC_MESSAGE_TYPE)


def synic_message(data: Buffer) -> Decoded:
    """Decode a slot of a SynIC message page, 256 bytes."""
    head = structure(tlfs.MessageHeader, data)
    number = int.from_bytes(data[:4], "little")
    if number == tlfs.MessageType.NONE:
        return Decoded("empty slot", (head,))
    if number == tlfs.MessageType.TIMER_EXPIRED:
        return Decoded("TIMER_EXPIRED", (head, structure(tlfs.TimerMessage, data, tlfs.MessageHeader.SIZE)))
    return _enclosed(head, data, tlfs.MessageHeader.SIZE, "type", tlfs.MessageType.VMBUS)


def hypercall(control: int) -> Decoded:
    """Decode the control word of a hypercall."""
    raw = (control & (1 << 64) - 1).to_bytes(8, "little")
    word = tlfs.HypercallControl(control)
    code = meaning(word.code, tlfs.HypercallCode)
    row = number_row("control", "u64", raw, 0, tlfs.HypercallControl)
    name = code if code != "unknown" else f"hypercall {word.code:#x}"
    return Decoded(name, (Part("control word of a hypercall", (row,), tlfs.HypercallControl),))


@cache
def _messages() -> dict[int, type[vmbus.Message]]:
    classes: tuple[type[vmbus.Message], ...] = (*get_args(vmbus.GuestMessage), *get_args(vmbus.HostMessage))
    return {each.TYPE: each for each in reversed(classes)}


def _enclosed(head: Part, data: Buffer, size: int, field: str, vmbus_type: int) -> Decoded:
    values = {row.name: row.value for row in head.rows}
    length = values.get("payload_size")
    if values.get(field) != vmbus_type or not isinstance(length, int):
        return Decoded(
            "message that is not the VMBus's", (head, Part("payload", (bytes_row("payload", data, size),)))
        )
    inner = message(data[size : size + length])
    return Decoded(inner.name, (head, *(_moved(part, size) for part in inner.parts)))


def _moved(part: Part, by: int) -> Part:
    return replace(part, rows=tuple(replace(row, offset=row.offset + by) for row in part.rows))


def _descriptor(kind: int, data: Buffer, end: int) -> Part:
    """Decode the descriptor of a packet that refers to other memory (`pyvmm.vmbus.packet` shows both)."""
    at = PacketHeader.SIZE
    if end < at + UNIT or kind not in (PacketType.TRANSFER_PAGES, PacketType.GPA_DIRECT):
        return Part("descriptor", (bytes_row("descriptor", data, at, end),))
    rows = [number_row("count", "u32", bytes(data[at + 4 : at + 8]), at + 4)]
    count, position = int.from_bytes(data[at + 4 : at + 8], "little"), at + UNIT
    if kind == PacketType.TRANSFER_PAGES:
        rows.insert(0, number_row("set", "u16", bytes(data[at : at + 2]), at))
        rows += number_rows("length, offset", data[:end], position, 2 * count, 4)
        return Part("ranges in an established GPADL", tuple(rows))
    if end >= position + UNIT:
        rows += number_rows("length, offset", data[:end], position, 2, 4)
        rows += number_rows("frame", data[:end], position + UNIT, (end - position) // UNIT - 1, 8)
    return Part("memory that the packet shares until it is completed", tuple(rows))


def _trailer(data: Buffer, at: int) -> Part:
    rows = number_rows("trailer", data, at, 1, 8)
    return Part("the index at which the packet began, in the high half", tuple(rows))
