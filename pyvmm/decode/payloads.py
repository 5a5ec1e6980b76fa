"""What devices' packets carry: for each device on the VMBus, the structures of a payload, by the types in it.

The structures are those of the devices' own modules. A device that is not here shows the bytes of its packets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from pyvmm.decode.cards import network, rndis_message, scsi
from pyvmm.decode.fields import (
    Decoded,
    Part,
    Row,
    bytes_row,
    meaning,
    number_row,
    number_rows,
    parts_with,
    structure,
)
from pyvmm.devices.balloon import protocol as dm
from pyvmm.devices.fcopy import protocol as fcopy
from pyvmm.devices.hvsock import protocol as hvsock
from pyvmm.devices.ic import protocol as ic
from pyvmm.devices.kvp import protocol as kvp
from pyvmm.devices.vss import protocol as vss
from pyvmm.wire import Buffer, Wire

Decoder = Callable[[Buffer, int, bool | None], Decoded]
"""Decodes a payload from an offset in a packet on; the flag is whether it goes to the guest, None if unknown."""

SERVICES = ("heartbeat", "shutdown", "timesync", "kvp", "vss", "fcopy")
"""Channels of the integration components, which have one frame in common."""


def payload(data: Buffer, at: int, channel: str, to_guest: bool | None = None) -> Decoded:
    """Decode a packet's payload, which begins at offset `at`. `channel` is the name of the device."""
    decoder = decoders().get(channel)
    if decoder is None:
        return Decoded("", (Part("payload", (bytes_row("payload", data, at),)),))
    return decoder(data, at, to_guest)


@cache
def decoders() -> Mapping[str, Decoder]:
    """Return the decoders by the names of channels."""
    cards: dict[str, Decoder] = {"netvsc": network, "rndis": rndis_message, "storvsc": scsi}
    return {"hv-balloon": _balloon, "hvsock": _hvsock, **dict.fromkeys(SERVICES, _service), **cards}


@cache
def balloon_structures() -> Mapping[int, type[Wire]]:
    """Return the structures of Dynamic Memory's messages by type; ranges follow the heads of three of them."""
    kind = dm.MessageType
    return {
        kind.VERSION_REQUEST: dm.VersionRequest,
        kind.VERSION_RESPONSE: dm.VersionResponse,
        kind.CAPABILITIES: dm.CapabilitiesReport,
        kind.CAPABILITIES_RESPONSE: dm.CapabilitiesResponse,
        kind.STATUS_REPORT: dm.StatusReport,
        kind.BALLOON_REQUEST: dm.BalloonRequest,
        kind.BALLOON_RESPONSE: dm.BalloonResponseHead,
        kind.UNBALLOON_REQUEST: dm.UnballoonRequestHead,
        kind.UNBALLOON_RESPONSE: dm.UnballoonResponse,
        kind.HOT_ADD_REQUEST: dm.Header,
        kind.HOT_ADD_RESPONSE: dm.HotAddResponse,
        kind.INFO: dm.Info,
    }


@cache
def service_bodies() -> Mapping[int, type[Wire]]:
    """Return the structures that follow the header of the integration components' messages, by type."""
    return {
        ic.IcType.NEGOTIATE: ic.Negotiate,
        ic.IcType.HEARTBEAT: ic.HeartbeatBody,
        ic.IcType.SHUTDOWN: ic.ShutdownBody,
        ic.IcType.TIME_SYNC: ic.TimeReferenceBody,
        ic.IcType.VSS: vss.VssBody,
    }


def _balloon(data: Buffer, at: int, to_guest: bool | None) -> Decoded:
    number = int.from_bytes(data[at : at + 2], "little")
    cls = balloon_structures().get(number, dm.Header)
    part = structure(cls, data, at)
    values = {row.name: row.value for row in part.rows}
    size = values.get("size")
    end = min(len(data), at + size) if isinstance(size, int) and size >= cls.SIZE else len(data)
    name = meaning(number, dm.MessageType)
    rows: list[Row] = []
    place, count = at + cls.SIZE, 0
    if number == dm.MessageType.HOT_ADD_REQUEST:
        names = ("range", "region")[: (end - place) // 8]
        rows = [
            number_row(each, "u64", bytes(data[place + 8 * i : place + 8 * i + 8]), place + 8 * i, dm.PageRange)
            for i, each in enumerate(names)
        ]
    elif cls in (dm.BalloonResponseHead, dm.UnballoonRequestHead):
        word, plain = values.get("count_word"), values.get("range_count")
        count = dm.MoreAndCount(word).count if isinstance(word, int) else plain if isinstance(plain, int) else 0
        rows = number_rows("range", data[:end], place, count, 8, dm.PageRange)
    elif cls is dm.Header and end > place:
        rows = [bytes_row("body", data, place, end)]
    return Decoded(name if name != "unknown" else f"balloon message type {number}", parts_with([part], rows))


def _service(data: Buffer, at: int, to_guest: bool | None) -> Decoded:
    head = structure(ic.IcHeader, data, at)
    values = {row.name: row.value for row in head.rows}
    number, size = values.get("type"), values.get("size")
    if not isinstance(number, int) or not isinstance(size, int):
        return Decoded("", (head,))
    place, body = at + ic.IcHeader.SIZE, data[: at + ic.IcHeader.SIZE + size]
    name = meaning(number, ic.IcType)
    match number:
        case ic.IcType.NEGOTIATE:
            part = structure(ic.Negotiate, body, place)
            both = sum(each for row in part.rows[:2] if isinstance(each := row.value, int))
            numbers = number_rows("major, minor", body, place + ic.Negotiate.SIZE, 2 * both, 2)
            return Decoded(name, (head, *parts_with([part], numbers)))
        case ic.IcType.KVP_EXCHANGE:
            rows = []
            for offset, field, kind in ((0, "operation", kvp.Operation), (1, "pool", kvp.Pool)):
                if len(body) > place + offset:
                    raw = bytes(body[place + offset : place + offset + 1])
                    rows.append(number_row(field, "u8", raw, place + offset, kind))
            rows.append(bytes_row("record", body, place + 4))
            return Decoded(name, (head, Part("struct hv_kvp_msg", tuple(rows))))
        case ic.IcType.FILE_COPY:
            return Decoded(name, (head, _file_copy(body, place)))
        case ic.IcType.TIME_SYNC if size < ic.TimeReferenceBody.SIZE or values.get("version_major") == 3:
            return Decoded(name, (head, structure(ic.TimeBody, body, place)))
    cls = service_bodies().get(number)
    if cls is None:
        return Decoded(f"service message type {number}", (head, Part("body", (bytes_row("body", body, place),))))
    return Decoded(name, (head, structure(cls, body, place)))


def _file_copy(body: Buffer, at: int) -> Part:
    operation = int.from_bytes(body[at : at + 4], "little")
    if operation == fcopy.Operation.START:
        return structure(fcopy.Start, body, at)
    if operation == fcopy.Operation.WRITE:
        part = structure(fcopy.Write, body, at)
        return parts_with([part], [bytes_row("data", body, at + fcopy.Write.SIZE)])[0]
    return structure(fcopy.Header, body, at)


def _hvsock(data: Buffer, at: int, to_guest: bool | None) -> Decoded:
    part = structure(hvsock.Header, data, at)
    size = next((row.value for row in part.rows if row.name == "size"), 0)
    end = at + hvsock.Header.SIZE + (size if isinstance(size, int) else 0)
    rows = [bytes_row("data", data, at + hvsock.Header.SIZE, end)] if size else []
    return Decoded("DATA" if size else "FIN", parts_with([part], rows))
