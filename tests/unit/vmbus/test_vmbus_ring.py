"""The host's ends of a ring, against the guest's ends of tests/support/fake_ring.py."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import GuestMemoryError
from pyvmm.memory import GuestMemory
from pyvmm.vmbus.packet import Packet, PacketType
from pyvmm.vmbus.ring import READ_INDEX, WRITE_INDEX, BrokenRing, Ring, RingReader, RingWriter, packet_size
from tests.support.fake_ring import MASK, PENDING, READ, WRITE, GuestRing

PAGES = [0x3000, 0x9000, 0x5000, 0x6000]  # header; scattered, then two neighbours
MEMORY = GuestMemory.flat(1 << 20)


class Pair:
    """A ring between the guest and the host, both indices at `start`."""

    def __init__(self, pages: list[int] = PAGES, start: int = 0) -> None:
        self.guest = GuestRing(MEMORY, pages)
        self.guest.set(READ, start)
        self.guest.set(WRITE, start)
        self.ring = Ring(MEMORY, pages)

    @property
    def reader(self) -> RingReader:
        return RingReader(self.ring)

    @property
    def writer(self) -> RingWriter:
        return RingWriter(self.ring)


def in_band(payload: bytes, transaction_id: int = 0) -> Packet:
    return Packet(PacketType.IN_BAND, 0, transaction_id, payload)


def test_packet_of_the_guest_is_read() -> None:
    pair = Pair()
    pair.guest.put(b"hello", flags=1, transaction_id=77)
    reader = pair.reader
    assert reader.read(10) == [Packet(6, 1, 77, b"hello\0\0\0")]
    assert pair.guest.get(READ) == 0
    reader.publish()
    assert pair.guest.get(READ) == pair.guest.get(WRITE)


def test_packet_of_the_host_is_read_by_the_guest() -> None:
    pair = Pair()
    assert pair.writer.write(in_band(b"hello", 5))
    taken = pair.guest.take()
    assert taken is not None
    assert (taken[0].type, taken[0].transaction_id, taken[0].payload) == (6, 5, b"hello\0\0\0")


@pytest.mark.parametrize("back", range(0, 48, 8))
def test_packet_wraps_anywhere_even_in_its_header(back: int) -> None:
    size = (len(PAGES) - 1) * 4096
    incoming, outgoing = (
        Pair(start=size - back if back else 0),
        Pair([p + 0x10000 for p in PAGES], size - back if back else 0),
    )
    incoming.guest.put(b"0123456789abcdef")
    assert [p.payload for p in incoming.reader.read(9)] == [b"0123456789abcdef"]
    outgoing.writer.write(in_band(b"0123456789abcdef"))
    taken = outgoing.guest.take()
    assert taken is not None and taken[0].payload == b"0123456789abcdef"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3 * 512 - 1),
    st.lists(st.one_of(st.binary(max_size=3000), st.integers(1, 5)), max_size=30),
)
def test_any_sequence_of_writes_and_reads_round_trips(start: int, steps: list[bytes | int]) -> None:
    to_host, to_guest = Pair(start=start * 8), Pair([p + 0x10000 for p in PAGES], start * 8)
    reader, writer = to_host.reader, to_guest.writer
    waiting_in: list[bytes] = []
    waiting_out: list[bytes] = []
    for step in steps:
        if isinstance(step, bytes):
            padded = step + bytes(-len(step) % 8)
            if to_host.guest.put(step) is not None:
                waiting_in.append(padded)
            if writer.has_room(len(step)):
                assert len(padded) <= writer.room()
                writer.write(in_band(step))
                waiting_out.append(padded)
            else:
                assert len(padded) > writer.room()
        else:
            got = [p.payload for p in reader.read(step)]
            reader.publish()
            assert got == waiting_in[:step]
            del waiting_in[:step]
            for _ in range(step):
                taken = to_guest.guest.take()
                assert (taken is None) == (not waiting_out)
                if taken:
                    assert taken[0].payload == waiting_out.pop(0)
    assert [p.payload for p in reader.read(99)] == waiting_in


@pytest.mark.parametrize("back", [0, 8, 16, 24, 4080, 4096, 9000 & ~7])
def test_packets_longer_and_shorter_than_what_is_copied_at_once(back: int) -> None:
    memory = GuestMemory.flat(1 << 20)
    pages = [0x8000 + 0x2000 * page for page in range(9)]
    ring = Ring(memory, pages)
    ring.words[WRITE_INDEX] = ring.words[READ_INDEX] = (ring.size - back) % ring.size
    writer, reader = RingWriter(Ring(memory, pages)), RingReader(Ring(memory, pages))
    payloads = [bytes([size % 251]) * size for size in (8, 1496, 5000, 2400, 16, 4096, 4080, 0, 6000)]
    for number, payload in enumerate(payloads):
        writer.write(in_band(payload, number))
    read = [*reader.read(4), *reader.read(99)]
    assert [packet.transaction_id for packet in read] == list(range(len(payloads)))
    assert [packet.payload for packet in read] == payloads
    assert not reader.available()


def test_ring_is_never_filled_to_the_last_byte() -> None:
    pair = Pair(PAGES[:2])
    writer = pair.writer
    assert writer.room() == 4096 - 24 - 8
    assert not writer.has_room(4096 - 24)
    writer.write(in_band(bytes(writer.room())))
    assert writer.room() == 0
    assert not writer.has_room(0)
    assert pair.guest.used() == 4088


# Signals


def test_only_the_first_packet_in_an_empty_ring_signals() -> None:
    writer = Pair().writer
    assert [writer.write(in_band(b"x")) for _ in range(3)] == [True, False, False]


def test_masked_guest_is_not_signalled() -> None:
    pair = Pair()
    pair.guest.set(MASK, 1)
    assert not pair.writer.write(in_band(b"x"))


def test_unmask_returns_whether_packets_came_meanwhile() -> None:
    pair = Pair()
    reader = pair.reader
    reader.mask()
    assert pair.guest.get(MASK) == 1
    assert pair.guest.put(b"unsignalled") is False
    assert reader.unmask()
    assert pair.guest.get(MASK) == 0
    reader.read(9)
    assert not reader.unmask()


def test_blocked_guest_is_signalled_once_there_is_more_room_than_it_needs() -> None:
    pair = Pair(PAGES[:2])
    reader = pair.reader
    for _ in range(3):
        pair.guest.put(bytes(1000))
    assert pair.guest.put(bytes(1000)) is None
    pair.guest.set(PENDING, 1024 * 2)
    reader.read(1)
    assert not reader.publish()
    reader.read(1)
    assert reader.publish()
    assert not reader.publish()


def test_host_asks_for_room_and_takes_the_request_back() -> None:
    pair = Pair(PAGES[:2])
    writer = pair.writer
    writer.write(in_band(bytes(3000)))
    assert not writer.request_room(2000)
    assert pair.guest.get(PENDING) == packet_size(2000)
    taken = pair.guest.take()
    assert taken is not None and taken[1], "the guest's own rule says to signal now"
    assert writer.request_room(2000)
    writer.clear_request()
    assert pair.guest.get(PENDING) == 0


# A hostile guest


@pytest.mark.parametrize("index", [3 * 4096, 0xFFFFFFF8, 4, 0x80000000])
@pytest.mark.parametrize("word", [READ, WRITE])
def test_impossible_index_breaks_the_ring(word: int, index: int) -> None:
    pair = Pair()
    reader, writer = pair.reader, pair.writer
    pair.guest.set(word, index)
    with pytest.raises(BrokenRing):
        (writer.room if word == READ else lambda: reader.read(1))()


@pytest.mark.parametrize(
    ("offset", "length", "used"),
    [
        (1, 4, 48),  # data inside the descriptor
        (0, 0, 48),
        (3, 2, 48),  # ends before its data
        (2, 6, 48),  # trailer outside of what was written
        (2, 0xFFFF, 48),
        (0xFFFF, 0xFFFF, 48),
        (2, 2, 16),  # no room for a trailer
        (2, 2, 8),
    ],
)
def test_impossible_packet_breaks_the_ring(offset: int, length: int, used: int) -> None:
    pair = Pair()
    pair.guest.poke(0, struct.pack("<HHHHQ", 6, offset, length, 0, 0))
    pair.guest.set(WRITE, used)
    with pytest.raises(BrokenRing):
        pair.reader.read(1)


def test_packets_before_the_break_are_delivered() -> None:
    pair = Pair()
    pair.guest.put(b"good")
    start = pair.guest.get(WRITE)
    pair.guest.poke(start, struct.pack("<HHHHQ", 6, 0, 0, 0, 0))
    pair.guest.set(WRITE, start + 48)
    reader = pair.reader
    assert len(reader.read(9)) == 1
    with pytest.raises(BrokenRing):
        reader.read(9)


def test_guest_cannot_move_the_hosts_own_index() -> None:
    pair = Pair()
    pair.guest.put(b"first")
    reader = pair.reader
    reader.read(1)
    reader.publish()
    pair.guest.set(READ, 0)
    pair.guest.put(b"second")
    assert [p.payload[:6] for p in reader.read(9)] == [b"second"]


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=64, max_size=64), st.integers(0, 1535), st.integers(0, 1535))
def test_random_bytes_end_in_packets_or_a_broken_ring(noise: bytes, read: int, write: int) -> None:
    pair = Pair(start=read * 8)
    reader = pair.reader
    pair.guest.poke(read * 8, noise)
    pair.guest.set(WRITE, write * 8)
    try:
        for _ in range(600):
            if not reader.read(8):
                break
            reader.publish()
        else:
            raise AssertionError("endless")
    except BrokenRing:
        pass


def test_ring_needs_data_pages_that_are_ram() -> None:
    with pytest.raises(BrokenRing):
        Ring(MEMORY, [0x1000])
    with pytest.raises(GuestMemoryError):
        Ring(MEMORY, [0x1000, 1 << 20])
