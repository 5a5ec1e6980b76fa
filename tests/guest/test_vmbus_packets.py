"""hv_vmbus and a driver, played by FakeGuest, against the whole bus: packets in rings, whole and broken ones."""

from __future__ import annotations

import gc
import random
import struct
import weakref
from itertools import pairwise
from uuid import UUID

import pytest

from pyvmm.errors import GuestProtocolError
from pyvmm.vmbus import channel as channel_module
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.channel import BYTES_PER_STEP, PACKETS_PER_STEP, SEND_QUEUE_LIMIT, Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.timers import TIMERS_SWEPT
from tests.support.fake_guest import FakeGuest
from tests.support.fake_ring import COMPLETION, MASK, PENDING, READ, WRITE
from tests.support.recorder_device import BALLOON, Recorder


def test_bad_packet_is_counted_and_the_channel_goes_on(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.send(b"bad").send(b"12345678")
    assert device.payloads == [b"12345678"]
    assert (guest.bus.refused["recorder"], guest.bus.refused["GuestProtocolError"]) == (1, 1)


@pytest.mark.parametrize("kind", [0, 1, 7, 9, 11, 0xFFFF])
def test_other_packet_types_are_counted_and_dropped(guest: FakeGuest, device: Recorder, kind: int) -> None:
    guest.open(device).send(b"12345678", type=kind).send(b"abcdefgh")
    assert device.payloads == [b"abcdefgh"]
    assert guest.bus.refused["recorder"] == 1


def test_completion_is_sent_when_asked_for(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device).send(b"12345678", flags=1, transaction_id=0x1234)
    packet = driver.take_packet()
    assert packet is not None
    assert (packet.type, packet.transaction_id, packet.payload) == (COMPLETION, 0x1234, b"")


def test_full_ring_queues_and_the_guest_is_asked_to_signal(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=2)
    for number in range(5):
        device.channel.send(bytes([number]) * 1500)
    assert device.channel.queued == 3
    assert driver.incoming.get(PENDING) > 0
    taken = [driver.take_bytes()[0] for _ in range(5)]
    assert taken == [0, 1, 2, 3, 4]
    assert driver.incoming.get(PENDING) == 0


def test_guest_without_pending_size_is_polled(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=2)
    driver.incoming.set(64, 0)
    for number in range(3):
        device.channel.send(bytes([number]) * 1500)
    driver.incoming.set(PENDING, 0)
    driver.incoming.take()
    guest.advance(seconds=0.05)
    assert device.channel.queued == 0


def test_guest_that_never_reads_is_refused_more(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device, ring_pages=2)
    with pytest.raises(GuestProtocolError, match="does not read"):
        for _ in range(SEND_QUEUE_LIMIT + 10):
            device.channel.send(bytes(1500))


def test_guest_that_asks_and_never_reads_is_not_read_either(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=2)
    for _ in range(1000):
        if driver.outgoing.put(b"echo" + bytes(400)) is None:
            driver.signal()
            guest.loop.run()
            if driver.outgoing.put(b"echo" + bytes(400)) is None:
                break
    assert device.channel.queued < SEND_QUEUE_LIMIT
    taken = 0
    while driver.take_packet():
        taken += 1
        guest.loop.run()
    assert taken == len(device.payloads)
    assert driver.outgoing.used() == 0


def test_reading_goes_on_when_the_replies_of_a_polled_guest_are_out(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=2)
    driver.incoming.set(64, 0)
    sent = 0
    while device.channel.queued < channel_module.REPLY_QUEUE_LIMIT:
        if driver.outgoing.put(b"echo" + bytes(400)) is not None:
            sent += 1
        else:
            driver.signal()
            guest.loop.run()
    while driver.outgoing.put(b"echo" + bytes(400)) is not None:
        sent += 1
    taken = 0
    for _ in range(1000):
        taken += driver.incoming.take() is not None
        guest.advance(seconds=0.02)
    assert taken == sent == len(device.payloads)


def test_order_is_kept_when_replies_go_out_inside_a_batch(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device)

    def received(payload: bytes) -> None:
        device.payloads.append(payload)
        if len(device.payloads) > 30:
            while driver.incoming.take():
                pass
        for _ in range(3):
            device.channel.send(bytes(1000))

    device.received = received  # type: ignore[method-assign]
    numbers = [number.to_bytes(8, "little") for number in range(100)]
    for number in numbers:
        driver.outgoing.put(number)
    driver.signal()
    guest.loop.run()
    assert device.payloads[:64] == numbers[:64]


def test_packet_written_before_the_device_knows_is_delivered(guest: FakeGuest, device: Recorder) -> None:
    listen = guest.partition.on_message

    def on_message(vp: int, payload: bytes) -> None:
        listen(vp, payload)
        if payload[0] == p.MessageType.OPEN_RESULT:
            assert device.calls == []
            guest.driver.outgoing.put(b"12345678")
            guest.driver.signal()
            assert device.payloads == []

    guest.partition.on_message = on_message
    guest.open(device)
    assert (device.calls, device.payloads) == (["opened"], [b"12345678"])


def test_guest_that_waits_for_room_is_signalled(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=2)
    while driver.outgoing.put(bytes(1000)) is not None:
        pass
    driver.outgoing.set(PENDING, 1024)
    driver.signal()
    assert driver.signals == 1


def test_guest_that_had_the_room_before_is_not_signalled(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device)
    driver.outgoing.set(PENDING, 4120)  # as hvsock leaves it for ever
    for _ in range(3):
        driver.send(bytes(8))
    assert driver.signals == 0


def test_device_may_suspend_reading(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device)
    device.channel.hold(True)
    driver.send(b"first...").send(b"second..")
    assert device.payloads == [] and not device.channel.awaits_signal
    device.channel.hold(False)
    guest.loop.run()
    driver.send(b"third...")
    assert device.payloads == [b"first...", b"second..", b"third..."]


def test_when_room_waits_for_room(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=2)
    called: list[int] = []
    device.channel.when_room(3000, lambda: called.append(1))
    device.channel.send(bytes(3000))
    device.channel.when_room(3000, lambda: called.append(2))
    assert (called, device.channel.room() < 3000) == ([1], True)
    driver.take_bytes()
    assert called == [1, 2]


@pytest.mark.parametrize(("ring_pages", "most"), [(2, 4064), (3, 4080), (5, 4080)])
def test_the_largest_payload_is_what_the_ring_and_every_linux_takes(
    guest: FakeGuest, device: Recorder, ring_pages: int, most: int
) -> None:
    driver = guest.open(device, ring_pages=ring_pages)
    assert device.channel.max_payload == device.channel.room() == most
    device.channel.send(bytes(most))
    assert driver.take_bytes() == bytes(most)
    with pytest.raises(GuestProtocolError, match="never fits"):
        device.channel.send(bytes(most + 1))
    with pytest.raises(GuestProtocolError, match="never fits"):
        device.channel.when_room(most + 1, lambda: None)


def test_an_answer_that_the_guests_ring_cannot_take_is_the_guests_mistake(guest: FakeGuest) -> None:
    class Echo(Recorder):
        def received(self, payload: bytes) -> None:
            self.channel.send(payload * 2)

    device = Echo()
    driver = guest.open(device, ring_pages=2)
    driver.send(bytes(2040))
    assert guest.bus.refused["recorder"] == 1
    driver.send(bytes(1024))
    assert driver.take_bytes() == bytes(2048), "the channel goes on"


def test_busy_guest_leaves_the_loop_its_turns(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device)
    count = PACKETS_PER_STEP * 3 + 5
    for _ in range(count):
        assert driver.outgoing.put(b"12345678") is not None
    seen: list[int] = []
    driver.signal()
    seen.append(len(device.payloads))
    while guest.loop.step():
        seen.append(len(device.payloads))
    assert seen[0] == PACKETS_PER_STEP and seen[-1] == count
    assert max(b - a for a, b in pairwise(seen)) <= PACKETS_PER_STEP


def test_host_masks_signals_while_it_reads_and_not_after(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device)
    masks: list[int] = []
    device.received = lambda payload: masks.append(driver.outgoing.get(MASK))  # type: ignore[method-assign]
    guest.send(b"12345678")
    assert (masks, driver.outgoing.get(MASK)) == ([1], 0)


def test_driver_that_takes_one_packet_per_event_is_signalled_for_each(guest: FakeGuest) -> None:
    device = Recorder(Offer("shutdown", BALLOON, UUID(int=3), signal_each=True))
    driver = guest.open(device)
    for _ in range(3):
        device.channel.send(b"request")
        guest.partition.clear_flag(0, driver.offer.relid)
    assert driver.signals == 3


@pytest.mark.parametrize(("word", "value"), [(WRITE, 4), (WRITE, 0x4000), (WRITE, 0xFFFFFFF8), (WRITE, 8)])
def test_broken_ring_is_left_alone_until_reopened(guest: FakeGuest, device: Recorder, word: int, value: int) -> None:
    driver = guest.open(device)
    driver.outgoing.set(word, value)
    driver.signal()
    guest.loop.run()
    assert guest.bus.info()[0]["broken"]
    refused = guest.bus.refused["BrokenRing"]
    driver.signal()
    guest.loop.run()
    device.channel.send(b"dropped")
    assert guest.bus.refused["BrokenRing"] == refused == 1
    guest.reopen().send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_broken_receive_ring_is_left_alone(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device)
    driver.incoming.set(READ, 3)
    device.channel.send(b"x")
    device.channel.send(b"x")
    assert (device.channel.room(), guest.bus.refused["BrokenRing"]) == (0, 1)


@pytest.mark.parametrize("seed", range(10))
def test_noise_in_rings_and_messages_leaves_a_bus_that_serves(seed: int) -> None:
    rng = random.Random(seed)
    guest, device = FakeGuest(vp_count=2), Recorder()
    for _ in range(30):
        guest.connected = False
        driver = guest.open(device)
        for _ in range(20):
            ring = rng.choice([driver.outgoing, driver.incoming])
            match rng.randrange(6):
                case 0:
                    ring.set(
                        rng.choice([READ, WRITE, MASK, PENDING, 64]), rng.choice([0, 8, 24, 4, rng.getrandbits(32)])
                    )
                case 1:
                    ring.poke(ring.get(WRITE) % ring.size & ~7, rng.randbytes(64))
                case 2:
                    driver.outgoing.put(rng.choice([b"echo", b"bad", b""]) + bytes(rng.randrange(3000)))
                case 3:
                    guest.post(rng.randbytes(rng.choice([4, 8, 12, 40, 200])), rng.choice([1, 4, 5]))
                case 4:
                    device.channel.send(bytes(rng.randrange(4000)))
                case _:
                    guest.partition.hypercall_signal(driver.offer.connection_id)
            guest.loop.run()
            if not device.channel.is_open:
                break
        guest.advance(seconds=1)
    guest.connected = False
    device.payloads.clear()
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_device_may_leave_the_bus_while_it_is_called(guest: FakeGuest) -> None:
    device = Recorder()

    def leave(payload: bytes) -> None:
        guest.bus.remove(device)

    device.received = leave  # type: ignore[method-assign]
    guest.open(device)
    guest.send(b"12345678")
    assert device.calls == ["opened", "closed"]
    guest.accept_rescind()
    assert guest.bus.info() == []


class Negotiator(VmbusDevice):
    """The least of an integration service: offers versions, then sends one request."""

    OFFER = Offer("service", BALLOON, UUID(int=9))

    def opened(self, channel: Channel) -> None:
        self.channel, self.answers = channel, list[bytes]()
        self.send(0, struct.pack("<HHI4H", 1, 1, 0, 3, 0, 3, 0))

    def send(self, kind: int, body: bytes) -> None:
        head = struct.pack("<IHIHIBBH", 3, kind, 3, len(body), 0, 7, 1 | 2, 0)
        self.channel.send(struct.pack("<II", 1, len(head) + len(body)) + head + body)

    def received(self, payload: bytes) -> None:
        self.answers.append(payload)


def test_fake_guest_speaks_ic_framing(guest: FakeGuest) -> None:
    device = Negotiator()
    guest.open(device).accept_versions()
    assert device.answers[0][28:44] == struct.pack("<HHI4H", 1, 1, 0, 3, 0, 3, 0)
    device.send(1, b"sequence")
    assert guest.take_bytes() == b"sequence"
    guest.answer(b"reply---")
    assert device.answers[1][28:36] == b"reply---"
    assert (device.answers[1][24], device.answers[1][25]) == (7, 1 | 4)


def test_reply_limit_leaves_room_below_the_send_limit() -> None:
    assert channel_module.REPLY_QUEUE_LIMIT + 2 * PACKETS_PER_STEP <= SEND_QUEUE_LIMIT


def test_long_packets_leave_the_loop_its_turns_too(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=129)
    for _ in range(100):
        driver.outgoing.put(bytes(4000))
    driver.signal()
    seen = [len(device.payloads)]
    while guest.loop.step():
        seen.append(len(device.payloads))
    assert seen[-1] == 100
    assert max(b - a for a, b in pairwise([0, *seen])) <= BYTES_PER_STEP // 4000 + 1


def test_a_packet_longer_than_a_step_is_read_by_itself(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=65)
    for _ in range(3):
        driver.outgoing.put(bytes(3 * BYTES_PER_STEP))
    driver.signal()
    seen = [len(device.payloads)]
    while guest.loop.step():
        seen.append(len(device.payloads))
    assert seen == [1, 2, 3]


def test_a_channel_keeps_no_timers_that_are_over(guest: FakeGuest, device: Recorder) -> None:
    channel = guest.open(device).channel
    kept = channel.every(1000.0, lambda: None)
    for _ in range(10_000):
        channel.after(0.0, lambda: None)
        channel.every(1.0, lambda: None).cancel()
        guest.loop.run_due()
    assert len(channel.timers) <= TIMERS_SWEPT
    assert not kept.cancelled
    guest.close()
    assert kept.cancelled


def test_a_closed_channel_is_let_go_of_at_once(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device)
    channel = driver.channel
    channel.every(1000.0, channel.room)
    channel.when_room(64, lambda: None)
    held = weakref.ref(channel.reader)
    del channel
    device.channel = None  # type: ignore[assignment]
    guest.close()
    guest.loop.run()
    gc.collect()
    assert held() is None
