"""Packets to the integration components and the balloon, and the agent's lines: the guest's answers, and worse."""

from __future__ import annotations

from base64 import b64encode
from struct import pack

from pyvmm.devices.balloon import BalloonDevice
from pyvmm.devices.balloon.protocol import MessageType
from pyvmm.devices.ic.heartbeat import Heartbeat
from pyvmm.devices.ic.protocol import IcHeader
from pyvmm.devices.ic.shutdown import Shutdown, ShutdownKind
from pyvmm.devices.ic.timesync import TimeSync
from pyvmm.errors import HostError
from pyvmm.machine.agent import GuestAgent
from pyvmm.machine.autosize import Limits
from pyvmm.machine.hotplug import HotAddWindow
from pyvmm.machine.pressure import Pressure
from pyvmm.memory import GuestMemory, HostMemory, Region
from tests.fuzz.feed import Feed
from tests.support.fake_clock import FakeLoop
from tests.support.fake_guest import FakeDriver, FakeGuest

MIB = 1 << 20
VERSIONS = ((3, 0), (1, 0), (4, 0), (3, 2), (0, 0), (0xFFFF, 0xFFFF))


def _ic_packet(feed: Feed, last: bytes) -> bytes:
    """A response to the request whose header is `last`, with something wrong in it more often than not."""
    if feed.below(8) == 0:
        return feed.take(feed.below(100))
    head = IcHeader.parse(last) if len(last) >= IcHeader.SIZE else IcHeader(1, 0, 3, 0, 0, 0, 0, 0, 0, 1, 4, 0)
    head.flags = feed.choice((5, 5, 5, 4, 3, 0xFF))
    head.status = feed.choice((0, 0, 0x80004005, feed.number(4)))
    if feed.below(8) == 0:
        head.transaction = feed.u8()
    if feed.below(8) == 0:
        head.type = feed.number(2)
    if head.type == 0 and feed.below(4):
        pairs = [feed.choice(VERSIONS[:4] if feed.flag() else VERSIONS) for _ in range(2)]
        counts = feed.choice(((1, 1), (1, 1), (1, 1), (0, 0), (0xFFFF, 0xFFFF), (2, 1)))
        body = pack("<HHI", *counts, 0) + b"".join(pack("<HH", *pair) for pair in pairs)
    else:
        body = pack("<Q", feed.word()) + feed.take(feed.below(60))
    head.size = feed.choice((len(body), len(body), len(body), 0, 0xFFFF, feed.number(2)))
    return head.build() + body


def _take(driver: FakeDriver) -> bytes:
    """Read all that the host sent; the last packet's payload."""
    last = b""
    while (packet := driver.take_packet()) is not None:
        last = packet.payload
    return last


def components(data: bytes) -> None:
    """Heartbeat, shutdown and time sync, opened, answered and closed, while the clock goes on."""
    feed = Feed(data)
    guest = FakeGuest(memory_mib=4)
    shutdown, timesync = Shutdown(), TimeSync(clock_ns=lambda: 1_700_000_000 * 10**9, reference_time=lambda: 5)
    device = feed.choice((Heartbeat(), shutdown, timesync))
    driver = guest.open(device, ring_pages=feed.choice((2, 3)))
    last = b""
    while feed:
        match feed.below(8):
            case 0:
                guest.advance(seconds=feed.choice((0.1, 2.0, 20.0)))
            case 1:
                if device is shutdown:
                    shutdown.request(feed.choice((ShutdownKind.POWER_OFF, ShutdownKind.RESTART)))
                elif device is timesync:
                    timesync.sync()
            case 2:
                if feed.below(8) == 0:
                    guest.close()
                    driver, last = guest.open(device, ring_pages=2), b""
            case 3:
                last = _take(driver) or last
            case _:
                last = _take(driver) or last
                if driver.outgoing.put(_ic_packet(feed, last)):
                    driver.signal()
                guest.loop.run()
        if driver.channel.broken:
            return


WINDOW = 4 << 30
_backing = HostMemory(3 * 128 * MIB, huge=False)  # address space, hardly touched


def _window(memory: GuestMemory, fails: int) -> HotAddWindow:
    """The real thing without KVM, which refuses new memory every `fails`th time; 0: never."""
    times = top = 0

    def map(slot: int, region: Region) -> None:
        nonlocal times, top
        if region.end > top:  # else a slot is only cut anew, which KVM has no reason to refuse
            times += 1
            if fails and times % fails == 0:
                raise HostError("no memory")
            top = region.end

    return HotAddWindow(memory, _backing, WINDOW, 200 * MIB, slots=4, map=map, unmap=lambda slot: None)


