"""Packets to the SCSI controller: handshakes, commands with memory attached, sub-channels, disks that come and go."""

from __future__ import annotations

import os
from struct import pack

from pyvmm.devices.storvsc.controller import Controller
from pyvmm.devices.storvsc.disk import Disk
from pyvmm.devices.storvsc.errors import ErrorReports
from pyvmm.devices.storvsc.scsi import commands
from pyvmm.disks.raw import RawImage
from tests.fuzz.feed import Feed
from tests.support.fake_guest import FakeDriver, FakeGuest
from tests.support.scsi_guest import GPA_DIRECT, ScsiGuest, page_list, srb, vstor

SECTORS = 512
OPCODES = sorted(commands.COMMANDS)


def _disk(number: int, read_only: bool) -> Disk:
    fd = os.memfd_create("disk")
    os.ftruncate(fd, SECTORS * 512)
    return Disk(f"disk{number}", RawImage(fd, "disk", read_only=read_only), number, "serial", werror="stop")


def _cdb(feed: Feed) -> bytes:
    """A command, whose numbers are near those that mean something."""
    opcode = feed.choice(OPCODES) if feed.below(8) else feed.u8()
    block = feed.choice((0, 1, SECTORS - 1, SECTORS, feed.word()))
    blocks = feed.choice((0, 1, 8, SECTORS, feed.word(4)))
    long = opcode >= 0x80 and opcode not in (0xA8, 0xAA)
    form, mask = (">BBQIBB", (1 << 64) - 1) if long else (">BBIBHB", 0xFFFFFFFF)
    if long:
        return pack(form, opcode, feed.u8(), block & mask, blocks & 0xFFFFFFFF, 0, 0)
    return pack(form, opcode, feed.u8(), block & mask, feed.u8(), blocks & 0xFFFF, 0).ljust(16, b"\0")


def _pages(feed: Feed, guest: FakeGuest) -> tuple[bytes, int]:
    """A descriptor for the guest's memory or for none, and its length."""
    length = feed.choice((24, 512, 4096, 8192, feed.word(4)))
    offset = feed.choice((0, 0, 512, 4095, feed.word(4)))
    count = min(-(-(offset + length) // 4096), 40) if feed.below(4) else feed.below(40)
    pages = [(feed.choice((1 << 20, 2 << 20, feed.word(5))) & ~4095) + at * 4096 for at in range(count)]
    return page_list(pages, length, offset) if feed.below(16) else feed.take(8 * feed.below(8)), length


def _settle(guest: FakeGuest, controller: Controller) -> None:
    controller.workers.drain()
    guest.loop.run()


def controller(data: bytes) -> None:
    """A driver that means well or badly, on one or two channels. At the end nothing is outstanding."""
    feed = Feed(data)
    guest = FakeGuest(memory_mib=4, vp_count=2)
    made = Controller(guest.time, ErrorReports(lambda event: None, lambda: None), sub_channels=feed.below(2))
    made.disks.add(_disk(0, feed.flag()))
    scsi = ScsiGuest(guest, made, begin=bool(feed.below(4)))
    drivers: list[FakeDriver] = [scsi.driver]
    number = 0
    while feed:
        number += 1
        driver = feed.choice(drivers)
        match feed.below(12):
            case 0:
                packet = vstor(feed.below(16), value=feed.choice((1, 0x0602, 0x0501, feed.number(2))))
                driver.send(packet[: feed.choice((64, 64, 48, 40))], flags=1, transaction_id=number)
            case 1:
                driver.send(
                    feed.take(feed.below(100)),
                    flags=feed.below(2),
                    transaction_id=feed.word(),
                    type=feed.choice((6, 9)),
                )
            case 2:
                guest.advance(feed.choice((0.1, 1.0, 6.0)))
            case 3:
                for disk in list(made.disks.all.values()):
                    if not made.disks.is_leaving(disk) and feed.flag():
                        made.disks.remove(disk, lambda: None)
            case 4 if len(made.disks.all) < 3:
                made.disks.add(_disk(made.disks.free_lun(), feed.flag()))
            case 5:
                made.resumed()
            case 6 if made.primary is not None and feed.below(4) == 0:
                _settle(guest, made)
                guest.skim().unload()
                scsi = ScsiGuest(guest, made, begin=feed.flag())
                drivers = [scsi.driver]
            case _:
                descriptor, length = _pages(feed, guest)
                where = {"lun": feed.choice((0, 0, 1, feed.u8())), "target": 0 if feed.below(8) else feed.u8()}
                packet = srb(_cdb(feed), length=length & 0xFFFFFFFF, direction=feed.below(4), **where)
                if feed.below(6) == 0:
                    driver.send(packet, flags=1, transaction_id=number)
                else:
                    driver.send(packet, flags=1, transaction_id=number, type=GPA_DIRECT, descriptor=descriptor)
        _settle(guest, made)
        for each in drivers:
            while each.take_packet() is not None:
                pass
    _settle(guest, made)
    assert not made.workers.outstanding
    assert all(not disk.outstanding for disk in made.disks.all.values())
    guest.bus.reset()
    made.close()
    assert not made.disks.all


TARGETS = {"guest_storvsc": controller}
