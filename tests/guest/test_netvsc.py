"""The network card, its driver played by hand over real rings."""

from __future__ import annotations

from struct import pack, unpack_from

import pytest

from pyvmm.devices.netvsc import Card, Netvsc, nvsp
from pyvmm.devices.netvsc.receiver import BATCH_LIMIT
from pyvmm.devices.netvsc.sender import QUEUE_LIMIT, STALL_SECONDS
from pyvmm.vmbus.protocol import CloseChannel
from tests.support.fake_guest import FakeGuest
from tests.support.net_guest import MAC, PEER, FakeLink, NetGuest, frame, info, packet


@pytest.fixture
def card(guest: FakeGuest) -> NetGuest:
    """A card whose interface is up."""
    return NetGuest(guest)


@pytest.mark.parametrize("version", nvsp.VERSIONS)
def test_each_version_negotiates_and_carries_frames(guest: FakeGuest, version: int) -> None:
    card = NetGuest(guest, version=version)
    number = card.send(frame())
    assert card.link.sent == [frame()]
    assert card.completed() == [(number, 1)]
    card.link.feed(frame(to=MAC))
    assert card.frames() == [frame(to=MAC)]


def test_an_unknown_version_is_refused_and_an_older_one_taken(guest: FakeGuest) -> None:
    card = NetGuest(guest, start=False)
    assert unpack_from("<I", card.ask(nvsp.Init(0x70000, 0x70000)), 12) == (2,)
    assert unpack_from("<I", card.ask(nvsp.Init(0x60001, 0x60001)), 12) == (1,)


def test_frames_go_both_ways(card: NetGuest) -> None:
    number = card.send(frame(b"ping"))
    assert card.link.sent == [frame(b"ping")]
    assert card.completed() == [(number, 1)]
    card.link.feed(frame(b"pong", to=MAC, source=PEER))
    assert card.frames() == [frame(b"pong", to=MAC, source=PEER)]


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_a_frame_in_pieces_arrives_whole(card: NetGuest, pieces: int) -> None:
    data = frame(bytes(range(256)) * 5)
    card.send(data, pieces=pieces)
    assert card.link.sent == [data]


def test_frames_in_a_section_and_partly_in_memory_arrive(card: NetGuest) -> None:
    first, second = packet(frame(b"first"), padding=5), packet(frame(b"second" * 50))
    card.send_rndis(first + second, section=3)
    card.send_rndis(first + second, section=4, split=len(first) + 44)
    assert card.link.sent == 2 * [frame(b"first"), frame(b"second" * 50)]


def test_a_large_frame_for_a_large_mtu_crosses_pages(guest: FakeGuest) -> None:
    card = NetGuest(guest, mtu=9000)
    data = frame(bytes(range(250)) * 36, to=MAC)
    card.link.feed(data, data)
    assert card.frames() == [data, data]
    assert card.section_size >= 9000 + 14


def test_frames_too_long_for_the_mtu_are_dropped_both_ways(card: NetGuest) -> None:
    number = card.send(frame(bytes(3000)))
    assert card.completed() == [(number, 1)], "completed, as a frame that a card drops"
    card.link.feed(frame(bytes(3000), to=MAC))
    assert (card.link.sent, card.frames()) == ([], [])
    counters = card.device.card.counters
    assert (counters.send_errors, counters.dropped) == (1, 1)


