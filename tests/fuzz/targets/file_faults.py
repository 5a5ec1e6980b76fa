"""Fault rules: as text, as a TOML file, and at work on a bus with a guest, which they must not let harm the host."""

from __future__ import annotations

from contextlib import suppress

from pyvmm.errors import ConfigError, GuestError, HostError
from pyvmm.faults import FaultSet
from pyvmm.faults.complete import complete
from pyvmm.faults.library import LIBRARY
from pyvmm.faults.parse import load_rules, parse_rules
from pyvmm.faults.points import POINTS
from pyvmm.vmbus import protocol as p
from tests.fuzz.feed import Feed, as_file
from tests.support.fake_guest import FakeGuest, gpadl_messages
from tests.support.fake_ring import GuestRing
from tests.support.recorder_device import Recorder

RELID = 1
PLACES = [name for name in POINTS if name.split(".")[0] in ("message", "packet", "index", "event")]


def rules(data: bytes) -> None:
    """A rule's text: read again from its own text it is the same."""
    text = data.decode("utf-8", "replace")
    complete(text)
    try:
        found = parse_rules(text)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    for rule in found:
        assert parse_rules(rule.text())[0].text() == rule.text()


def file(data: bytes) -> None:
    """A file of rules."""
    with as_file(data) as path, suppress(ConfigError):
        load_rules(path)


def _rule(feed: Feed) -> str:
    """A rule that is likely to be one: at a point of the bus, with any action and numbers."""
    if not feed.below(4):
        return feed.choice(list(LIBRARY))
    name = feed.choice(PLACES)
    point = POINTS[name]
    words = [f"{name}:{feed.choice(point.actions)}"]
    if feed.flag() and point.settable:
        words.append(
            f"to.{feed.choice(point.settable)}={feed.choice((feed.word(8), feed.choice(('guest', 'mask'))))}"
        )
    for _ in range(feed.below(4)):
        key = feed.choice(("at", "length", "seconds", "times", "others", "after", "count", "place", "bytes"))
        value = {"bytes": feed.take(feed.below(9)).hex(), "place": "before", "length": str(feed.u8() - 64)}
        words.append(f"{key}={value.get(key, feed.below(300))}")
    return ",".join(dict.fromkeys(words))


def at_work(data: bytes) -> None:
    """Rules against a bus: whatever they do with messages, packets, indices and events, it goes on serving."""
    feed = Feed(data)
    guest = FakeGuest(vp_count=2)
    guest.partition.on_event = lambda vp, flag: None
    taps = guest.partition.taps
    taps.after, taps.post = guest.time.after, guest.time.post
    faults, device = FaultSet(taps), Recorder()
    guest.bus.add(device)
    for _ in range(1 + feed.below(4)):
        with suppress(ConfigError):
            faults.add(_rule(feed))
    pages = guest.pages(8)
    rings = [GuestRing(guest.memory, pages[:4]), GuestRing(guest.memory, pages[4:])]

    def post(*messages: p.Message | bytes) -> None:
        for each in messages:
            guest.partition.hypercall_post(5, each if isinstance(each, bytes) else each.build())
            guest.loop.run()

    guest.partition.hypercall_post(4, p.InitiateContact(0x50003, 0, 2, 0, 0).build())
    guest.loop.run()
    post(p.RequestOffers(), *gpadl_messages(RELID, 7, pages), p.OpenChannel(RELID, RELID, 7, 0, 4, b""))
    while feed:
        match feed.below(6):
            case 0:
                rings[0].put(feed.take(feed.below(64)))
                guest.partition.hypercall_signal(p.FIRST_SIGNAL_CONNECTION + RELID)
            case 1:
                with suppress(GuestError, AttributeError):  # not open: no channel yet
                    device.channel.send(feed.take(8 * feed.below(64)))
            case 2:
                rings[1].set(feed.choice((0, 4, 8, 12)), feed.word(4))
            case 3:
                guest.advance(feed.below(3))
            case 4:
                post(p.CloseChannel(RELID), p.GpadlTeardown(RELID, 7))
            case _:
                with suppress(ConfigError, HostError):
                    faults.add(_rule(feed))
        guest.loop.run()
    faults.report()
    faults.clear()
    taps.reset()
    guest.reset()
    guest.connect()
    guest.open(device).send(b"12345678")
    assert device.payloads[-1] == b"12345678"


TARGETS = {"file_fault_rules": rules, "file_fault_file": file, "guest_faults": at_work}
