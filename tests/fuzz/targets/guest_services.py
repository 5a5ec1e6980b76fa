"""Answers of the guest to KVP, VSS, file copy and the keyboard, right and wrong, in any order."""

from __future__ import annotations

from struct import pack

from pyvmm.devices.fcopy import FileCopy
from pyvmm.devices.fcopy.protocol import Flag
from pyvmm.devices.keyboard import Keyboard
from pyvmm.devices.keyboard.keys import KEYS
from pyvmm.devices.kvp import Kvp
from pyvmm.devices.kvp.addresses import Addresses, build_get
from pyvmm.devices.kvp.device import ENTRIES_LIMIT, EXTERNAL_LIMIT, REQUESTS_LIMIT
from pyvmm.devices.kvp.protocol import Operation
from pyvmm.devices.vss import Vss
from pyvmm.devices.vss.device import State
from pyvmm.errors import ConfigError, WireError
from tests.fuzz.feed import Feed
from tests.support.fake_guest import FakeDriver, FakeGuest


def _reply(feed: Feed, driver: FakeDriver) -> None:
    """Take a request if there is one, and answer the latest, or something like it."""
    body = driver.take_bytes() if driver.incoming.used() else bytes(40)
    changed = bytearray(body[: feed.choice((len(body), len(body), 0, 30, 600))])
    for _ in range(feed.below(4)):
        if changed:
            at = feed.choice((8, 12, 16, 20, 21, 532, feed.below(len(changed))))
            changed[at : at + 4] = pack("<I", feed.choice((0, 1, 2, 4, 8, 11, 512, 2048, 0xFFFFFFFF, feed.number(4))))
    if len(driver.last_ic) == 28:
        driver.answer(bytes(changed), status=feed.choice((0, 0, 0, 0x80070103, 0x80004005)))


def kvp(data: bytes) -> None:
    """KVP, while the host sets and deletes values, and the driver comes and goes."""
    feed = Feed(data)
    guest, device = FakeGuest(memory_mib=4), Kvp({"VirtualMachineName": "vm"})
    driver = guest.open(device)
    driver.is_ic = True
    begun, told = 0, 0

    def answered(body: bytes | None, status: int) -> None:
        nonlocal told
        told += 1
        if body is not None:
            try:
                Addresses.parse(body)
            except WireError:
                pass

    if feed.below(4):
        driver.accept_versions()
    while feed and not driver.channel.broken:
        match feed.below(8):
            case 0:
                guest.advance(seconds=feed.choice((0.1, 10.0)))
            case 1:
                try:
                    key = feed.take(feed.below(3)).decode("latin-1")
                    device.delete(key) if feed.flag() else device.set(key, feed.take(2).decode("latin-1"))
                except ConfigError:
                    pass
            case 4:
                try:
                    device.request(Operation.GET_IP_INFO, build_get(feed.take(6)), answered)
                    begun += 1
                except ConfigError:
                    pass
            case 2 if feed.below(4) == 0 and len(guest._frames) > 20:
                guest.close()
                driver = guest.open(device)
                if feed.flag():
                    driver.accept_versions()
            case 3:
                driver.send(feed.take(feed.below(60)))
            case _:
                _reply(feed, driver)
    assert len(device.auto) <= ENTRIES_LIMIT and len(device.external) <= EXTERNAL_LIMIT
    assert told <= begun <= told + REQUESTS_LIMIT + 1, "each request is answered once"


def vss(data: bytes) -> None:
    """VSS, frozen and thawed by the host; each is told its end once, and a frozen guest is thawed at last."""
    feed = Feed(data)
    guest, device = FakeGuest(memory_mib=4), Vss()
    driver = guest.open(device).accept_versions()
    told: list[str] = []
    begun = 0
    while feed and not driver.channel.broken:
        match feed.below(6):
            case 0:
                guest.advance(seconds=feed.choice((0.1, 10.0, 100.0)))
            case 1:
                try:
                    device.freeze(feed.choice((5, 60)), told.append)
                    begun += 1
                except ConfigError:
                    pass
            case 2:
                try:
                    device.thaw(told.append)
                    begun += 1
                except ConfigError:
                    pass
            case 3 if len(guest._frames) > 20 and feed.below(4) == 0:
                guest.close()
                driver = guest.open(device).accept_versions()
            case _:
                _reply(feed, driver)
    if driver.channel.broken:
        return
    for _ in range(4):
        guest.advance(seconds=1000)
        while driver.incoming.used():
            driver.take_bytes()
            driver.answer(bytes(12))
    assert device.state is State.IDLE
    assert len(told) == begun


def keyboard(data: bytes) -> None:
    """The keyboard: requests of the guest, keys of the host."""
    feed = Feed(data)
    guest, device = FakeGuest(memory_mib=4), Keyboard()
    driver = guest.open(device, ring_pages=2)
    while feed and not driver.channel.broken:
        match feed.below(4):
            case 0:
                guest.advance(seconds=0.1)
            case 1:
                try:
                    device.press([feed.choice(list(KEYS.values())) for _ in range(feed.below(6))])
                except ConfigError:
                    pass
            case 2:
                driver.take_packet()
            case _:
                driver.send(
                    pack("<II", feed.below(5), feed.choice((0x10000, 0, feed.number(4))))[: feed.choice((8, 8, 3))]
                )


def fcopy(data: bytes) -> None:
    """File copy: what the host writes, answered in any way; each is told its end once."""
    feed = Feed(data)
    guest, device = FakeGuest(memory_mib=4), FileCopy()
    driver = guest.open(device).accept_versions()
    told: list[str] = []
    begun = 0
    while feed and not driver.channel.broken:
        try:
            match feed.below(7):
                case 0:
                    device.start("/", "x", feed.below(70_000), Flag.OVERWRITE, told.append)
                    begun += 1
                case 1:
                    device.write(bytes(feed.below(40_000)), told.append)
                    begun += 1
                case 2:
                    (device.finish if feed.flag() else device.cancel)(told.append)
                    begun += 1
                case 3 if len(guest._frames) > 20 and feed.below(4) == 0:
                    guest.close()
                    driver = guest.open(device).accept_versions()
                case _:
                    _reply(feed, driver)
        except ConfigError:
            pass
    if not driver.channel.broken:
        guest.close()
        assert len(told) == begun


TARGETS = {"guest_fcopy": fcopy, "guest_kvp": kvp, "guest_vss": vss, "guest_keyboard": keyboard}