def test_many_frames_come_in_few_batches(card: NetGuest) -> None:
    frames = [frame(pack("<I", n), to=MAC) for n in range(200)]
    card.link.feed(*frames)
    batches = card.batches()
    assert len(batches) == 4 == -(-100 // BATCH_LIMIT) * 2  # the link gives 100 at a time
    assert sum(len(card.messages(each)) for each in batches) == 200


def test_the_link_is_held_while_the_guest_has_all_slots(card: NetGuest) -> None:
    frames = [frame(bytes(1400) + pack("<I", n), to=MAC) for n in range(3000)]
    card.link.feed(*frames)
    assert card.link.held
    assert card.link.coming
    got: list[bytes] = []
    while more := card.frames():
        got += more
    assert got == frames
    assert not card.link.held


def test_control_is_answered_while_the_guest_has_all_other_slots(card: NetGuest) -> None:
    card.link.feed(*[frame(bytes(1400), to=MAC)] * 3000)
    waiting = card.batches()
    assert card.query(0x00010114) == (0, pack("<I", 0))
    assert waiting


def test_a_frame_for_another_address_is_dropped_unless_promiscuous(card: NetGuest) -> None:
    card.link.feed(frame(b"no", to=PEER), frame(b"all", to=b"\xff" * 6))
    assert card.frames() == [frame(b"all", to=b"\xff" * 6)]
    assert card.set(0x0001010E, pack("<I", 0x2D)) == 0
    card.link.feed(frame(b"yes", to=PEER))
    assert card.frames() == [frame(b"yes", to=PEER)]


def test_frames_are_dropped_while_the_interface_is_down(card: NetGuest) -> None:
    assert card.set(0x0001010E, pack("<I", 0)) == 0
    card.link.feed(frame(to=MAC))
    assert card.frames() == []
    assert not card.link.held


def test_a_full_link_delays_completions_and_then_takes_all(card: NetGuest) -> None:
    card.link.space = 2
    numbers = [card.send(frame(pack("<I", n))) for n in range(5)]
    assert card.completed() == [(number, 1) for number in numbers[:2]]
    card.link.widen()
    assert card.completed() == [(number, 1) for number in numbers[2:]]
    assert card.link.sent == [frame(pack("<I", n)) for n in range(5)]


def test_a_link_that_takes_nothing_loses_the_frames_in_the_end(card: NetGuest) -> None:
    card.link.space = 0
    number = card.send(frame())
    card.guest.advance(seconds=STALL_SECONDS / 2)
    assert card.completed() == []
    card.guest.advance(seconds=STALL_SECONDS)
    assert card.completed() == [(number, 1)]
    assert card.device.card.counters.send_dropped == 1


def test_control_is_served_while_the_link_is_full(card: NetGuest) -> None:
    card.link.space = 0
    for _ in range(50):
        card.send(frame())
    assert card.set(0x0001010E, pack("<I", 0)) == 0


def test_the_queue_to_a_full_link_is_bounded(card: NetGuest) -> None:
    card.link.space = 0
    for n in range(QUEUE_LIMIT // 8 + 20):
        card.send(*[frame()] * 8)
        assert card.device.sender.waiting <= QUEUE_LIMIT, n
    assert card.device.card.counters.send_dropped


@pytest.mark.parametrize(
    ("oid", "value"),
    [
        (0x00010106, pack("<I", 65521)),
        (0x01010101, MAC),
        (0x01010102, MAC),
        (0x00020216, "test card".encode("utf-16-le")),
        (0x00010114, pack("<I", 0)),
        (0x00010107, pack("<I", 100_000_000)),
        (0x00010203, pack("<BBHIIIH", 0x88, 2, 18, 0x10000301, 1, 1, 128)),
    ],
)
def test_what_linux_asks_for_is_answered(card: NetGuest, oid: int, value: bytes) -> None:
    assert card.query(oid) == (0, value)


@pytest.mark.parametrize("size", [112, 144, 156])
def test_offload_capabilities_have_the_size_that_was_asked_for(card: NetGuest, size: int) -> None:
    status, value = card.query(0xFC01020D, pack("<BBH", 0xA7, 1, size).ljust(size, b"\0"))
    kind, revision, told = unpack_from("<BBH", value)
    assert (status, kind, told, len(value)) == (0, 0xA7, size, size)
    assert revision >= 1
    assert unpack_from("<I", value, 8)[0] & 0x14 == 0x14, "TCP over IPv4 with options"


def test_an_unknown_object_is_refused_with_an_answer(card: NetGuest) -> None:
    assert card.query(0x12345678) == (0xC00000BB, b"")
    assert card.set(0x12345678, b"1234") == 0xC00000BB


def test_the_guest_changes_its_address(card: NetGuest) -> None:
    name, text = "NetworkAddress".encode("utf-16-le"), "525400010203".encode("utf-16-le")
    head = pack("<5I", 20, len(name), 2, 20 + len(name), len(text))
    assert card.set(0x0001021B, head + name + text) == 0
    card.link.feed(frame(b"old", to=MAC), frame(b"new", to=bytes.fromhex("525400010203")))
    assert card.frames() == [frame(b"new", to=bytes.fromhex("525400010203"))]


def test_link_changes_are_indicated_and_nothing_passes_unplugged(card: NetGuest) -> None:
    card.device.set_plugged(False)
    assert unpack_from("<3I", card.indication()) == (7, 20, 0x4001000C)
    assert card.query(0x00010114) == (0, pack("<I", 1))
    number = card.send(frame())
    assert card.completed() == [(number, 1)]
    card.link.feed(frame(to=MAC))
    assert (card.link.sent, card.frames()) == ([], [])
    card.device.set_plugged(True)
    assert unpack_from("<3I", card.indication()) == (7, 20, 0x4001000B)
    card.send(frame())
    assert card.link.sent == [frame()]


def test_the_end_of_the_link_is_a_disconnected_cable(guest: FakeGuest) -> None:
    lost: list[str] = []
    link = FakeLink()
    card = NetGuest(guest, link, device=Netvsc(link, Card(MAC, "card"), lost=lost.append))
    card.link.die()
    assert lost == ["gone"]
    assert unpack_from("<3I", card.indication()) == (7, 20, 0x4001000C)
    assert card.device.info("net0")["link"] == "down"


def test_an_mtu_change_negotiates_anew(card: NetGuest) -> None:
    card.control_halt()
    card.tell(nvsp.Revoke(nvsp.RECEIVE_BUFFER_ID))
    card.driver.send(pack("<IH", nvsp.Type.REVOKE_SEND_BUFFER, 0).ljust(nvsp.SIZE, b"\0"))
    card.link.feed(frame(to=MAC))  # must not touch the buffer that was revoked
    card.guest.close(card.driver)
    again = NetGuest(card.guest, card.link, device=card.device, mtu=4000)
    again.link.feed(frame(bytes(3900), to=MAC))
    assert again.frames() == [frame(bytes(3900), to=MAC)]
    assert again.device.mtu == 4000


def test_a_removed_card_unplugs_first_and_leaves_when_all_is_completed(card: NetGuest) -> None:
    gone: list[bool] = []
    card.link.feed(frame(to=MAC))
    (batch,) = card.batches()
    card.guest.bus.remove(card.device, lambda: gone.append(True))
    card.guest.loop.run()
    assert not card.guest.inbox, "it waits for the batch"
    assert unpack_from("<3I", card.indication()) == (7, 20, 0x4001000C)
    number = card.send(frame())
    assert card.completed() == [(number, 1)], "a packet that comes too late is completed"
    card.complete(batch)
    card.guest.advance(seconds=1.0)
    card.guest.accept_rescind()
    assert gone == [True]


def test_sub_channels_are_offered_as_promised_and_frames_spread(guest: FakeGuest) -> None:
    guest = FakeGuest(vp_count=2)
    card = NetGuest(guest, queues=2)
    answer = card.ask(nvsp.Subchannels(1, 3))
    assert unpack_from("<III", answer) == (nvsp.Type.SUBCHANNEL, 1, 1)
    sub = guest.open(card.device, ring_pages=33, sub_channel=1, target_vp=1)
    table = card.driver.take_packet()
    assert table is not None
    assert unpack_from("<III", table.payload) == (nvsp.Type.SEND_TABLE, 16, 40)
    assert unpack_from("<16I", table.payload, 40) == (0, 1) * 8
    table_at = 40
    rss = pack("<BBHHHIHHIHHIIII", 0x89, 2, 40, 0, 0, 0x1701, 4 * 128, 0, table_at, 40, 0, table_at + 512, 0, 0, 0)
    key = bytes(range(40))
    assert card.set(0x00010204, rss + pack("<128I", *([0, 1] * 64)) + key) == 0
    frames = [tcp(n) for n in range(1000, 1064)]
    card.link.feed(*frames)
    first, second = card.frames(), card.frames(sub)
    assert sorted(first + second) == sorted(frames)
    assert first
    assert second
    number = card.send(frame(b"by the second"), driver=sub)
    assert card.completed(sub) == [(number, 1)]
    card.link.feed(*frames)
    assert (card.frames(), card.frames(sub)) == (first, second), "a connection stays on its channel"
    guest.request(CloseChannel(card.driver.offer.relid))
    guest.accept_rescind(sub)
    assert card.device.channels == {}


def tcp(port: int) -> bytes:
    """A TCP segment from 10.0.2.2:80 to the guest's `port`."""
    head = pack(">BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, bytes([10, 0, 2, 2]), bytes([10, 0, 2, 15]))
    return frame(head + pack(">HH", 80, port) + bytes(16), to=MAC, source=PEER, kind=0x0800)


def test_a_second_request_for_sub_channels_is_refused(guest: FakeGuest) -> None:
    card = NetGuest(FakeGuest(vp_count=2), queues=2)
    card.ask(nvsp.Subchannels(1, 1))
    card.guest.skim()
    assert unpack_from("<II", card.ask(nvsp.Subchannels(1, 1)), 4) == (2, 0)


def test_checksums_and_tags_are_seen_to(card: NetGuest) -> None:
    card.send(frame(b"tagged"), info=info(6, 5 | 0x123 << 4))
    assert card.link.sent == [PEER + MAC + b"\x81\x00\xa1\x23" + frame(b"tagged")[12:]]


@pytest.mark.parametrize(
    "data",
    [
        bytes(20),
        packet(frame())[:-1],
        packet(frame(), info(0, 5))[:50],
        pack("<11I", 1, 100, 36, 0xFFFFFFF0, 0, 0, 0, 0, 0, 0, 0) + bytes(60),
        pack("<11I", 1, 4, 36, 20, 0, 0, 0, 0, 0, 0, 0) + bytes(60),
        pack("<11I", 2, 64, 36, 20, 0, 0, 0, 0, 0, 0, 0) + bytes(20),
        packet(frame(), pack("<III", 0, 0, 12)),
        packet(frame(), pack("<III", 12, 0, 12)),
        packet(frame(), pack("<IIII", 400, 0, 12, 0)),
        packet(frame()) * 65,
    ],
)
def test_a_malformed_message_is_completed_and_counted(card: NetGuest, data: bytes) -> None:
    number = card.send_rndis(data)
    assert card.completed() == [(number, 5)]
    assert card.link.sent == []
    assert card.device.refused == 1
    card.send(frame())
    assert card.link.sent == [frame()]


@pytest.mark.parametrize(("section", "size"), [(11, 6144), (200_000, 50), (0xFFFFFFFE, 50), (0, 6145), (0, 0)])
def test_a_section_outside_the_send_buffer_is_refused(card: NetGuest, section: int, size: int) -> None:
    message = pack("<IIII", nvsp.Type.RNDIS_PACKET, nvsp.DATA, section, size).ljust(nvsp.SIZE, b"\0")
    card.driver.send(message, flags=1, transaction_id=77)
    assert card.completed() == [(77, 5)]


def test_messages_out_of_order_are_refused(guest: FakeGuest) -> None:
    card = NetGuest(guest, start=False)
    card.driver.send(nvsp.LendBuffer(1, 1).message(), flags=1, transaction_id=9)
    assert guest.bus.refused["netvsc"] == 1
    assert unpack_from("<I", card.ask(nvsp.Init(0x60001, 0x60001)), 12) == (1,)
    assert unpack_from("<I", card.ask(nvsp.LendBuffer(0x777, 1)), 4) == (2,), "no such GPADL"
    number = card.send(frame())
    assert card.completed() == [(number, 1)]


def test_a_completion_of_nothing_is_refused(card: NetGuest) -> None:
    for number in (0, 1, 77, 1 << 63):
        card.driver.send(pack("<II", 108, 1), type=11, transaction_id=number)
    assert card.guest.bus.refused["netvsc"] == 4


def test_another_kernel_begins_while_the_guest_has_batches(card: NetGuest) -> None:
    card.link.feed(*[frame(bytes(1400), to=MAC)] * 3000)
    card.send(frame())
    card.guest.unload()
    card.link.coming.clear()
    again = NetGuest(card.guest, card.link, device=card.device)
    again.frames()
    again.link.feed(frame(to=MAC))
    assert again.frames() == [frame(to=MAC)]


def test_a_reset_forgets_the_driver(card: NetGuest) -> None:
    card.link.feed(*[frame(bytes(1400), to=MAC)] * 3000)
    card.guest.reset()
    again = NetGuest(card.guest, card.link, device=card.device)
    card.link.coming.clear()
    again.frames()
    again.link.feed(frame(to=MAC))
    assert again.frames() == [frame(to=MAC)]


def test_two_cards_are_two_instances(guest: FakeGuest) -> None:
    first, second = Netvsc(FakeLink(), Card(MAC, "a")), Netvsc(FakeLink(), Card(PEER, "b"))
    second.number = 1
    assert first.offer.instance != second.offer.instance
