"""Fault rules on the real bus: what of messages, packets, indices and events FakeGuest and the host get."""

from __future__ import annotations

from pathlib import Path
from traceback import extract_tb

import pytest

from pyvmm.errors import WireError
from pyvmm.faults import FaultSet
from pyvmm.faults.library import LIBRARY
from pyvmm.vmbus import protocol as p
from tests.support.fake_guest import FakeGuest
from tests.support.fake_ring import MASK, READ, WRITE
from tests.support.recorder_device import Recorder

ECHO = b"echo....01234567"


@pytest.fixture
def faults(guest: FakeGuest) -> FaultSet:
    taps = guest.partition.taps
    taps.after, taps.post = guest.time.after, guest.time.post
    return FaultSet(taps)


# Messages


def test_a_message_to_the_guest_is_lost(guest: FakeGuest, faults: FaultSet) -> None:
    fault = faults.add("contact-unanswered,once")
    guest.request(p.InitiateContact(0x50003, 0, 2, 0, 0), 4)
    assert guest.inbox == [] and fault.hits == 1
    guest.connect()


def test_a_message_to_the_guest_is_changed_and_selected_by_its_channel(
    guest: FakeGuest, device: Recorder, faults: FaultSet
) -> None:
    guest.bus.add(device)
    fault = faults.add("message.out:change,type=GPADL_CREATED,channel=recorder,to.status=5")
    offer = guest.connect().find_offer(device)
    guest.lend(offer.relid, guest.pages(4), status=5)
    assert fault.hits == 1


def test_the_answer_to_a_teardown_belongs_to_its_channel(
    guest: FakeGuest, device: Recorder, faults: FaultSet
) -> None:
    driver = guest.open(device)
    fault = faults.add("torndown-withheld,channel=recorder")
    guest.request(p.CloseChannel(driver.offer.relid))
    guest.request(p.GpadlTeardown(driver.offer.relid, driver.gpadl))
    assert guest.inbox == [] and fault.hits == 1


def test_a_message_comes_late_or_twice_or_in_another_order(guest: FakeGuest, faults: FaultSet) -> None:
    faults.add("message.out:delay,type=VERSION_RESPONSE,seconds=2,once")
    guest.request(p.InitiateContact(0x50003, 0, 2, 0, 0), 4)
    guest.advance(1.9)
    assert guest.inbox == []
    guest.advance(0.2)
    assert guest.expect(p.VersionResponse).supported
    faults.add("message.out:duplicate,type=VERSION_RESPONSE,times=2,once")
    guest.request(p.InitiateContact(0x50003, 0, 2, 0, 0), 4)
    assert len(guest.inbox) == 3


def test_a_message_goes_to_another_vp_with_another_type(faults: FaultSet, guest: FakeGuest) -> None:
    guest.partition.slots_busy = True
    faults.add("message.out:change,type=VERSION_RESPONSE,to.synic_type=0x80000010")
    guest.request(p.InitiateContact(0x50003, 0, 2, 0, 0), 4)
    assert [each.type for queue in guest.partition.queues.values() for each in queue] == [0x80000010]


def test_a_message_longer_than_a_slot_is_lost(guest: FakeGuest, faults: FaultSet) -> None:
    fault = faults.add("message.out:insert,type=VERSION_RESPONSE,length=241")
    guest.connect()
    assert fault.rules[0].last_failure == "a message of 241 bytes: a slot takes 240"


def test_messages_of_the_guest_are_lost_changed_and_repeated(
    guest: FakeGuest, device: Recorder, faults: FaultSet
) -> None:
    guest.bus.add(device)
    with faults.add("message.in:drop,type=REQUEST_OFFERS") as fault:
        assert guest.contact().supported
        guest.request(p.RequestOffers())
        assert fault.hits == 1 and guest.inbox == []
    with faults.add("message.in:duplicate,type=REQUEST_OFFERS"):
        guest.request_offers()
        assert guest.bus.refused["REQUEST_OFFERS"] == 1
    relid = guest.offers[0].relid
    with faults.add(f"message.in:change,type=GPADL_TEARDOWN,relid={relid},channel=recorder,to.gpadl=9"):
        guest.request(p.GpadlTeardown(relid, 5))
        assert guest.bus.refused["GPADL_TEARDOWN"] == 1
    with faults.add("message.in:truncate,length=3"):
        guest.request(p.RequestOffers())
    with faults.add("message.in:change,to.connection=99"):
        guest.request(p.RequestOffers())
    assert faults.report() == []


