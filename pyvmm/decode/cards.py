"""Payloads of the network card (NVSP, and RNDIS inside it) and of the SCSI controller, decoded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from pyvmm.decode.fields import Decoded, Part, bytes_row, meaning, number_row, structure
from pyvmm.devices.netvsc import nvsp, rndis
from pyvmm.devices.storvsc import protocol as storvsc
from pyvmm.wire import Buffer, Wire


@cache
def nvsp_structures() -> Mapping[int, type[Wire]]:
    """Return the structures that follow the type of an NVSP message, by type."""
    classes = (
        nvsp.Init,
        nvsp.InitComplete,
        nvsp.NdisVersion,
        nvsp.NdisConfig,
        nvsp.LendBuffer,
        nvsp.ReceiveBufferComplete,
        nvsp.SendBufferComplete,
        nvsp.Revoke,
        nvsp.Subchannels,
    )
    more = {
        nvsp.Type.SEND_BUFFER: nvsp.LendBuffer,
        nvsp.Type.REVOKE_SEND_BUFFER: nvsp.Revoke,
        nvsp.Type.RNDIS_PACKET: nvsp.RndisPacket,
    }
    return {int(each.TYPE): each for each in classes} | more


@cache
def rndis_structures() -> Mapping[int, type[Wire]]:
    """Return the structures of RNDIS messages by type."""
    kind = rndis.Type
    return {
        kind.PACKET: rndis.Packet,
        kind.INITIALIZE: rndis.Initialize,
        kind.INITIALIZE | rndis.COMPLETE: rndis.InitializeComplete,
        kind.QUERY: rndis.Request,
        kind.SET: rndis.Request,
        kind.QUERY | rndis.COMPLETE: rndis.Answer,
        kind.SET | rndis.COMPLETE: rndis.Answer,
        kind.KEEPALIVE | rndis.COMPLETE: rndis.Answer,
    }


def network(data: Buffer, at: int, to_guest: bool | None) -> Decoded:
    """Decode an NVSP message."""
    number = int.from_bytes(data[at : at + 4], "little")
    head = Part("NVSP message", (number_row("type", "u32", bytes(data[at : at + 4]), at, nvsp.Type),))
    name = meaning(number, nvsp.Type)
    cls = nvsp_structures().get(number)
    parts = (head, structure(cls, data, at + 4)) if cls is not None and len(data) > at + 4 else (head,)
    return Decoded(name if name != "unknown" else f"NVSP message {number}", parts)


def rndis_message(data: Buffer, at: int, to_guest: bool | None) -> Decoded:
    """Decode an RNDIS message, which lies in a network card's buffers or in memory that a packet names."""
    number = int.from_bytes(data[at : at + 4], "little")
    name = meaning(number & ~rndis.COMPLETE, rndis.Type)
    cls = rndis_structures().get(number)
    if cls is None:
        row = number_row("type", "u32", bytes(data[at : at + 4]), at, rndis.Type)
        return Decoded(name, (Part("RNDIS message", (row, bytes_row("fields", data, at + 4))),))
    rest = (Part("what follows", (bytes_row("data", data, at + cls.SIZE),)),) if len(data) > at + cls.SIZE else ()
    ending = "_COMPLETE" if number & rndis.COMPLETE else ""
    return Decoded(name + ending, (structure(cls, data, at), *rest))


def scsi(data: Buffer, at: int, to_guest: bool | None) -> Decoded:
    """Decode a packet of the SCSI controller."""
    number = int.from_bytes(data[at : at + 4], "little")
    name = meaning(number, storvsc.Operation)
    whole = number in (storvsc.Operation.EXECUTE_SRB, storvsc.Operation.COMPLETE_IO)
    part = structure(storvsc.Srb if whole else storvsc.Header, data, at)
    end = at + (storvsc.Srb if whole else storvsc.Header).SIZE
    rest = (Part("what follows", (bytes_row("data", data, end),)),) if len(data) > end else ()
    return Decoded(name if name != "unknown" else f"operation {number}", (part, *rest))
