"""The memory of the tiny guest: where everything lies, and the messages and packets that it will send.

All offsets count from DATA, which the program keeps in rbp. The messages are built from the declarations of
pyvmm.vmbus.protocol and pyvmm.devices.balloon.protocol; the guest fills in what it learns: the channel's relid, and
the pages that it gives away.
"""

from __future__ import annotations

from struct import pack
from typing import Final
from uuid import UUID

from pyvmm.devices.balloon import protocol as dm
from pyvmm.hyperv.tlfs import PostMessageInput
from pyvmm.memory import PAGE_SIZE
from pyvmm.vmbus import protocol as vmbus
from pyvmm.vmbus.packet import Packet, PacketType
from pyvmm.vmbus.ring import TRAILER_SIZE, build_packet
from pyvmm.wire import Wire, layout

CODE: Final = 0x1000000
DATA: Final = 0x1100000
BALLOON_TYPE: Final = UUID("525074dc-8985-46e2-8057-a307dc18a502")
GPADL: Final = 0x1E
VECTOR: Final = 0x40
SPARE_FRAME: Final = 0x2000
"""The first frame of the memory that the guest can do without: from 32 MiB on."""

# Pages, as offsets from DATA
HYPERCALL_PAGE, SIMP, SIEFP, IDT, STACK, RINGS = (n * PAGE_SIZE for n in (1, 2, 3, 4, 6, 8))
RING_PAGES: Final = 3  # each: a header and two pages of data, which are never filled: the guest need not wrap
OUT_RING, IN_RING = RINGS, RINGS + RING_PAGES * PAGE_SIZE
SLOT: Final = SIMP + vmbus.SINT * 256
"""The slot of the message page in which the VMBus's messages come."""

# In the first page
IDT_POINTER: Final = 0
_FIRST, _STEP = 0x100, 0x100


def place(cls: type[Wire], name: str) -> int:
    """Return the offset of a field in its structure, by its declaration."""
    return next(field.offset for field in layout(cls) if field.name == name)


def _posted(message: vmbus.Message) -> bytes:
    body = message.build()
    return PostMessageInput(vmbus.CONTACT_CONNECTION_OLD, 0, vmbus.SYNIC_MESSAGE_TYPE, len(body)).build() + body


def _packet(payload: bytes) -> bytes:
    return build_packet(Packet(PacketType.IN_BAND, 0, 0, payload)) + bytes(TRAILER_SIZE)


def _gpadl() -> vmbus.GpadlHeader:
    frames = [(DATA + RINGS) // PAGE_SIZE + n for n in range(2 * RING_PAGES)]
    header = vmbus.GpadlHeader(relid=0, gpadl=GPADL, range_bytes=8 + 8 * len(frames), range_count=1)
    header.words = (len(frames) * PAGE_SIZE, *frames)
    return header


MESSAGES: Final = {
    "contact": _posted(vmbus.InitiateContact(vmbus.Version.WIN10, 0, DATA + 15 * PAGE_SIZE, 0, 0)),
    "offers": _posted(vmbus.RequestOffers()),
    "gpadl": _posted(_gpadl()),
    "open": _posted(vmbus.OpenChannel(0, 1, GPADL, 0, RING_PAGES, bytes(120))),
    "close": _posted(vmbus.CloseChannel(0)),
    "teardown": _posted(vmbus.GpadlTeardown(0, GPADL)),
    "unload": _posted(vmbus.Unload()),
}
PACKETS: Final = {
    "version": _packet(dm.VersionRequest(dm.MessageType.VERSION_REQUEST, 16, 1, dm.WIN10, 1).build()),
    "capabilities": _packet(dm.CapabilitiesReport(dm.MessageType.CAPABILITIES, 32, 2, 1, 0, dm.ALL_PAGES).build()),
    "released": _packet(dm.BalloonResponse(3, False, [(SPARE_FRAME, 0)]).build()),
    "taken back": _packet(dm.UnballoonResponse(dm.MessageType.UNBALLOON_RESPONSE, 8, 4).build()),
}
AT: Final = {name: _FIRST + n * _STEP for n, name in enumerate([*MESSAGES, *PACKETS])}
"""Offsets of the messages and packets."""


def contents(handler: int) -> bytes:
    """Return the first pages' contents; `handler` is the address of the interrupt handler."""
    made = bytearray(STACK)
    made[IDT_POINTER : IDT_POINTER + 10] = pack("<HQ", 256 * 16 - 1, DATA + IDT)
    for name, data in (MESSAGES | PACKETS).items():
        assert len(data) <= _STEP, name
        made[AT[name] : AT[name] + len(data)] = data
    gate = pack("<HHBBHII", handler & 0xFFFF, 0x10, 0, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0)
    made[IDT + VECTOR * 16 : IDT + VECTOR * 16 + 16] = gate
    return bytes(made)
