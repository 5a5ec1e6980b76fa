"""A device with sub-channels, own completions and transfer pages, which comes and goes, against FakeGuest."""

from __future__ import annotations

import random
from struct import pack, unpack_from

import pytest

from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.channel import SUB_CHANNEL_LIMIT
from pyvmm.vmbus.device import VmbusDevice
from tests.support.fake_guest import FakeDriver, FakeGuest
from tests.support.fake_ring import COMPLETION
from tests.support.queues_device import Command, Queues

LEAVING_SECONDS = VmbusDevice.LEAVING_SECONDS

DIRECT, PAGES = 9, 7


@pytest.fixture
def queues() -> Queues:
    return Queues()


def ask(driver: FakeDriver, command: Command, argument: int = 0, id: int = 1) -> None:
    driver.send(pack("<II", command, argument), flags=1, transaction_id=id)


def completions(driver: FakeDriver) -> list[tuple[int, int]]:
    """(transaction id, argument) of what was completed since."""
    found = []
    while packet := driver.take_packet():
        assert packet.type == COMPLETION
        found.append((packet.transaction_id, unpack_from("<I", packet.payload)[0]))
    return found


def open_all(guest: FakeGuest, queues: Queues, count: int) -> list[FakeDriver]:
    """The primary channel, and so many sub-channels that it asks for."""
    primary = guest.open(queues)
    ask(primary, Command.OFFER, count)
    assert completions(primary) == [(1, count)]
    return [primary, *(guest.open(queues, sub_channel=number) for number in range(1, count + 1))]


# Sub-channels


def test_sub_channels_are_offered_when_asked_for_and_work_apart(guest: FakeGuest, queues: Queues) -> None:
    primary, *rest = drivers = open_all(guest, queues, 3)
    assert queues.calls == ["opened 0", "opened 1", "opened 2", "opened 3"]
    for number, driver in enumerate(rest, 1):
        offer = driver.offer
        assert (offer.device_type, offer.instance) == (primary.offer.device_type, primary.offer.instance)
        assert (offer.sub_channel, offer.dedicated, offer.connection_id) == (number, 1, 16 + offer.relid)
    assert len({driver.offer.relid for driver in drivers}) == 4
    indices = {row["relid"]: row.get("sub-channel", 0) for row in guest.bus.info()}
    assert [indices[driver.offer.relid] for driver in drivers] == [0, 1, 2, 3]
    for number, driver in enumerate(drivers):
        ask(driver, Command.LATER, 0, id=100 + number)
    guest.advance(seconds=0.01)
    assert [completions(driver) for driver in drivers] == [[(100 + number, 0)] for number in range(4)]
    assert [row["relid"] for row in guest.bus.info()] == [driver.offer.relid for driver in drivers]


def test_no_more_sub_channels_than_the_limit_are_offered(guest: FakeGuest, queues: Queues) -> None:
    driver = guest.open(queues)
    ask(driver, Command.OFFER, SUB_CHANNEL_LIMIT + 1)
    assert guest.bus.refused["queues"] == 1
    assert len(guest.bus.info()) == 1 + SUB_CHANNEL_LIMIT
    ask(driver, Command.OFFER, 1)  # offered already
    assert guest.bus.refused["queues"] == 2
    assert completions(driver) == []


def test_one_sub_channel_is_taken_away_and_offered_again(guest: FakeGuest, queues: Queues) -> None:
    primary, first, _second = open_all(guest, queues, 2)
    ask(primary, Command.RESCIND, 1)
    guest.accept_rescind()
    assert first not in guest.drivers
    assert queues.calls[-1] == "closed 1"
    assert sorted(queues.channels) == [0, 2]
    ask(primary, Command.OFFER, 1)
    guest.open(queues, sub_channel=1)
    assert sorted(queues.channels) == [0, 1, 2]


@pytest.mark.parametrize("number", [0, 2, 65, 0xFFFFFFFF])
def test_taking_away_a_sub_channel_that_is_not_there_does_nothing(
    guest: FakeGuest, queues: Queues, number: int
) -> None:
    primary, _ = open_all(guest, queues, 1)
    ask(primary, Command.RESCIND, number)
    assert completions(primary) == [(1, number)]
    assert (guest.inbox, sorted(queues.channels)) == ([], [0, 1])


