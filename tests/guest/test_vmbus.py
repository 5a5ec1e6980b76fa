"""hv_vmbus and a driver, played by FakeGuest, against the whole bus: messages, GPADLs, rings, timers."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable
from itertools import pairwise
from uuid import UUID

import pytest

from pyvmm.errors import GuestProtocolError
from pyvmm.trace import Record, subscribe, unsubscribe
from pyvmm.vmbus import bus as bus_module
from pyvmm.vmbus import channel as channel_module
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.channel import PACKETS_PER_STEP, SEND_QUEUE_LIMIT, Channel
from pyvmm.vmbus.device import Offer, VmbusDevice
from tests.support.fake_guest import FakeGuest
from tests.support.fake_ring import COMPLETION, MASK, PENDING, READ, WRITE

BALLOON = UUID("525074dc-8985-46e2-8057-a307dc18a502")


class Recorder(VmbusDevice):
    """Keeps what it is told."""

    OFFER = Offer("recorder", type=BALLOON, instance=UUID(int=1))

    def __init__(self, offer: Offer | None = None) -> None:
        self.calls: list[str] = []
        self.payloads: list[bytes] = []
        self._offer = offer or self.OFFER

    @property
    def offer(self) -> Offer:
        return self._offer

    def opened(self, channel: Channel) -> None:
        self.calls.append("opened")
        self.channel = channel

    def received(self, payload: bytes) -> None:
        if payload.startswith(b"bad"):
            raise GuestProtocolError("bad packet")
        if payload.startswith(b"echo"):
            self.channel.send(payload)
        self.payloads.append(payload)

    def closed(self) -> None:
        self.calls.append("closed")

    def reset(self) -> None:
        self.calls.append("reset")


@pytest.fixture
def device() -> Recorder:
    return Recorder()


# The life of a channel


def test_packets_go_both_ways(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.send(b"12345678")
    device.channel.send(b"abcdefgh")
    assert device.payloads == [b"12345678"]
    assert guest.take_bytes() == b"abcdefgh"


@pytest.mark.parametrize("version", [0x20004, 0x30000, 0x40000, 0x40001, 0x50000, 0x50001, 0x50002, 0x50003])
def test_every_version_serves_a_channel(device: Recorder, version: int) -> None:
    guest = FakeGuest(version=version)
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]
    assert (device.channel.version, guest.bus.version) == (version, version)


def test_guest_falls_back_to_what_is_served(device: Recorder) -> None:
    guest = FakeGuest(max_version=0x40000)
    assert guest.partition.hypercall_post(4, p.InitiateContact(14, 0, 0x50003, 0, 2, 0, 0).build()) == 0x12
    assert not guest.contact(0x40001).supported
    guest.version = 0x40000
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_driver_unbound_and_bound_again(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    for _ in range(3):
        guest.reopen().send(b"12345678")
    assert device.calls == ["opened", *["closed", "opened"] * 3]
    assert device.payloads == [b"12345678"] * 3


def test_hv_vmbus_removed_and_loaded_again(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.close().unload().connect().open(device).send(b"12345678")
    assert device.calls == ["opened", "closed", "opened"]


def test_kexec_unloads_with_the_channel_open(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.unload()
    assert device.calls == ["opened", "closed"]
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_crash_kernel_makes_contact_without_unload(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.partition.slots_busy = True
    device.channel.send(b"lost")
    guest.post(b"\x0d" + bytes(11))
    guest.partition.slots_busy = False
    guest.connect().open(device).send(b"12345678")
    assert device.calls == ["opened", "closed", "opened"]


def test_machine_reset_closes_then_resets_devices(guest: FakeGuest, device: Recorder) -> None:
    other = Recorder(Offer("other", BALLOON, UUID(int=2)))
    guest.bus.add(other)
    guest.open(device)
    guest.reset()
    assert (device.calls, other.calls) == (["opened", "closed", "reset"], ["reset"])
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_removed_device_is_rescinded_and_can_come_back(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.bus.remove(device)
    assert device.calls == ["opened", "closed"]
    guest.bus.add(device)
    guest.accept_rescind()
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_events_follow_modify_channel() -> None:
    guest, device = FakeGuest(vp_count=2), Recorder()
    driver = guest.open(device, target_vp=1)
    device.channel.send(b"one")
    assert driver.signals == 1
    driver.take_packet()
    guest.request(p.ModifyChannel(22, 0, driver.offer.relid, 0))
    assert guest.expect(p.ModifyChannelResponse).status == 0
    driver.target_vp = 0
    device.channel.send(b"two")
    assert driver.signals == 2


def test_messages_go_to_the_vp_of_the_contact() -> None:
    guest = FakeGuest(vp_count=3)
    guest.contact(vp=2)
    guest.request(p.RequestOffers(3, 0))
    assert [vp for vp, _ in guest.inbox] == [2]


# Packets


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


def test_when_room_waits_for_room(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, ring_pages=2)
    called: list[int] = []
    device.channel.when_room(3000, lambda: called.append(1))
    device.channel.send(bytes(3000))
    device.channel.when_room(3000, lambda: called.append(2))
    assert (called, device.channel.room() < 3000) == ([1], True)
    driver.take_bytes()
    assert called == [1, 2]


def test_payload_that_never_fits_is_our_own_mistake(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device, ring_pages=2)
    with pytest.raises(ValueError, match="never fit"):
        device.channel.send(bytes(4096))
    with pytest.raises(ValueError, match="never fit"):
        device.channel.when_room(4096, lambda: None)


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


# Timers


def test_timers_of_a_channel_end_with_it(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    fired: list[str] = []
    device.channel.every(1.0, lambda: fired.append("every"))
    device.channel.after(2.5, lambda: fired.append("after"))
    guest.advance(seconds=2.2)
    assert fired == ["every", "every"]
    guest.close()
    guest.advance(seconds=10)
    assert fired == ["every", "every"]


def test_closed_channel_takes_nothing(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    channel = device.channel
    guest.close()
    channel.send(b"x")
    channel.when_room(10, lambda: pytest.fail("called after close"))
    assert channel.after(0, lambda: pytest.fail("called after close")).cancelled
    guest.advance(seconds=1)
    assert (channel.room(), channel.queued) == (0, 0)


def test_what_a_guest_did_wrong_ends_in_the_timer(guest: FakeGuest, device: Recorder) -> None:
    def fails() -> None:
        raise GuestProtocolError("no answer")

    guest.open(device)
    device.channel.after(1, fails)
    guest.advance(seconds=2)
    assert guest.bus.refused["recorder"] == 1


# Messages


@pytest.mark.parametrize(
    ("connection", "kind", "size", "status"),
    [(1, 1, 8, 0), (4, 1, 240, 0), (5, 1, 8, 0), (0, 1, 8, 0x12), (2, 1, 8, 0x12), (17, 1, 8, 0x12), (1, 2, 8, 3),
     (1, 0x80000000, 8, 3), (1, 1, 7, 3), (1, 1, 0, 3), (1, 1, 241, 3)],
)  # fmt: skip
def test_status_of_post_message(guest: FakeGuest, connection: int, kind: int, size: int, status: int) -> None:
    assert guest.partition.hypercall_post(connection, bytes(size), kind) == status
    guest.loop.run()


def test_queue_of_messages_is_bounded_and_contact_always_gets_in(guest: FakeGuest) -> None:
    statuses = [guest.post(bytes(8), 1) for _ in range(bus_module.RECEIVE_QUEUE_LIMIT + 2)]
    assert statuses.count(0x13) == 2
    assert guest.contact().supported


def test_guest_that_does_not_read_its_messages_is_not_served(guest: FakeGuest, device: Recorder) -> None:
    guest.bus.add(device)
    guest.connect()
    guest.partition.slots_busy = True
    request = p.TlConnectRequest(21, 0, UUID(int=1), UUID(int=2)).build()
    statuses = []
    for _ in range(300):
        statuses.append(guest.post(request))
        guest.loop.run()
    assert statuses.count(0) <= bus_module.OUTBOX_LIMIT + bus_module.RECEIVE_QUEUE_LIMIT + 2
    assert statuses[-1] == 0x13
    for _ in range(300):
        guest.partition.free_slots()
        guest.loop.run()
    assert len(guest.inbox) == statuses.count(0)
    guest.connect().open(device)


def test_message_the_partition_drops_is_counted_and_the_next_goes_out(guest: FakeGuest) -> None:
    def dropped(vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        done(-errno.EINVAL)

    guest.partition.post_message = dropped  # type: ignore[method-assign]
    guest.post(p.InitiateContact(14, 0, 0x50003, 0, 2, 0, 0), 4)
    guest.loop.run()
    assert guest.bus.refused["POST"] == 1
    del guest.partition.post_message  # type: ignore[misc]
    assert guest.contact().supported


def test_late_word_on_a_dropped_message_is_ignored(guest: FakeGuest) -> None:
    posted: list[tuple[int, Callable[[int], None]]] = []

    def keep(vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        posted.append((payload[0], done))

    guest.partition.post_message = keep  # type: ignore[method-assign]
    contact = p.InitiateContact(14, 0, 0x50003, 0, 2, 0, 0)
    guest.request(contact, 4)
    guest.request(contact, 4)
    guest.request(p.RequestOffers(3, 0), 5)
    posted[0][1](0)
    assert [kind for kind, _ in posted] == [15, 15]
    posted[1][1](0)
    assert [kind for kind, _ in posted] == [15, 15, 4]


def test_unload_is_served_though_the_slots_are_full(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.partition.slots_busy = True
    for _ in range(200):
        guest.post(p.TlConnectRequest(21, 0, UUID(int=1), UUID(int=2)))
        guest.loop.run()
    guest.request(p.Unload(16, 0))
    assert device.calls == ["opened", "closed"]
    guest.partition.free_slots()
    assert [int.from_bytes(m[:4], "little") for _, m in guest.inbox] == [23, 17]


def test_large_gpadl_comes_in_many_messages(device: Recorder) -> None:
    guest = FakeGuest(memory_mib=64)
    guest.open(device, ring_pages=4095).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_ring_over_memory_that_went_away_is_not_opened(guest: FakeGuest, device: Recorder) -> None:
    guest.bus.add(device)
    guest.connect()
    relid = guest.find_offer(device).relid
    handle = guest.lend(relid, guest.pages(4))
    guest.memory.remove(next(iter(guest.memory)))
    guest.request(p.OpenChannel(5, 0, relid, relid, handle, 0, 2, b""))
    assert guest.expect(p.OpenResult).status
    assert device.calls == []


# What can be seen


def test_info_tells_relid_state_and_counters(guest: FakeGuest, device: Recorder) -> None:
    guest.bus.add(device)
    assert guest.bus.info()[0]["state"] == "hidden"
    guest.open(device).send(b"12345678")
    row = guest.bus.info()[0]
    assert (row["relid"], row["state"], row["target-vp"], row["packets-in"]) == (1, "open", 0, 1)
    assert row["ring-in"] == row["ring-out"] == 4 * 4096


def test_trace_of_an_open_reads_as_qemus(guest: FakeGuest, device: Recorder) -> None:
    lines: list[str] = []

    def sink(record: Record) -> None:
        lines.append(record.text())

    subscribe("vmbus_*", sink)
    try:
        guest.bus.add(device)
        guest.connect()
        guest.open(device)
        guest.close()
    finally:
        unsubscribe(sink)
    gpadl = 0xE1E10
    assert lines == [
        "vmbus_recv_message type 14 size 40",
        "vmbus_process_incoming_message type 14",
        "vmbus_initiate_contact version 5.3 target vp 0 mon pages 0x2000,0x3000 int page 0x2",
        "vmbus_post_msg type 15 size 16",
        "vmbus_msg_cb message status 0",
        "vmbus_recv_message type 3 size 8",
        "vmbus_process_incoming_message type 3",
        f"vmbus_send_offer channel #1 dev {id(device):#x}",
        "vmbus_post_msg type 1 size 196",
        "vmbus_msg_cb message status 0",
        "vmbus_terminate_offers",
        "vmbus_post_msg type 4 size 8",
        "vmbus_msg_cb message status 0",
        "vmbus_recv_message type 8 size 108",
        "vmbus_process_incoming_message type 8",
        f"vmbus_gpadl_header gpadl #{gpadl} gfns 10",
        f"vmbus_gpadl_created gpadl #{gpadl}",
        "vmbus_post_msg type 10 size 20",
        "vmbus_msg_cb message status 0",
        "vmbus_recv_message type 5 size 148",
        "vmbus_process_incoming_message type 5",
        f"vmbus_open_channel channel #1 gpadl #{gpadl} target vp 0",
        "vmbus_channel_open channel #1 status 0",
        "vmbus_post_msg type 6 size 20",
        "vmbus_msg_cb message status 0",
        "vmbus_recv_message type 7 size 12",
        "vmbus_process_incoming_message type 7",
        "vmbus_close_channel channel #1",
        "vmbus_recv_message type 11 size 16",
        "vmbus_process_incoming_message type 11",
        f"vmbus_gpadl_teardown gpadl #{gpadl}",
        f"vmbus_gpadl_torndown gpadl #{gpadl}",
        "vmbus_post_msg type 12 size 12",
        "vmbus_msg_cb message status 0",
    ]


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