# Packets


def test_packets_to_the_guest_are_lost_repeated_and_reordered(
    guest: FakeGuest, device: Recorder, faults: FaultSet
) -> None:
    driver = guest.open(device)
    for rule, expected in (
        ("drop,once", b"BC"),
        ("duplicate,once", b"AABC"),
        ("reorder,others=1,once", b"BAC"),
        ("insert,at=16,bytes=5a,once", b"AZBC"),
    ):
        with faults.add(f"packet.out:{rule},channel=recorder") as fault:
            for letter in b"ABC":
                device.channel.send(bytes([letter]) * 8)
            assert bytes(driver.take_bytes()[0] for _ in expected) == expected  # GuestRing checks each trailer
            driver.expect_nothing()
            assert fault.hits == 1


def test_a_delayed_packet_comes_in_guest_time(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device)
    faults.add("packet.out:delay,seconds=3")
    device.channel.send(b"12345678")
    guest.pause(seconds=100)
    driver.expect_nothing()
    guest.advance(3.1)
    assert driver.take_bytes() == b"12345678"


def test_a_packet_delayed_past_the_channel_s_end_is_lost(
    guest: FakeGuest, device: Recorder, faults: FaultSet
) -> None:
    guest.open(device)
    fault = faults.add("packet.out:delay,seconds=1")
    device.channel.send(b"12345678")
    guest.close()
    guest.advance(2)
    assert fault.rules[0].last_failure == "recorder: the channel is closed or broken"


def test_a_packet_s_raw_bytes_reach_the_ring(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device)
    faults.add("packet.out:truncate,length=-8")
    device.channel.send(b"12345678")
    assert driver.incoming.get(WRITE) == 24  # without its trailer
    faults.add("packet.out:change,to.length8=0xffff")
    faults.clear()
    with faults.add("packet.out:insert,length=5040,to.length8=629"):
        device.channel.send(b"12345678")
    assert driver.incoming.get(WRITE) == 24 + 32 + 5040


def test_what_does_not_fit_into_the_ring_is_lost(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device, ring_pages=2)
    fault = faults.add("packet.out:insert,length=4096,once")
    device.channel.send(b"12345678")
    assert fault.rules[0].last_failure == "recorder: no room for 4096 bytes in the ring"
    assert driver.take_bytes() == b"12345678"
    faults.add("packet.out:duplicate,times=1000")
    device.channel.send(b"x" * 8)
    taken = 0
    while driver.take_packet() is not None:
        taken += 1
    assert 0 < taken <= 4096 // 32
    device.channel.send(b"y" * 8)
    assert driver.take_bytes() == b"y" * 8


def test_packets_of_the_guest_are_lost_changed_and_late(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device)
    for rule, expected in (
        ("drop", []),
        ("duplicate", [b"12345678"] * 2),
        ("change,at=16,bytes=ff", [b"\xff2345678"]),
        ("truncate,length=16", []),  # shorter than its header says
        ("change,to.packet_type=9", []),
        ("change,to.offset8=5000", []),
    ):
        with faults.add(f"packet.in:{rule}"):
            driver.send(b"12345678")
            assert device.payloads == expected
            device.payloads.clear()
    assert device.channel.broken is None
    with faults.add("packet.in:delay,seconds=1"):
        driver.send(b"12345678")
        guest.advance(1.1)
        assert device.payloads == [b"12345678"]


def test_a_late_packet_of_a_closed_channel_is_dropped(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device)
    faults.add("packet.in:delay,seconds=1")
    driver.send(b"12345678")
    guest.close()
    guest.advance(2)
    assert device.payloads == []


# Indices