def test_a_sub_channel_is_offered_again_only_after_its_relid_is_released(guest: FakeGuest, queues: Queues) -> None:
    primary, _ = open_all(guest, queues, 1)
    ask(primary, Command.RESCIND, 1)
    ask(primary, Command.OFFER, 1)
    assert [message[0] for _, message in guest.inbox] == [p.MessageType.RESCIND]
    guest.accept_rescind()
    assert guest.expect(p.OfferChannel).sub_channel == 1


def test_closing_the_primary_rescinds_the_sub_channels(guest: FakeGuest, queues: Queues) -> None:
    primary, first, second = open_all(guest, queues, 2)
    guest.close(second)
    guest.close(first)
    guest.request(p.CloseChannel(primary.offer.relid))
    rescinded = [guest.expect(p.Rescind).relid for _ in range(2)]
    assert rescinded == [first.offer.relid, second.offer.relid]
    assert queues.calls[-3:] == ["closed 2", "closed 1", "closed 0"]
    for relid in rescinded:
        guest.request(p.RelidReleased(relid))
    guest.request(p.GpadlTeardown(primary.offer.relid, primary.gpadl))
    guest.expect(p.GpadlTorndown)
    guest.offers, guest.drivers = [primary.offer], []
    open_all(guest, queues, 2)
    assert sorted(queues.channels) == [0, 1, 2]


def test_sub_channels_that_are_open_close_with_the_primary(guest: FakeGuest, queues: Queues) -> None:
    primary, first = open_all(guest, queues, 1)
    guest.request(p.CloseChannel(primary.offer.relid))
    assert queues.calls[-2:] == ["closed 0", "closed 1"]
    guest.accept_rescind()
    assert first not in guest.drivers
    assert guest.bus.refused.total() == 0


@pytest.mark.parametrize("how", ["unload", "contact", "reset"])
def test_sub_channels_are_gone_when_the_bus_starts_afresh(guest: FakeGuest, queues: Queues, how: str) -> None:
    primary, _ = open_all(guest, queues, 1)
    ask(primary, Command.OFFER, 1)  # refused: it is there
    ask(primary, Command.RESCIND, 1)
    ask(primary, Command.OFFER, 1)  # waits for the release
    if how == "unload":
        guest.inbox.clear()
        guest.unload()
    elif how == "reset":
        guest.reset()
    assert [offer.sub_channel for offer in guest.connect().offers] == [0]
    assert queues.calls.count("closed 0") == queues.calls.count("closed 1") == 1
    open_all(guest, queues, 2)
    assert sorted(queues.channels) == [0, 1, 2]


# Coming and going


def test_removal_rescinds_sub_channels_first(guest: FakeGuest, queues: Queues) -> None:
    drivers = open_all(guest, queues, 2)
    gone: list[str] = []
    guest.bus.remove(queues, lambda: gone.append("gone"))
    relids = [guest.expect(p.Rescind).relid for _ in range(3)]
    assert relids == [driver.offer.relid for driver in (*drivers[1:], drivers[0])]
    assert queues.calls[-4:] == ["leaving", "closed 1", "closed 2", "closed 0"]
    assert guest.bus.info() == []
    for relid in relids:
        assert not gone
        guest.request(p.RelidReleased(relid))
    assert gone == ["gone"]


def test_a_device_comes_back_only_after_all_its_channels_are_released(guest: FakeGuest, queues: Queues) -> None:
    open_all(guest, queues, 1)
    guest.bus.remove(queues)
    guest.bus.add(queues)
    first, primary = (guest.expect(p.Rescind).relid for _ in range(2))
    guest.request(p.RelidReleased(primary))
    assert guest.inbox == []
    guest.request(p.RelidReleased(first))
    guest.drivers = []
    guest.offers = []
    open_all(guest, queues, 1)
    assert guest.bus.refused.total() == 0


def test_a_device_answers_what_is_outstanding_before_it_is_rescinded(guest: FakeGuest, queues: Queues) -> None:
    driver = guest.open(queues)
    ask(driver, Command.LATER, 300, id=7)
    guest.bus.remove(queues)
    assert (queues.calls[-1], guest.inbox) == ("leaving", [])
    ask(driver, Command.LATER, 100, id=8)
    guest.advance(seconds=0.4)
    assert completions(driver) == [(8, 100), (7, 300)]
    guest.accept_rescind()
    assert queues.calls == ["opened 0", "leaving", "closed 0"]


