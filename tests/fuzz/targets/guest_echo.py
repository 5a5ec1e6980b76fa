"""Packets to the echo device, plain and monitored: commands, descriptors, GPADLs, bits in the monitor page."""

from __future__ import annotations

from struct import pack

from pyvmm.devices.echo import Echo
from pyvmm.devices.echo.protocol import MAGIC
from pyvmm.vmbus import protocol as p
from tests.fuzz.feed import Feed
from tests.support.fake_guest import FakeGuest

MONITOR_PAGE = 0x3000


def echo(data: bytes) -> None:
    """The echo device, commanded, closed and opened; at the end it still answers."""
    feed = Feed(data)
    guest, device = FakeGuest(memory_mib=4), Echo(monitored=feed.flag())
    driver = guest.open(device, ring_pages=feed.choice((2, 5)))
    lent = guest.lend(driver.offer.relid, guest.pages(2))
    while feed:
        match feed.below(8):
            case 0:
                guest.advance(seconds=feed.choice((0.001, 0.05)))
            case 1:
                for _ in range(100):  # SOURCE may go on for ever
                    driver.take_packet()
                    guest.loop.run()
            case 2:
                guest.memory.write(MONITOR_PAGE + 8, feed.take(4).ljust(4, b"\0"))
            case 3 if feed.below(4) == 0:
                guest.post(p.CloseChannel(driver.offer.relid))
                guest.loop.run()
                for message in [m for _, m in guest.inbox if m[0] == p.MessageType.RESCIND]:
                    guest.post(p.RelidReleased(p.Rescind.parse(message).relid))
                guest.loop.run()
                guest.skim()
                guest.drivers = []
                driver = guest.open(device, ring_pages=feed.choice((2, 5)))
                lent = guest.lend(driver.offer.relid, guest.pages(1))
            case _:
                numbers = [feed.choice((0, 1, 8, 64, lent, 4096, feed.number(4))) & 0xFFFFFFFF for _ in range(3)]
                payload = MAGIC + pack("<IIII", feed.below(8), *numbers)
                frame = feed.choice((300, 400, feed.number(8) & (1 << 64) - 1))
                driver.outgoing.put(
                    payload[: feed.choice((24, 24, 24, 8, 3, 0))],
                    type=feed.choice((6, 6, 6, 6, 9, 11, 7)),
                    flags=feed.below(2),
                    descriptor=pack("<QIIQ", 1 << 32, numbers[0], numbers[1], frame) if feed.flag() else b"",
                )
                guest.partition.hypercall_signal(driver.offer.connection_id)
                guest.loop.run()
                guest.skim()
        if driver.channel.broken or len(guest._frames) < 100:
            break
    guest.reset()
    guest._frames = list(range(256, 1024))
    guest.open(device).send(b"12345678")
    assert guest.take_bytes() == b"12345678"


TARGETS = {"guest_echo": echo}
