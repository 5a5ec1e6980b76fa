"""Packets to the network card: negotiation, buffers, RNDIS messages in sections and pieces, link and sub-channels."""

from __future__ import annotations

from struct import pack

from pyvmm.devices.netvsc import Card, Netvsc, nvsp
from pyvmm.devices.netvsc.card import Oid
from pyvmm.devices.netvsc.sender import QUEUE_LIMIT
from pyvmm.net.link import FRAME_LIMIT
from tests.fuzz.feed import Feed
from tests.support.fake_guest import FakeDriver, FakeGuest
from tests.support.net_guest import MAC, FakeLink, NetGuest, frame, info, packet

OIDS = list(Oid)
TYPES = [*nvsp.Type, 128, 131, 135]
MOST_FRAMES = 100


def _frame(feed: Feed) -> bytes:
    """A frame, of IP more often than not."""
    kind = feed.choice((0x0800, 0x86DD, 0x88B5, 0x8100, feed.number(2)))
    data = feed.take(feed.choice((0, 20, 60, 200, feed.below(1500))))
    if kind == 0x0800 and feed.below(4):
        data = b"\x45" + data[1:]
    return frame(data, to=feed.choice((MAC, b"\xff" * 6, feed.take(6))), kind=kind)[: feed.choice((9999, 9999, 13))]


def _information(feed: Feed) -> bytes:
    """Per-packet information, with something wrong in it now and then."""
    found = b""
    for _ in range(feed.below(4)):
        value = feed.choice(
            (5 | 34 << 16, 6 | 54 << 16, 1460 | 34 << 20 | 1 << 30, 1440 | 54 << 20 | 3 << 30, feed.number(4))
        )
        found += info(feed.choice((0, 2, 6, 8, feed.number(4))), value)
    if found and feed.below(4) == 0:
        found += pack("<III", feed.choice((0, 4, 12, 16, feed.number(4))), feed.below(9), feed.choice((0, 12, 16)))
    return found


def _rndis(feed: Feed) -> bytes:
    """Packets one behind the other, some of them cut or with numbers changed."""
    data = b""
    for _ in range(1 + feed.below(4)):
        one = bytearray(packet(_frame(feed), _information(feed), feed.choice((0, 0, 4))))
        for _ in range(feed.choice((0, 0, 0, 1, 2))):
            at = 4 * feed.below(11)
            one[at : at + 4] = (feed.word(4)).to_bytes(4, "little")
        data += one
    return data[: feed.choice((1 << 20, 1 << 20, 1 << 20, feed.below(len(data) + 1)))]


def _control(feed: Feed) -> bytes:
    kind = feed.choice((2, 3, 4, 4, 5, 5, 6, 8, feed.number(4)))
    value = feed.take(feed.choice((0, 4, 28, 40, feed.below(700))))
    size = feed.choice((len(value), len(value), feed.word(4)))
    offset = feed.choice((20, 20, 20, feed.word(4)))
    oid = feed.choice(OIDS) if feed.below(8) else feed.number(4)
    length = feed.choice((28 + len(value), 28 + len(value), feed.word(4)))
    return pack("<7I", kind, length, feed.number(4), oid, size, offset, 0) + value


def card(data: bytes) -> None:
    """A driver that means well or badly, on one or two channels; a link that comes, is full, and goes."""
    feed = Feed(data)
    guest = FakeGuest(memory_mib=4, vp_count=2)
    link = FakeLink()
    link.vnet = feed.flag()
    device = Netvsc(link, Card(MAC, "card", queues=1 + feed.below(2)))
    net = NetGuest(guest, link, device=device, receive_pages=64, start=bool(feed.below(4)))
    drivers: list[FakeDriver] = [net.driver]
    while feed:
        driver = feed.choice(drivers)
        match feed.below(16):
            case 0:
                guest.advance(seconds=feed.choice((0.05, 2.5, 6.0)))
            case 1:
                link.space = feed.choice((None, 0, 3))
                link._room()
            case 2:
                device.set_plugged(feed.flag())
            case 3:
                link.feed(*[_frame(feed)] * feed.below(MOST_FRAMES))
                link.coming.clear()
            case 4 | 5:
                for taken in net.batches(driver):
                    if feed.below(8):
                        status = feed.choice((1, 1, 2, 0))
                        payload = pack("<II", 108, status)
                        driver.outgoing.put(payload, type=11, transaction_id=taken.transaction_id)
                driver.signal()
                guest.loop.run()
            case 6 if len(drivers) == 1 and feed.flag():
                driver.send(nvsp.Subchannels(1, feed.below(3)).message(), flags=1, transaction_id=7)
                guest.skim()
                if any(each.sub_channel for each in guest.offers) and feed.flag():
                    drivers.append(guest.open(device, ring_pages=9, sub_channel=1, target_vp=feed.below(2)))
            case 7:
                direct = net.store(_control(feed), 1)
                message = pack("<IIII", 107, 1, nvsp.NO_SECTION, 0).ljust(nvsp.SIZE, b"\0")
                _put(driver, message, type=9, descriptor=direct, transaction_id=feed.below(4))
            case 8:
                kind = feed.choice(TYPES)
                body = feed.choice(
                    (feed.take(36), pack("<II", feed.choice((0x60001, 0x50000, 2, feed.number(4))), 0))
                )
                gpadl = getattr(net, "receive_gpadl", 0)
                if feed.flag():
                    body = pack("<IH", gpadl, 0xCAFE)
                _put(driver, (pack("<I", kind) + body)[: feed.choice((40, 40, 7))], transaction_id=feed.below(4))
            case 9:
                section = feed.choice((0, 1, 10, feed.number(4)))
                message = pack("<IIII", 107, feed.below(3), section, feed.choice((60, 6144, feed.word(4))))
                _put(driver, message.ljust(nvsp.SIZE, b"\0"), transaction_id=feed.below(4))
            case 10:
                kind = feed.choice((6, 7, 9, 11, feed.number(2)))
                _put(driver, feed.take(feed.below(60)), type=kind, descriptor=feed.take(8 * feed.below(5)))
            case 11 if feed.below(8) == 0:
                link.die()
            case _:
                rndis = _rndis(feed)
                if rndis:
                    pieces = 1 + feed.below(min(3, len(rndis)))
                    message = pack("<IIII", 107, 0, nvsp.NO_SECTION, 0).ljust(nvsp.SIZE, b"\0")
                    _put(driver, message, type=9, descriptor=net.store(rndis, pieces), transaction_id=feed.below(9))
        assert device.sender.waiting <= QUEUE_LIMIT
        assert all(0 < len(each) <= FRAME_LIMIT + 10 for each in link.sent)
        link.sent.clear()
        if any(each.broken for each in device.channels.values()):
            return
    device.info("net0")


def _put(driver: FakeDriver, payload: bytes, **how: int | bytes) -> None:
    """Write a packet that wants a completion, if there is room; let the host work."""
    if driver.outgoing.put(payload, flags=1, **how):  # type: ignore[arg-type]
        driver.signal()
    driver.guest.loop.run()


TARGETS = {"guest_netvsc": card}
