"""Names of what crosses the taps: fields by offset and size in the bytes, and the name of the message they are.

A rule matches and changes fields by these names: `type=OPEN_RESULT`, `to.status=5`. They are those of pyvmm's own
structures (pyvmm.vmbus.protocol, pyvmm.devices.balloon.protocol, pyvmm.devices.ic.protocol).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import cache
from typing import get_args

from pyvmm import wire
from pyvmm.decode.payloads import balloon_structures, service_bodies
from pyvmm.devices.balloon import protocol as dm
from pyvmm.devices.ic import protocol as ic
from pyvmm.hyperv.tlfs import HypercallCode, ReferenceTscPage
from pyvmm.tap import Item
from pyvmm.vmbus import protocol as vmbus
from pyvmm.vmbus.packet import PacketHeader
from pyvmm.wire import Wire

Layout = Mapping[str, tuple[int, int]]
"""Offset and size in bytes by name, of unsigned little-endian numbers."""

BALLOON = "hv-balloon"
IC_CHANNELS = ("heartbeat", "shutdown", "timesync")
PAYLOAD = PacketHeader.SIZE  # offset of the payload in a packet without descriptor
_INTEGERS = frozenset("BHIQ")


def _of(cls: type[Wire], at: int) -> dict[str, tuple[int, int]]:
    """Return the layout of the numbers of a structure at offset `at`."""
    return {each.name: (at + each.offset, each.size) for each in wire.layout(cls) if each.form in _INTEGERS}


_OWN_NAMES = {"type": "packet_type", "flags": "packet_flags"}
PACKET: Layout = {_OWN_NAMES.get(name, name): place for name, place in _of(PacketHeader, 0).items()}
"""The packet's header. `type` and `flags` without an addition are those of the message in it."""


@cache
def _messages() -> dict[int, Layout]:
    classes: Iterable[type[vmbus.Message]] = reversed((*get_args(vmbus.GuestMessage), *get_args(vmbus.HostMessage)))
    return {each.TYPE: _of(vmbus.MessageHeader, 0) | _of(each, 0) for each in classes}


@cache
def _balloon() -> dict[int, Layout]:
    kind = dm.MessageType
    made = {number: _of(each, PAYLOAD) for number, each in balloon_structures().items()}
    for number in (kind.BALLOON_RESPONSE, kind.UNBALLOON_REQUEST, kind.HOT_ADD_REQUEST):
        made[number]["range"] = PAYLOAD + balloon_structures()[number].SIZE, 8
    made[kind.HOT_ADD_REQUEST]["region"] = PAYLOAD + dm.Header.SIZE + 8, 8
    return dict(made)


@cache
def _services() -> dict[int, Layout]:
    head, after = _of(ic.IcHeader, PAYLOAD), PAYLOAD + ic.IcHeader.SIZE
    bodies = {number: _of(cls, after) for number, cls in service_bodies().items()}
    return {
        number: head | {f"body_{name}" if name in head else name: place for name, place in body.items()}
        for number, body in bodies.items()
    }


@cache
def _clock() -> Layout:
    return _of(ReferenceTscPage, 0)


def message_types(point: str) -> dict[str, type[IntEnum]]:
    """Return the enumerations whose names the field `type` of a point may be given by."""
    if point.startswith("message."):
        return {"type": vmbus.MessageType}
    if point.startswith("packet."):
        return {"type": dm.MessageType}
    return {}


def names(point: str) -> dict[str, int]:
    """Return the names of all fields in the bytes that may cross a point, with their sizes in bytes."""
    layouts: list[Layout] = []
    if point.startswith("message."):
        layouts = [*_messages().values(), {"type": (0, 4)}]
    elif point.startswith("packet."):
        layouts = [PACKET, *_balloon().values(), *_services().values()]
    elif point == "clock.out":
        layouts = [_clock()]
    sizes: dict[str, int] = {}
    for layout in layouts:
        for name, (_, size) in layout.items():
            sizes[name] = max(size, sizes.get(name, 0))
    return sizes


def layout(item: Item) -> Layout:
    """Return the layout of an item's bytes."""
    point, data = item.point, item.data
    if point.startswith("message."):
        return _messages().get(_number(data, 0, 4), {"type": (0, 4)})
    if point.startswith("packet."):
        if item.fields.get("channel") == BALLOON:
            return {**PACKET, **_balloon().get(_number(data, PAYLOAD, 2), _of(dm.Header, PAYLOAD))}
        if item.fields.get("channel") in IC_CHANNELS:
            return {**PACKET, **_services().get(_number(data, PAYLOAD + 12, 2), _of(ic.IcHeader, PAYLOAD))}
        return PACKET
    return _clock() if point == "clock.out" and data else {}


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def value(item: Item, name: str) -> int | None:
    """Return the number called `name` in an item's bytes; None if it has none, or ends before."""
    place = layout(item).get(name)
    if place is None or len(item.data) < sum(place):
        return None
    return _number(item.data, *place)


def message_name(item: Item) -> str:
    """Return the name of the message that an item is, such as OPEN_RESULT; "" if it has none."""
    kinds: type[IntEnum]
    if item.point.startswith("message."):
        kinds, number = vmbus.MessageType, _number(item.data, 0, 4)
    elif item.point.startswith("packet."):
        if _number(item.data, 0, 2) != 6 or len(item.data) < PAYLOAD + 8:
            return "COMPLETION" if _number(item.data, 0, 2) == 11 else ""
        if item.fields.get("channel") == BALLOON:
            kinds, number = dm.MessageType, _number(item.data, PAYLOAD, 2)
        elif item.fields.get("channel") in IC_CHANNELS:
            kinds, number = ic.IcType, _number(item.data, PAYLOAD + 12, 2)
        else:
            return ""
    elif item.point.startswith("hypercall."):
        kinds, number = HypercallCode, int(item.fields["code"])
    else:
        return ""
    return kinds(number).name if number in kinds.__members__.values() else ""


def message_names(point: str) -> list[str]:
    """Return the names of messages that may cross a point; none if items there are no messages."""
    if point == "message.in":
        return [each.TYPE.name for each in get_args(vmbus.GuestMessage)]
    if point == "message.out":
        return list(dict.fromkeys(each.TYPE.name for each in get_args(vmbus.HostMessage)))
    if point.startswith("packet."):
        return [*(each.name for each in dm.MessageType), *(each.name for each in ic.IcType), "COMPLETION"]
    return [each.name for each in HypercallCode] if point.startswith("hypercall.") else []