def _balloon_message(feed: Feed) -> bytes:
    kind = feed.choice((1, 3, 5, 7, 7, 7, 9, 11, 11, feed.number(2)))
    if feed.below(8) == 0:
        return feed.take(feed.below(100))
    trans = feed.number(2)
    match kind:
        case MessageType.VERSION_REQUEST:
            body = pack("<II", feed.choice((0x20000, 0x20000, 0x10000, 3, feed.number(4))), feed.below(2))
        case MessageType.CAPABILITIES:
            body = pack("<QQQ", feed.choice((3, 3, 1, 0, 0x3F, 0x1F, feed.number(8))), feed.word(), feed.word())
        case MessageType.STATUS_REPORT:
            available, committed = (feed.choice((feed.below(9000), feed.word())) for _ in range(2))
            body = pack("<QQQQII", available, committed, 0, 0, 0, 0)
        case MessageType.BALLOON_RESPONSE:
            ranges = [
                feed.choice((feed.below(1024), (WINDOW >> 12) + feed.below(50_000), feed.number(5)))
                | feed.choice((1, feed.below(600), feed.number(3))) << 40
                for _ in range(feed.below(12))
            ]
            if feed.below(8) == 0:
                ranges = [at | 1 << 40 for at in range(feed.below(8), 1024, 2)]  # as many as a message holds
            count = feed.choice((len(ranges), len(ranges), len(ranges), feed.number(4) >> 1))
            body = pack("<II", 0, (count << 1 | feed.below(4) // 3) & 0xFFFFFFFF) + pack(f"<{len(ranges)}Q", *ranges)
        case MessageType.HOT_ADD_RESPONSE:
            body = pack("<II", feed.choice((0, 1, 128 << 8, 64 << 8, feed.number(4))), feed.below(3))
        case _:
            body = feed.take(feed.below(20))
    size = feed.choice((8 + len(body), 8 + len(body), 8 + len(body), feed.number(2)))
    return pack("<HHI", kind, size, trans) + body


def balloon(data: bytes) -> None:
    """hv-balloon over real rings, with targets by hand and by automatic sizing, hot-add and restarts."""
    feed = Feed(data)
    guest = FakeGuest(memory_mib=4)
    granule, fails, times = feed.choice((4096, 4096, 2 * MIB)), feed.choice((0, 0, 3)), 0

    def discard(gpa: int, size: int) -> None:
        nonlocal times
        times += 1
        assert (gpa >= 0 and gpa + size <= 4 * MIB) or gpa >= WINDOW, f"discards {size} at {gpa:#x}"
        assert gpa % granule == size % granule == 0
        if fails and times % fails == 0:
            raise HostError("not now")

    window = _window(guest.memory, feed.choice((0, 0, 3))) if feed.flag() else None
    ram = [(0, 4 * MIB)]
    device = BalloonDevice(ram, discard, clock=guest.loop.clock, window=window, granule=granule)
    limits = Limits(1 * MIB, 204 * MIB) if feed.flag() else None
    events: list[tuple[str, object]] = []
    pressure = Pressure(device, limits, lambda *event: events.append(event), clock=guest.loop.clock)
    driver = guest.open(device, ring_pages=5, receive_pages=feed.choice((2, 3, 5)))
    if feed.below(4):
        for message in (pack("<HHIII", 1, 16, 1, 0x20000, 1), pack("<HHIQQQ", 3, 32, 2, 0x1F, 0, 0)):
            driver.send(message)
    while feed:
        match feed.below(8):
            case 0:
                device.set_target(max(4096, feed.choice((2 * MIB, 4 * MIB, 60 * MIB, 204 * MIB, feed.number(4)))))
            case 1:
                guest.advance(seconds=feed.choice((0.5, 2.0, 40.0)))
            case 2:
                _take(driver)
            case 3:
                match feed.below(8):
                    case 0:
                        guest.close()
                        driver = guest.open(device, ring_pages=2)
                    case 1:
                        guest.reset()
                        pressure.reset()
                        driver = guest.open(device)
                    case _:
                        device.info()
                        pressure.info(10, None)
                        pressure.describe()
            case _:
                if driver.outgoing.put(_balloon_message(feed)):
                    driver.signal()
                guest.loop.run()
                if feed.flag():
                    _take(driver)
    ledger = device.machine.ledger
    assert 0 <= ledger.current_pages <= ledger.actual_pages <= ledger.maximum_pages


def agent(data: bytes) -> None:
    """The second serial port: lines of the agent's protocol about commands that run, ended, or never were."""
    feed = Feed(data)
    loop = FakeLoop()
    got: list[object] = []
    agent = GuestAgent(lambda data: len(data), loop)
    cancels = []
    while feed:
        number = str(feed.below(6)).encode() if feed.below(8) else feed.take(feed.below(12))
        word = feed.choice((b"ready", b"out", b"err", b"exit", b"error", b"kill", feed.take(feed.below(6))))
        rest = feed.choice((b64encode(feed.take(feed.below(30))), b"0", b"255", b"256", feed.take(feed.below(20))))
        match feed.below(8):
            case 0:
                seconds = feed.choice((0, 1, 5))
                cancels.append(agent.execute("true", lambda *o: got.append(o), got.append, seconds=seconds))
            case 1:
                if cancels:
                    cancels.pop()()
            case 2:
                loop.advance(feed.choice((0.1, 3.0, 10.0)))
            case 3:
                agent.reset() if feed.below(8) == 0 else agent.received(b"ready 2 6.12\n")
            case _:
                line = word + b" " + number + b" " + rest + feed.choice((b"\n", b"\n", b"\r\n", b""))
                agent.received(line)
        del got[:]
    agent.received(b"x" * 200_000)


TARGETS = {
    "guest_ic": components,
    "guest_balloon": balloon,
    "guest_agent": agent,
}