def test_a_device_that_does_not_finish_is_rescinded_all_the_same(guest: FakeGuest, queues: Queues) -> None:
    guest.open(queues)
    queues.answers_before_it_leaves = False
    guest.bus.remove(queues)
    guest.advance(seconds=LEAVING_SECONDS - 0.1)
    assert guest.inbox == []
    guest.pause(seconds=100)
    assert guest.inbox == [], "a guest that stands still loses no time"
    guest.advance(seconds=0.2)
    guest.accept_rescind()
    assert guest.bus.devices() == []


@pytest.mark.parametrize("how", ["close", "unload", "contact", "reset"])
def test_a_device_that_loses_its_channel_while_it_leaves_is_gone(guest: FakeGuest, queues: Queues, how: str) -> None:
    driver = guest.open(queues)
    queues.answers_before_it_leaves = False
    gone: list[str] = []
    guest.bus.remove(queues, lambda: gone.append("gone"))
    match how:
        case "close":
            guest.request(p.CloseChannel(driver.offer.relid))
            guest.accept_rescind()
        case "unload":
            guest.unload()
        case "contact":
            assert guest.connect().offers == []
        case _:
            guest.reset()
    assert (gone, guest.bus.devices()) == (["gone"], [])
    guest.advance(seconds=2 * LEAVING_SECONDS)
    guest.inbox.clear()
    guest.connected = False
    guest.bus.add(queues)
    guest.open(queues)
    assert queues.calls == ["opened 0", "leaving", "closed 0", "opened 0"]


# Whole packets


def test_packets_are_completed_by_the_device_in_any_order(guest: FakeGuest, queues: Queues) -> None:
    driver = guest.open(queues)
    for id, milliseconds in ((5, 30), (6, 10), (7, 20), (5, 40)):
        ask(driver, Command.LATER, milliseconds, id)
    guest.advance(seconds=0.1)
    assert completions(driver) == [(6, 10), (7, 20), (5, 30), (5, 40)]


def test_no_more_is_read_than_the_device_has_room_for(guest: FakeGuest, queues: Queues) -> None:
    driver = guest.open(queues)
    for number in range(20):
        driver.outgoing.put(pack("<II", Command.LATER, 10), flags=1, transaction_id=number)
    driver.signal()
    guest.loop.run()
    assert driver.channel.outstanding == queues.OWN_COMPLETIONS
    assert driver.channel.packets_in == queues.OWN_COMPLETIONS
    guest.advance(seconds=0.1)
    assert [id for id, _ in completions(driver)] == list(range(20))
    assert driver.channel.outstanding == 0


def test_packets_that_are_refused_take_no_room(guest: FakeGuest, queues: Queues) -> None:
    driver = guest.open(queues)
    for _ in range(3 * queues.OWN_COMPLETIONS):
        ask(driver, 99)  # type: ignore[arg-type]
        driver.send(b"", flags=1)
        driver.send(bytes(8), flags=1, type=DIRECT, descriptor=pack("<II", 0, 5))
    assert guest.bus.refused["queues"] == 9 * queues.OWN_COMPLETIONS
    assert driver.channel.outstanding == 0
    ask(driver, Command.LATER, 0, id=9)
    guest.advance(seconds=0.01)
    assert completions(driver) == [(9, 0)]


def test_a_direct_packet_is_answered_with_what_its_ranges_hold(guest: FakeGuest, queues: Queues) -> None:
    driver = guest.open(queues)
    page, other = guest.pages(2)
    guest.memory.write(page + 4092, b"abcd")
    guest.memory.write(other, b"efgh")
    descriptor = pack("<IIIIQQ", 0, 1, 8, 4092, page >> 12, other >> 12)
    driver.send(b"request", type=DIRECT, flags=1, transaction_id=3, descriptor=descriptor)
    packet = driver.take_packet()
    assert packet is not None
    assert (packet.type, packet.transaction_id, packet.payload) == (COMPLETION, 3, b"abcdefgh")
    driver.send(b"request", type=DIRECT, flags=1, descriptor=pack("<IIIIQ", 0, 1, 8, 0, 1 << 40))
    assert guest.bus.refused["GuestMemoryError"] == 1


