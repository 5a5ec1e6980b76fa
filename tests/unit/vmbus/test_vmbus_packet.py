"""Descriptors of packets: which ranges of memory they name, and what is refused."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import GuestError, GuestMemoryError, GuestProtocolError, WireError
from pyvmm.memory import GuestMemory, HostMemory, Region
from pyvmm.vmbus.gpadl import GpaRange
from pyvmm.vmbus.packet import DIRECT_PAGES_LIMIT, Packet, PacketType, direct_views, parse_direct, transfer_pages
from pyvmm.vmbus.ring import Ring, RingReader, RingWriter

MIB = 1 << 20


def two_regions() -> GuestMemory:
    """RAM in two regions side by side, each page with its number in all words."""
    half = MIB // 2
    memory = GuestMemory([Region(gpa, half, HostMemory(half)) for gpa in (0, half)])
    for page in range(MIB // 4096):
        memory.write(page * 4096, pack("<Q", page) * 512)
    return memory


TWO_REGIONS = two_regions()


def direct(*ranges: tuple[int, int, list[int]], count: int | None = None) -> bytes:
    data = pack("<II", 0, len(ranges) if count is None else count)
    return data + b"".join(pack(f"<II{len(frames)}Q", length, offset, *frames) for length, offset, frames in ranges)


def test_ranges_of_a_direct_packet_name_bytes_in_scattered_pages() -> None:
    memory = GuestMemory.flat(MIB)
    memory.write(0x8FFC, b"abcd")
    memory.write(0x6000, b"efgh")
    memory.write(0x3010, b"ijkl")
    first, second = parse_direct(direct((8, 0xFFC, [8, 6]), (4, 0x10, [3])))
    assert (first, second) == (GpaRange(8, 0xFFC, [0x8000, 0x6000]), GpaRange(4, 0x10, [0x3000]))
    assert first.read(memory) + second.read(memory) == b"abcdefghijkl"


def test_direct_packet_without_ranges_has_none() -> None:
    assert parse_direct(direct()) == []


@pytest.mark.parametrize(
    "descriptor",
    [
        b"",
        bytes(7),
        direct(count=1),
        direct((4096, 0, [1]))[:-1],
        direct((4096, 0, [1]))[:-8],
        direct((4096, 0, [1]), count=2),
        direct((4097, 0, [1])),
        direct((4096, 1, [1])),
        direct((1 << 22, 0, [1])),
    ],
)
def test_ranges_that_do_not_fit_into_the_descriptor_are_refused(descriptor: bytes) -> None:
    with pytest.raises(WireError):
        parse_direct(descriptor)


@pytest.mark.parametrize(
    "descriptor",
    [
        direct((0, 0, [])),
        direct((0, 0, []), count=0xFFFFFFFF),
        direct((1, 4096, [1, 2])),
        direct((1, 0xFFFFFFFF, [1])),
        direct((0xFFFFFFFF, 0, [1])),
        direct((DIRECT_PAGES_LIMIT * 4096 + 1, 0, [1] * (DIRECT_PAGES_LIMIT + 1))),
        direct(*[(1, 0, [1])] * (DIRECT_PAGES_LIMIT + 1)),
    ],
)
def test_ranges_that_make_no_sense_or_are_too_many_are_refused(descriptor: bytes) -> None:
    with pytest.raises(GuestProtocolError):
        parse_direct(descriptor)


@pytest.mark.parametrize("frame", [0x100, (1 << 52) - 1, (1 << 64) - 1])
def test_range_that_is_not_ram_is_noticed_when_it_is_read(frame: int) -> None:
    (found,) = parse_direct(direct((4, 0, [frame])))
    with pytest.raises(GuestMemoryError):
        found.read(GuestMemory.flat(MIB))
    with pytest.raises(GuestMemoryError):
        found.views(GuestMemory.flat(MIB))


def packet_of(*ranges: tuple[int, int, list[int]]) -> Packet:
    return Packet(PacketType.GPA_DIRECT, 1, 1, b"", direct(*ranges))


def test_views_of_a_direct_packet_are_the_guests_memory_with_neighbours_merged() -> None:
    memory = GuestMemory.flat(MIB)
    views = direct_views(packet_of((5 * 4096, 8, [3, 4, 5, 9, 8, 7]), (16, 4090, [20, 30])), memory, MIB)
    assert [len(view) for view in views] == [3 * 4096 - 8, 4096, 4096, 8, 6, 10]
    for number, view in enumerate(views, 1):
        view[-1] = number
    places = (0x5FFF, 0x9FFF, 0x8FFF, 0x7007, 0x14FFF, 0x1E009)
    assert [memory.read(gpa, 1)[0] for gpa in places] == [1, 2, 3, 4, 5, 6]


def test_views_cross_from_one_region_into_the_next_and_need_ram_between() -> None:
    memory = GuestMemory([Region(0x1000 * n, 0x2000, HostMemory(0x2000)) for n in (0, 2, 8)])
    views = direct_views(packet_of((0x4000, 0, [1, 2, 3, 8])), memory, MIB)
    assert [len(view) for view in views] == [0x1000, 0x2000, 0x1000]
    with pytest.raises(GuestMemoryError, match="not guest RAM"):
        direct_views(packet_of((0x2000, 0, [3, 4])), memory, MIB)


def test_views_are_limited_by_their_bytes() -> None:
    with pytest.raises(GuestProtocolError, match="8192 bytes, at most 8191"):
        direct_views(packet_of((4096, 0, [1]), (4096, 0, [2])), GuestMemory.flat(MIB), 8191)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=9), st.integers(0, 4095), st.integers(1, 4096))
def test_merged_runs_hold_the_bytes_that_each_page_alone_would(frames: list[int], offset: int, last: int) -> None:
    length = max(1, (len(frames) - 1) * 4096 - offset + last)
    frames = frames[: -(-(offset + length) // 4096)] + [0] * (-(-(offset + length) // 4096) - len(frames))
    expected = [frame * 4096 + at for frame in frames for at in range(4096)][offset : offset + length]
    runs = GpaRange(length, offset, [frame * 4096 for frame in frames]).gpas()
    assert [gpa + at for gpa, size in runs for at in range(size)] == expected


@given(st.binary(max_size=200))
def test_any_descriptor_parses_or_raises_guest_error(data: bytes) -> None:
    try:
        ranges = parse_direct(data)
    except GuestError:
        return
    assert all(0 < each.length <= len(each.pages) * 4096 for each in ranges)
    try:
        views = direct_views(Packet(PacketType.GPA_DIRECT, 0, 0, b"", data), GuestMemory.flat(MIB), MIB)
    except GuestError:
        return
    assert sum(map(len, views)) == sum(each.length for each in ranges)


@given(st.binary(max_size=100), st.binary(max_size=9).map(lambda data: data * 8))
def test_a_packet_with_a_descriptor_comes_out_of_a_ring_as_it_went_in(payload: bytes, descriptor: bytes) -> None:
    memory = GuestMemory.flat(MIB)
    writer, reader = RingWriter(Ring(memory, [0, 0x1000])), RingReader(Ring(memory, [0, 0x1000]))
    payload += bytes(-len(payload) % 8)
    packet = Packet(PacketType.TRANSFER_PAGES, 1, 7, payload, descriptor)
    for _ in range(50):  # several times round
        assert writer.has_room(packet.size)
        writer.write(packet)
        assert reader.read(9) == [packet]
        reader.publish()


def test_transfer_pages_lie_as_in_c() -> None:
    descriptor = transfer_pages(0xCAFE, [(100, 0), (200, 4096)])
    assert descriptor == bytes.fromhex("feca 00 00 02000000 64000000 00000000 c8000000 00100000")


@given(
    st.lists(
        st.tuples(st.integers(1, 9000), st.integers(0, 4095), st.integers(0, 300), st.integers(-1, 2)), max_size=6
    ),
    st.integers(0, 40),
)
def test_views_of_many_ranges_are_those_of_each(shapes: list[tuple[int, int, int, int]], cut: int) -> None:
    memory = GuestMemory(
        [Region(0, MIB // 2, HostMemory(MIB // 2)), Region(MIB // 2, MIB // 2, HostMemory(MIB // 2))]
    )
    for page in range(256):
        memory.write(page * 4096, pack("<Q", page) * 512)
    ranges = []
    for length, offset, first, step in shapes:
        pages = -(-(offset + length) // 4096)
        ranges.append((length, offset, [abs(first + step * n) for n in range(pages)]))
    data = direct(*ranges)
    data = data[: len(data) - 8 * (cut // 30)]
    packet = Packet(PacketType.GPA_DIRECT, 0, 0, b"", data)
    try:
        wanted = b"".join(each.read(TWO_REGIONS) for each in parse_direct(data))
    except GuestError:
        with pytest.raises(GuestError):
            direct_views(packet, TWO_REGIONS, MIB)
    else:
        assert b"".join(direct_views(packet, TWO_REGIONS, MIB)) == wanted
