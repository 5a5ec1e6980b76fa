"""The smallest driver for the balloon: it releases what it is asked for, takes it back, and accepts memory.

Source: Linux drivers/hv/hv_balloon.c, balloon_onchannelcallback(). It has one free range of pages to give.
"""

from __future__ import annotations

from pyvmm.devices.balloon import protocol as dm
from pyvmm.images.assembler import At
from pyvmm.images.vmbus_assembler import BUFFER, VmbusAssembler
from pyvmm.vmbus.packet import Packet, PacketType
from pyvmm.vmbus.ring import HEADER_SIZE, build_packet

FREE_FRAME = 0x800
"""The first page that the guest can do without: at 8 MiB."""
BODY = BUFFER + HEADER_SIZE
_TEXT = int.from_bytes(b"mine!\0", "little")


def driver() -> bytes:
    """Return the machine code: it never ends."""
    a = VmbusAssembler()
    a.connect()
    a.open_channel()
    packets = {
        "version": dm.VersionRequest(dm.MessageType.VERSION_REQUEST, dm.VersionRequest.SIZE, 1, dm.WIN10, 1).build(),
        "capabilities": dm.CapabilitiesReport(
            dm.MessageType.CAPABILITIES, dm.CapabilitiesReport.SIZE, 2, 3, 0, dm.ALL_PAGES
        ).build(),
        "released": dm.BalloonResponse(3, False, [(FREE_FRAME, 0)]).build(),
        "taken back": dm.UnballoonResponse(dm.MessageType.UNBALLOON_RESPONSE, dm.UnballoonResponse.SIZE, 4).build(),
        "added": dm.HotAddResponse(dm.MessageType.HOT_ADD_RESPONSE, dm.HotAddResponse.SIZE, 5, 0, 1).build(),
    }
    _send(a, packets, "version")
    a.receive()
    _send(a, packets, "capabilities")
    a.label("serve")
    a.receive()
    a.move("rbx", BODY)
    a.load("rax", "rbx", 0, 2)
    for kind, label in (
        (dm.MessageType.BALLOON_REQUEST, "release"),
        (dm.MessageType.UNBALLOON_REQUEST, "take back"),
        (dm.MessageType.HOT_ADD_REQUEST, "add"),
    ):
        a.compare("rax", kind)
        a.jump(label, "e")
    a.jump("serve")  # INFO and the like need no answer
    a.label("release")
    a.load("rax", "rbx", 8, 4)  # pages
    a.shift_left("rax", dm.PAGE_COUNT_SHIFT)
    a.add("rax", FREE_FRAME)
    a.move("rdi", At("released"))
    a.store(HEADER_SIZE + dm.RANGES_AT, "rax", base="rdi")
    _send(a, packets, "released")
    a.jump("serve")
    a.label("take back")
    a.load("rax", "rbx", 8, 4)  # more requests follow
    a.compare("rax", 1)
    a.jump("serve", "e")
    _send(a, packets, "taken back")
    a.jump("serve")
    a.label("add")
    a.load("rax", "rbx", 8)  # first page, and pages << 40
    a.move("rdx", "rax")
    a.shift_right("rdx", dm.PAGE_COUNT_SHIFT)
    a.move("rdi", At("added"))
    a.store(HEADER_SIZE + 8, "rdx", 4, base="rdi")
    a.shift_left("rax", 64 - dm.PAGE_COUNT_SHIFT)
    a.shift_right("rax", 64 - dm.PAGE_COUNT_SHIFT - 12)
    a.move("rcx", _TEXT)
    a.store(0, "rcx", base="rax")  # it is memory: use it
    _send(a, packets, "added")
    a.jump("serve")
    for name, payload in packets.items():
        a.data(name, _packet(payload))
    a.vmbus_data()
    return a.build()


def _packet(payload: bytes) -> bytes:
    return build_packet(Packet(PacketType.IN_BAND, 0, 0, payload))


def _send(a: VmbusAssembler, packets: dict[str, bytes], name: str) -> None:
    a.move("rsi", At(name))
    a.move("rcx", len(_packet(packets[name])))
    a.send()
