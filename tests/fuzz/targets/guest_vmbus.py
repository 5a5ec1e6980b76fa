"""Messages, GPADL streams and ring contents, by a guest that knows the protocol and does not keep to it."""

from __future__ import annotations

from struct import pack
from uuid import UUID

from pyvmm.errors import GuestError
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.offer import Offer
from tests.fuzz.feed import Feed
from tests.support.fake_guest import FakeGuest, gpadl_messages
from tests.support.fake_ring import FEATURES, MASK, PENDING, READ, WRITE
from tests.support.queues_device import Queues
from tests.support.recorder_device import BALLOON, Recorder

CONNECTIONS = (1, 4, 5, 0, 2, 16, 17)
MIB = 4
FRAMES = MIB << 8


def _number(feed: Feed) -> int:
    """A relid, GPADL or id: mostly one that may be in use."""
    return feed.below(4) if feed.below(8) else feed.word(4)


def _frame(feed: Feed) -> int:
    return feed.below(FRAMES) if feed.below(8) else feed.choice((FRAMES - 1, FRAMES, feed.number(8), (1 << 52) - 1))


def _words(feed: Feed, most: int) -> bytes:
    """The words of a range and its frames; sizes that wrap, offsets that go round."""
    words = [feed.choice((0x1000, 0x4000, 0x5000, 0, 1, 0xFFFFFFFF, feed.number(4)))]
    words[0] |= feed.choice((0, 0, 0, 1, 0xFFF, 0x1000, 0xFFFFFFFF, feed.number(4))) << 32
    words += [_frame(feed) for _ in range(feed.below(most))]
    return pack(f"<{len(words)}Q", *words)


def _message(feed: Feed) -> bytes:
    match feed.below(12):
        case 0:
            return feed.take(feed.below(250))
        case 1:
            version = feed.choice((*map(int, p.Version), 0x10000, 0, 0xFFFFFFFF))
            return p.InitiateContact(version, _number(feed), feed.choice((2, 0, 1 << 63)), 0, 0).build()
        case 2:
            return p.RequestOffers().build()
        case 3 | 4:
            return p.OpenChannel(_number(feed), _number(feed), _number(feed), feed.choice((0, 0, 1, feed.number(4))),
                feed.choice((2, 1, 3, 0, feed.number(4))), feed.take(8),
            ).build()  # fmt: skip
        case 5:
            return p.CloseChannel(_number(feed)).build()
        case 6 | 7:
            words = _words(feed, 26)
            size = feed.choice((len(words), len(words), feed.number(2)))
            count = feed.choice((1, 1, 1, 2, 0, 0xFFFF))
            return p.GpadlHeader(_number(feed), _number(feed), size, count).build() + words
        case 8:
            return p.GpadlBody(feed.below(3), _number(feed)).build() + _words(feed, 27)
        case 9:
            return p.GpadlTeardown(_number(feed), _number(feed)).build()
        case 10:
            return p.RelidReleased(_number(feed)).build()
        case _:
            kind = feed.choice((p.ModifyChannel, p.Unload, p.TlConnectRequest))
            if kind is p.ModifyChannel:
                return p.ModifyChannel(_number(feed), _number(feed)).build()
            if kind is p.Unload:
                return p.Unload().build()
            return p.TlConnectRequest(UUID(bytes=feed.take(16)), UUID(bytes=feed.take(16))).build()


def _guest() -> tuple[FakeGuest, Recorder, Recorder]:
    guest = FakeGuest(vp_count=2, memory_mib=MIB)
    first = Recorder()
    second = Recorder(Offer("second", type=BALLOON, instance=UUID(int=2)))
    guest.bus.add(first)
    guest.bus.add(second)
    return guest, first, second


def messages(data: bytes) -> None:
    """Any messages in any order; the host takes a device away and brings it back. At the end a new guest boots."""
    feed = Feed(data)
    guest, first, _ = _guest()
    if feed.flag():
        guest.connect()
    there = True
    while feed:
        match feed.below(12):
            case 0:
                guest.partition.slots_busy = not guest.partition.slots_busy
                if not guest.partition.slots_busy:
                    guest.partition.free_slots()
            case 1:
                if there:
                    guest.bus.remove(first)
                else:
                    guest.bus.add(first)
                there = not there
            case 2:
                guest.partition.hypercall_signal(16 + feed.below(4))
            case 3:
                guest.bus.info()
                guest.loop.advance(1.0)
            case _:
                message = _message(feed)[:240]
                guest.partition.hypercall_post(
                    feed.choice(CONNECTIONS) if feed.below(4) == 0 else guest.message_connection or 4, message
                )
                if int.from_bytes(message[:4], "little") == 14:
                    guest.message_connection = 5 if int.from_bytes(message[8:12], "little") >= 0x50000 else 1
                if feed.flag():
                    guest.loop.run()
                guest.inbox.clear()
    guest.loop.run()
    guest.partition.slots_busy = False
    guest.partition.free_slots()
    guest.loop.run()
    guest.inbox.clear()
    guest.connect()