def test_indices_of_the_host_are_lost_wrong_or_those_of_the_guest(
    guest: FakeGuest, device: Recorder, faults: FaultSet
) -> None:
    driver = guest.open(device)
    with faults.add("index.out:drop,ring=host,word=write"):
        device.channel.send(b"12345678")
        driver.expect_nothing()
    device.channel.send(b"abcdefgh")
    assert driver.take_bytes() == b"12345678"  # the next index covers both
    assert driver.take_bytes() == b"abcdefgh"
    with faults.add("index.out:change,ring=host,to.value=0xfffffff8"):
        device.channel.send(b"12345678")
        assert driver.incoming.get(WRITE) == 0xFFFFFFF8
    with faults.add("index.out:insert,ring=guest,word=read,to.word=write,to.value=0x100000"):
        driver.send(b"12345678")
        assert driver.outgoing.get(WRITE) == 0x100000
    assert device.channel.broken is not None


def test_another_word_of_the_other_ring_is_overwritten(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device)
    faults.add("index.out:insert,ring=host,to.ring=guest,to.word=mask,to.value=7")
    device.channel.send(b"12345678")
    assert driver.outgoing.get(MASK) == 7


def test_the_host_s_read_index_may_stand_still(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device)
    faults.add("index.out:drop,ring=guest,word=read")
    driver.send(b"12345678")
    assert (device.payloads, driver.outgoing.get(READ)) == ([b"12345678"], 0)


@pytest.mark.parametrize("value", ["3", "0xffffffff", "4096"])
def test_a_wrong_index_of_the_guest_breaks_its_channel_only(
    guest: FakeGuest, device: Recorder, faults: FaultSet, value: str
) -> None:
    driver = guest.open(device)
    with faults.add(f"index.in:change,channel=recorder,ring=guest,word=write,to.value={value}"):
        driver.send(b"12345678")
    assert (device.channel.broken is not None) or value == "4096"
    assert guest.reopen().send(b"12345678") and device.payloads[-1] == b"12345678"


# Events


def test_events_are_lost_late_and_on_other_flags(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device)
    with faults.add("event.out:drop"):
        device.channel.send(b"12345678")
        assert (driver.signals, driver.take_bytes()) == (0, b"12345678")
    with faults.add("event.out:delay,seconds=1"):
        device.channel.send(b"12345678")
        guest.advance(1.1)
        assert (driver.signals, driver.take_bytes()) == (1, b"12345678")
    with faults.add("event.out:change,to.flag=2000"):
        device.channel.send(b"12345678")
    assert (0, 2000) in guest.partition.flags
    driver.take_bytes()
    for rule, reason in (("to.flag=2048", "no event flag 2048 of SINT 2 on VP 0"), ("to.vp=1", "on VP 1")):
        with faults.add(f"event.out:change,{rule}") as fault:
            device.channel.send(b"12345678")
            assert reason in fault.rules[0].last_failure
            driver.take_bytes()


def test_signals_of_the_guest_are_lost_and_late(guest: FakeGuest, device: Recorder, faults: FaultSet) -> None:
    driver = guest.open(device)
    with faults.add("guest-signals-lost,channel=recorder"):
        driver.send(b"12345678")
        assert device.payloads == []
    with faults.add("event.in:delay,seconds=1"):
        driver.signal()
        guest.advance(1.1)
        assert device.payloads == [b"12345678"]
    with faults.add("event.in:delay,seconds=1"):
        driver.signal()
        guest.close()
        guest.advance(2)


# All of the library


def test_no_named_fault_breaks_the_host(device: Recorder) -> None:
    for name in LIBRARY:
        guest = FakeGuest(vp_count=2)
        taps = guest.partition.taps
        taps.after, taps.post = guest.time.after, guest.time.post
        rules = FaultSet(taps)
        rules.add(name)
        other = Recorder()
        try:
            guest.open(other).send(ECHO)
        except (AssertionError, LookupError, WireError) as error:
            assert _is_the_guest_s(error), name  # FakeGuest is told something wrong
        guest.advance(10)
        rules.clear()
        guest.reset()
        guest.connect()
        guest.open(other).send(ECHO)
        assert other.payloads[-1] == ECHO, name


def _is_the_guest_s(error: BaseException) -> bool:
    """Whether FakeGuest raised the error, and not code of the host that it called."""
    files = [Path(frame.filename).name for frame in extract_tb(error.__traceback__)]
    return files[-1] in ("fake_guest.py", "fake_ring.py") or not {"fake_clock.py", "fake_partition.py"} & set(files)
