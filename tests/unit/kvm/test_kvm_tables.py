"""Tables packed for KVM: CPUID, routes, MSR filters, and the ring of coalesced writes."""

from __future__ import annotations

import mmap
from struct import pack_into, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import HostError
from pyvmm.kvm.abi import RING_ENTRIES, IrqchipId
from pyvmm.kvm.coalesced import OVERFLOW_LIMIT, CoalescedRing, CoalescedWrite
from pyvmm.kvm.cpuid import CpuidEntry, pack_cpuid, unpack_cpuid
from pyvmm.kvm.irq import IrqRoute, pack_routes, pc_routes
from pyvmm.kvm.msr_filter import MsrRange, build_filter

RING = 2 * 4096


def test_cpuid_entries_survive_packing() -> None:
    entries = [CpuidEntry(7, 1, 1, 2, 3, 4, 5), CpuidEntry(0x40000000, eax=0xFFFFFFFF)]
    assert unpack_cpuid(pack_cpuid(entries)) == entries
    assert [e.index_matters for e in entries] == [True, False]


def test_an_msi_route_splits_its_address() -> None:
    table = pack_routes([IrqRoute.msi(24, 0x1_FEE0_3000, 0x41)])
    assert unpack_from("<10I", table) == (1, 0, 24, 2, 0, 0, 0xFEE03000, 1, 0x41, 0)
    assert len(table) == 8 + 48


def test_a_sint_route_names_vcpu_and_sint() -> None:
    assert unpack_from("<4I2I", pack_routes([IrqRoute.hv_sint(25, 1, 2)]), 8) == (25, 4, 0, 0, 1, 2)


def test_a_pc_has_sixteen_pic_and_twentyfour_ioapic_pins() -> None:
    routes = pc_routes()
    assert len(routes) == 40
    assert IrqRoute.irqchip(9, IrqchipId.PIC_SLAVE, 1) in routes
    assert IrqRoute.irqchip(23, IrqchipId.IOAPIC, 23) in routes


def test_a_denied_range_has_no_bit_set() -> None:
    request, bitmaps = build_filter([MsrRange.deny(0x40000000, 9, write=False)])
    first = request.ranges[0]
    assert (request.flags, first.flags, first.nmsrs, first.base) == (0, 1, 9, 0x40000000)
    assert bitmaps[0].raw == b"\0\0"


def test_deny_only_leaves_the_rest_to_kvm() -> None:
    assert MsrRange.deny_only([0x100, 0x109], 0x100, 16).bitmap == b"\xfe\xfd"


@pytest.mark.parametrize(
    "ranges",
    [[MsrRange.deny(0)] * 17, [MsrRange(0, 9, b"\0")], [MsrRange.deny(0, 0x600 * 8 + 8)]],
    ids=["too many", "short bitmap", "long bitmap"],
)
def test_a_filter_kvm_would_refuse_is_refused_with_words(ranges: list[MsrRange]) -> None:
    with pytest.raises(HostError, match=r"KVM takes"):
        build_filter(ranges)


def ring_with(first: int, writes: list[tuple[int, bytes, int]]) -> tuple[mmap.mmap, CoalescedRing]:
    area = mmap.mmap(-1, 3 * 4096)
    for n, (addr, data, pio) in enumerate(writes):
        slot = (first + n) % RING_ENTRIES
        pack_into("<QII8s", area, RING + 8 + slot * 24, addr, len(data), pio, data)
    pack_into("<II", area, RING, first, (first + len(writes)) % RING_ENTRIES)
    return area, CoalescedRing(area, RING)


def test_queued_writes_come_oldest_first_and_once() -> None:
    area, ring = ring_with(0, [(0x3F8, b"a", 1), (0xE0000000, b"wxyz", 0)])
    assert ring.drain() == [
        CoalescedWrite(0x3F8, 1, b"a", True),
        CoalescedWrite(0xE0000000, 4, b"wxyz", False),
    ]
    assert ring.drain() == []
    assert unpack_from("<II", area, RING) == (2, 2)


def test_the_ring_wraps_where_the_kernels_does() -> None:
    assert RING_ENTRIES == 170
    _, ring = ring_with(RING_ENTRIES - 1, [(1, b"a", 1), (2, b"b", 1)])
    assert [w.addr for w in ring.drain()] == [1, 2]


def test_writes_to_one_place_in_a_row_come_as_one() -> None:
    a, b, wide = (0x3F8, b"a", 1), (0x3F8, b"b", 1), (0x3F8, b"wxyz", 0)
    _, ring = ring_with(RING_ENTRIES - 1, [a, b])
    assert ring.drain() == [CoalescedWrite(0x3F8, 1, b"ab", True)]
    _, ring = ring_with(5, [a, b, wide, wide, a, (0x70, b"c", 1), b, a])
    assert ring.drain() == [
        CoalescedWrite(0x3F8, 1, b"ab", True),
        CoalescedWrite(0x3F8, 4, b"wxyzwxyz", False),
        CoalescedWrite(0x3F8, 1, b"a", True),
        CoalescedWrite(0x70, 1, b"c", True),
        CoalescedWrite(0x3F8, 1, b"ba", True),
    ]


@given(st.lists(st.tuples(st.sampled_from([1, 2, 0x3F8]), st.binary(min_size=1, max_size=8), st.booleans())))
def test_runs_hold_what_was_queued_and_in_its_order(writes: list[tuple[int, bytes, bool]]) -> None:
    writes = writes[: RING_ENTRIES - 1]
    _, ring = ring_with(100, [(addr, data, int(pio)) for addr, data, pio in writes])
    single = [
        (run.addr, run.data[at : at + run.size], run.pio)
        for run in ring.drain()
        for at in range(0, len(run.data), run.size)
    ]
    assert single == writes


def test_what_was_spilled_comes_before_what_is_queued_now() -> None:
    area, ring = ring_with(RING_ENTRIES - 1, [(1, b"a", 1), (1, b"b", 1)])
    assert ring.drain_overflow(2, ord("c"), pio=False)
    assert unpack_from("<II", area, RING) == (1, 1), "there is room in the ring"
    pack_into("<QII8s", area, RING + 8 + 24, 2, 1, 0, b"d")
    pack_into("<I", area, RING + 4, 2)
    assert ring.drain() == [CoalescedWrite(1, 1, b"ab", True), CoalescedWrite(2, 1, b"cd", False)]
    assert ring.drain() == []


def test_the_overflow_queue_is_bounded_until_it_is_drained() -> None:
    _, ring = ring_with(0, [])
    taken = 0
    while ring.drain_overflow(2, ord("c"), pio=False):
        taken += 1
    assert taken == -(-OVERFLOW_LIMIT // 24)
    assert ring.drain() == [CoalescedWrite(2, 1, b"c" * taken, False)]
    assert ring.drain_overflow(2, ord("c"), pio=False)


def test_a_released_ring_lets_its_page_go() -> None:
    area, ring = ring_with(0, [])
    ring.release()
    area.close()