def gpadls(data: bytes) -> None:
    """Lists that come in pieces, interleaved, too long, too short; then a channel opened on whatever was taken."""
    feed = Feed(data)
    guest, first, _ = _guest()
    guest.connect()
    relid = guest.find_offer(first).relid
    while feed:
        handle = feed.below(3) + 1
        count = feed.choice((2, 4, 30, 70))
        stream = gpadl_messages(relid, handle, [_frame(feed) << 12 & (1 << 64) - 1 for _ in range(count)])
        for message in stream:
            how = feed.below(8)
            if how == 0:
                continue  # left out
            if how == 1:
                message = message[: 8 + feed.below(232)]
            if how == 2:
                changed = bytearray(message)
                changed[feed.below(len(changed))] = feed.u8()
                message = bytes(changed)
            guest.partition.hypercall_post(guest.message_connection, message)
            guest.loop.run()
        split = feed.below(count + 1)
        opening = p.OpenChannel(relid, 1, handle, 0, split, b"")
        guest.partition.hypercall_post(guest.message_connection, opening.build())
        guest.loop.run()
        if feed.flag():
            guest.partition.hypercall_post(guest.message_connection, p.CloseChannel(relid).build())
        if feed.flag():
            guest.partition.hypercall_post(guest.message_connection, p.GpadlTeardown(relid, handle).build())
        guest.loop.run()
        guest.inbox.clear()


def rings(data: bytes) -> None:
    """Ring contents and indices, changed at any moment, under a device that echoes and waits for room."""
    feed = Feed(data)
    guest, device, _ = _guest()
    guest.connect()
    driver = guest.open(device, ring_pages=feed.choice((2, 3, 5)), receive_pages=feed.choice((2, 3, 5)))
    while feed:
        ring = driver.outgoing if feed.flag() else driver.incoming
        match feed.below(9):
            case 0:
                word = feed.choice((WRITE, READ, MASK, PENDING, FEATURES))
                ring.set(
                    word, feed.choice((0, 8, ring.size - 8, ring.size, feed.number(4), feed.below(ring.size) & ~7))
                )
            case 1:
                ring.poke(feed.below(ring.size) & ~7, feed.take(feed.below(9) * 8))
            case 2 | 3:
                payload = feed.choice((b"echo", b"bad", b"")) + feed.take(feed.below(80))
                driver.outgoing.put(
                    payload, type=feed.choice((6, 6, 6, 11, 9, 0xFFFF)), flags=feed.choice((0, 1, 0xFFFF))
                )
            case 4:
                guest.partition.hypercall_signal(driver.offer.connection_id)
            case 5:
                try:
                    device.channel.send(bytes(feed.below(device.channel.max_payload + 1)))
                except GuestError:
                    pass  # the queue is full
            case 6:
                size = feed.below(device.channel.max_payload + 1)
                device.channel.when_room(size, lambda: None)
            case 7:
                guest.loop.advance(feed.choice((0.0, 0.01, 1.0)))
            case _:
                guest.bus.info()
                guest.loop.run()
    guest.loop.advance(1.0)
    guest.bus.info()


def _direct(feed: Feed) -> bytes:
    """A descriptor of GPA_DIRECT, or something like it, in whole words."""
    count = feed.choice((1, 1, 2, 0, feed.number(4)))
    words = [count << 32]
    for _ in range(min(count, 3)):
        length = feed.choice((8, 8, 1, 0, 0x1000, 0x1001, feed.number(4)))
        words.append(length | feed.choice((0, 0, 0xFFC, 0x1000, feed.number(4))) << 32)
        words += [_frame(feed) for _ in range(feed.choice((1, 1, 2, 0)))]
    return pack(f"<{len(words)}Q", *(word & (1 << 64) - 1 for word in words))


def queues(data: bytes) -> None:
    """A device with sub-channels and completions of its own, which comes and goes as its channels do, and whole
    packets with descriptors. At the end a new guest opens it."""
    feed = Feed(data)
    guest, device = FakeGuest(memory_mib=MIB), Queues()
    guest.open(device, ring_pages=2)
    while feed:
        driver = guest.drivers[feed.below(len(guest.drivers))] if guest.drivers else None
        match feed.below(10):
            case 0 if driver is not None:
                guest.post(p.CloseChannel(driver.offer.relid))
            case 1:
                guest.post(p.RelidReleased(feed.below(6)))
            case 2 if not device.leaves:
                if device in guest.bus.devices():
                    guest.bus.remove(device)
                else:
                    guest.bus.add(device)
            case 3:
                guest.loop.advance(feed.choice((0.0, 0.01, 10.0)))
            case 4:
                offered = [row["relid"] for row in guest.bus.info() if row["state"] == "offered"]
                if offered and len(guest._frames) > 10:
                    relid = feed.choice(offered)
                    guest.drivers = [each for each in guest.drivers if each.offer.relid != relid]
                    number = guest.bus.server.channels[relid].offer.sub_channel
                    guest.skim().open(device, ring_pages=2, sub_channel=number)
            case _ if driver is not None:
                payload = pack("<II", feed.below(6), feed.choice((1, 2, 3, 0xE1E10, 65, feed.number(4))))
                driver.outgoing.put(
                    payload[: feed.choice((8, 8, 8, 4, 0))],
                    type=feed.choice((6, 6, 6, 9, 9, 11, 7, 0xFFFF)),
                    flags=feed.choice((1, 1, 0, 0xFFFF)),
                    transaction_id=feed.below(4),
                    descriptor=_direct(feed) if feed.flag() else b"",
                )
                guest.partition.hypercall_signal(driver.offer.connection_id)
        guest.loop.run()
        guest.skim()
    guest.loop.advance(10.0)
    guest.reset()
    guest._frames = list(range(256, FRAMES))
    if device not in guest.bus.devices():
        guest.bus.add(device)
    guest.open(device, ring_pages=2)


TARGETS = {
    "guest_vmbus_messages": messages,
    "guest_vmbus_gpadls": gpadls,
    "guest_vmbus_rings": rings,
    "guest_vmbus_queues": queues,
}