def test_pages_are_reported_and_given_back(guest: FakeGuest, queues: Queues) -> None:
    driver = guest.open(queues)
    handle = guest.lend(driver.offer.relid, guest.pages(3))
    ask(driver, Command.PAGES, handle, id=77)
    packet = driver.take_packet()
    assert packet is not None
    assert (packet.type, packet.flags, packet.transaction_id, packet.payload) == (PAGES, 1, 77, b"pages" + bytes(3))
    assert packet.descriptor == pack("<HBBIII", 0xCAFE, 0, 0, 1, 3 * 4096, 0)
    assert completions(driver) == [(77, 1)]
    driver.send(b"", type=COMPLETION, transaction_id=77)
    assert queues.released == [77]


def test_memory_that_was_taken_back_or_lent_for_another_channel_is_not_reached(
    guest: FakeGuest, queues: Queues
) -> None:
    primary, first = open_all(guest, queues, 1)
    other = guest.lend(first.offer.relid, guest.pages(1))
    mine = guest.lend(primary.offer.relid, guest.pages(1))
    guest.request(p.GpadlTeardown(primary.offer.relid, mine))
    guest.expect(p.GpadlTorndown)
    for handle in (other, mine, 0):
        ask(primary, Command.PAGES, handle)
    assert guest.bus.refused["queues"] == 3
    primary.expect_nothing()


def test_the_data_of_open_reaches_the_device(guest: FakeGuest, queues: Queues) -> None:
    driver = guest.open(queues, user_data=b"pipe")
    assert driver.channel.user_data == b"pipe" + bytes(116)


@pytest.mark.parametrize("seed", range(10))
def test_sub_channels_that_come_and_go_at_random_leave_a_bus_that_serves(seed: int) -> None:
    rng = random.Random(seed)
    guest, queues = FakeGuest(), Queues()
    guest.open(queues)
    for _ in range(300):
        driver = rng.choice(guest.drivers) if guest.drivers else None
        match rng.randrange(9):
            case 0 if driver and rng.randrange(3) == 0:
                guest.post(p.CloseChannel(driver.offer.relid))
            case 1:
                guest.post(p.RelidReleased(rng.randrange(1, 6)))
            case 2 if not queues.leaves and rng.randrange(3) == 0:
                if queues in guest.bus.devices():
                    guest.bus.remove(queues)
                else:
                    guest.bus.add(queues)
            case 3:
                guest.advance(seconds=rng.choice([0.01, 1.0]))
            case 4 if rng.randrange(8) == 0:
                guest.inbox.clear()
                rng.choice([guest.unload, guest.reset])()
                guest.connect()
            case 5 if offered := [row for row in guest.bus.info() if row["state"] == "offered"]:
                relid = rng.choice(offered)["relid"]
                number = guest.bus.server.channels[relid].offer.sub_channel
                guest.skim()
                guest.drivers = [each for each in guest.drivers if each.offer.relid != relid]
                guest.open(queues, ring_pages=2, sub_channel=number)
            case _ if driver:
                command = pack("<II", rng.choice([1, 1, 2, 3, 4]), rng.randrange(1, 5))
                driver.outgoing.put(command, flags=rng.choice([0, 1, 1, 1]), type=rng.choice([6] * 8 + [9, 11]))
                guest.partition.hypercall_signal(driver.offer.connection_id)
        guest.loop.run()
        relids = [row["relid"] for row in guest.bus.info() if row["relid"]]  # 0: waits for a release
        assert len(relids) == len(set(relids))
        assert queues.calls.count("opened 0") - queues.calls.count("closed 0") == (0 in queues.channels)
        assert set(queues.channels) <= {c.offer.sub_channel for c in guest.bus.server.offered.values()}
        assert not queues.channels or 0 in queues.channels, "a sub-channel without its primary"
    guest.advance(seconds=2 * LEAVING_SECONDS)
    guest.reset()
    if queues not in guest.bus.devices():
        guest.bus.add(queues)
    open_all(guest, queues, 2)
    assert sorted(queues.channels) == [0, 1, 2]
