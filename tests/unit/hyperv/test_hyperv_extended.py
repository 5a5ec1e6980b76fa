"""Extended hypercalls: free page reports, entry by entry, and what a bad one gets."""

from __future__ import annotations

from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import HostError
from pyvmm.hyperv import extended
from pyvmm.hyperv.extended import ExtendedCalls, entry_range, merged
from pyvmm.hyperv.hypercall import Hypercalls, page_code_beside_kvm
from pyvmm.hyperv.tlfs import HypercallStatus
from pyvmm.memory import GuestMemory, HostMemory, Region

MIB = 1 << 20
PAGE = 4096
RAM = 8 * MIB
INPUT = 0x3000
OUTPUT = 0x4000
QUERY = 0x8001
HINT = 0x8003
COLD = 2


class Host:
    """Guest memory of 8 MiB, and what was discarded of it."""

    def __init__(self) -> None:
        self.memory = GuestMemory.flat(RAM)
        self.discarded: list[tuple[int, int]] = []
        self.calls = Hypercalls(self.memory, lambda connection: False)
        self.calls.extended = self.extended = ExtendedCalls(self.memory, self.discard)

    def discard(self, gpa: int, size: int) -> int:
        self.discarded.append((gpa, size))
        return size

    def hint(self, *entries: int, kind: int = COLD, count: int | None = None, start: int = 0, at: int = INPUT) -> int:
        """The result of a hint with `entries`."""
        self.memory.write(at, pack(f"<{1 + len(entries)}Q", kind, *entries))
        return self.calls.call(control(HINT, len(entries) if count is None else count, start), at, 0)


@pytest.fixture
def host() -> Host:
    return Host()


def control(code: int, count: int = 0, start: int = 0, *, fast: int = 0) -> int:
    return code | fast << 16 | count << 32 | start << 48


def small(page: int, additional: int = 0) -> int:
    return page << 12 | additional


def large(gpa: int, additional: int = 0, *, gib: int = 0) -> int:
    return gpa | gib << 12 | 1 << 11 | additional


def split(value: int) -> tuple[int, int]:
    return value & 0xFFFF, value >> 32


# What can be asked


def test_the_capability_is_bit_8(host: Host) -> None:
    assert host.calls.call(control(QUERY), 0, OUTPUT) == HypercallStatus.SUCCESS
    assert host.memory.read(OUTPUT, 8) == pack("<Q", 1 << 8)


@pytest.mark.parametrize(
    ("word", "output", "status"),
    [
        (control(QUERY, fast=1), OUTPUT, HypercallStatus.INVALID_PARAMETER),
        (control(QUERY, count=1), OUTPUT, HypercallStatus.INVALID_HYPERCALL_INPUT),
        (control(QUERY, start=1), OUTPUT, HypercallStatus.INVALID_HYPERCALL_INPUT),
        (control(QUERY), OUTPUT + 4, HypercallStatus.INVALID_ALIGNMENT),
        (control(QUERY), RAM, HypercallStatus.INVALID_PARAMETER),
        (control(0x8002), OUTPUT, HypercallStatus.INVALID_HYPERCALL_CODE),
        (control(0x8000), OUTPUT, HypercallStatus.INVALID_HYPERCALL_CODE),
    ],
)
def test_bad_queries_get_a_status(host: Host, word: int, output: int, status: int) -> None:
    assert host.calls.call(word, 0, output) == status


def test_without_page_reporting_there_are_no_extended_calls(host: Host) -> None:
    host.calls.extended = None
    assert host.calls.call(control(QUERY), 0, OUTPUT) == HypercallStatus.INVALID_HYPERCALL_CODE


# Reports


def test_pages_and_those_after_them_are_discarded(host: Host) -> None:
    assert split(host.hint(small(16, 3))) == (HypercallStatus.SUCCESS, 1)
    assert host.discarded == [(16 * PAGE, 4 * PAGE)]


def test_large_pages_count_in_their_own_size(host: Host) -> None:
    assert split(host.hint(large(2 * MIB, 1))) == (HypercallStatus.SUCCESS, 1)
    assert host.discarded == [(2 * MIB, 4 * MIB)]


def test_a_gigabyte_entry_needs_a_gigabyte_of_ram(host: Host) -> None:
    assert entry_range(large(0, gib=1)) == (0, 1 << 30)
    assert split(host.hint(large(0, gib=1))) == (HypercallStatus.INVALID_PARAMETER, 0)


def test_neighbours_and_overlaps_are_discarded_in_one_call(host: Host) -> None:
    host.hint(large(4 * MIB), small(0, 1), large(2 * MIB), small(1, 2))
    assert host.discarded == [(0, 4 * PAGE), (2 * MIB, 4 * MIB)]


def test_a_call_goes_on_where_the_last_one_stopped(host: Host) -> None:
    entries = small(1), small(3), small(5)
    assert split(host.hint(*entries, start=1)) == (HypercallStatus.SUCCESS, 3)
    assert host.discarded == [(3 * PAGE, PAGE), (5 * PAGE, PAGE)]


def test_a_long_call_is_cut_short(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extended, "BYTES_AT_ONCE", 2 * MIB)
    assert split(host.hint(small(0), large(2 * MIB), large(4 * MIB))) == (HypercallStatus.SUCCESS, 2)
    assert split(host.hint(small(0), large(2 * MIB), large(4 * MIB), start=2)) == (HypercallStatus.SUCCESS, 3)
    assert host.extended.counters.discarded == PAGE + 4 * MIB


def test_511_entries_fill_the_page(host: Host) -> None:
    assert split(host.hint(*[small(2 * n) for n in range(511)])) == (HypercallStatus.SUCCESS, 511)
    assert len(host.discarded) == 511


def test_entries_before_a_bad_one_are_done(host: Host) -> None:
    assert split(host.hint(small(1), small(RAM // PAGE), small(2))) == (HypercallStatus.INVALID_PARAMETER, 1)
    assert host.discarded == [(PAGE, PAGE)]
    assert host.extended.counters.refused == 1


@pytest.mark.parametrize(
    "entry",
    [
        small(RAM // PAGE - 1, 1),  # its second page lies outside
        small((1 << 52) - 1, 2047),
        large(RAM),
        large(2 * MIB) | 1 << 13,  # reserved
        large(2 * MIB, gib=1),  # not a multiple of 1 GiB
    ],
)
def test_what_is_not_whole_ram_is_refused(host: Host, entry: int) -> None:
    assert split(host.hint(entry)) == (HypercallStatus.INVALID_PARAMETER, 0)
    assert host.discarded == []


@pytest.mark.parametrize("kind", [0, 1, 3, COLD | 4, COLD | 1 << 63])
def test_only_cold_discard_is_taken(host: Host, kind: int) -> None:
    assert split(host.hint(small(1), kind=kind)) == (HypercallStatus.INVALID_PARAMETER, 0)


@pytest.mark.parametrize(("count", "start"), [(0, 0), (1, 1), (1, 2), (0, 1)])
def test_bad_repetitions_are_refused(host: Host, count: int, start: int) -> None:
    assert host.hint(small(1), count=count, start=start) == HypercallStatus.INVALID_HYPERCALL_INPUT


@pytest.mark.parametrize(("gpa", "count"), [(INPUT + 4, 1), (INPUT + PAGE - 8, 1), (INPUT, 512), (INPUT + 8, 511)])
def test_the_block_lies_aligned_in_one_page(host: Host, gpa: int, count: int) -> None:
    assert host.calls.call(control(HINT, count), gpa, 0) == HypercallStatus.INVALID_ALIGNMENT


def test_a_block_outside_ram_is_refused(host: Host) -> None:
    assert host.calls.call(control(HINT, 1), RAM, 0) == HypercallStatus.INVALID_PARAMETER


def test_a_host_that_cannot_discard_fails_nothing_in_the_guest(host: Host) -> None:
    def refuse(gpa: int, size: int) -> int:
        raise HostError("madvise")

    host.calls.extended = ExtendedCalls(host.memory, refuse)
    assert split(host.hint(small(1))) == (HypercallStatus.SUCCESS, 1)
    assert host.calls.extended.counters.failed == 1


def test_a_range_may_span_adjacent_regions() -> None:
    host = Host()
    host.memory.add(Region(RAM, 2 * MIB, HostMemory(2 * MIB)))
    assert split(host.hint(large(RAM - 2 * MIB, 1))) == (HypercallStatus.SUCCESS, 1)
    assert host.discarded == [(RAM - 2 * MIB, 4 * MIB)]


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_no_call_raises(word: int, input: int, output: int) -> None:
    host = Host()
    assert host.calls.call(word & ~0xFFFF | HINT, input, output) >= 0


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=40), st.integers(0, 39))
def test_only_ram_is_discarded_and_each_byte_once_a_call(entries: list[int], start: int) -> None:
    host = Host()
    host.hint(*entries, start=start)
    end = 0
    for gpa, size in host.discarded:
        assert end <= gpa
        end = gpa + size
    assert end <= RAM


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8))))
def test_merged_ranges_are_the_same_bytes(ranges: list[tuple[int, int]]) -> None:
    wanted = {byte for gpa, size in ranges for byte in range(gpa, gpa + size)}
    result = merged(ranges)
    assert {byte for gpa, size in result for byte in range(gpa, gpa + size)} == wanted
    assert all(a + n < b for (a, n), (b, _) in pairwise(result))


# The page beside KVM's


@pytest.mark.parametrize("instruction", ["0f 01 c1", "0f 01 d9"])
def test_the_page_keeps_kvms_call_and_adds_a_port(instruction: str) -> None:
    code = page_code_beside_kvm(bytes.fromhex(instruction) + b"\xc3".ljust(PAGE - 3, b"\0"), port=0xEC)
    assert code is not None
    assert len(code) == PAGE
    assert code.startswith(bytes.fromhex(f"f3 0f 1e fa 66 85 c9 78 04 {instruction} c3 e6 ec c3"))


def test_the_page_of_a_32_bit_guest_looks_at_ax() -> None:
    code = page_code_beside_kvm(bytes.fromhex("0f 01 d9 c3").ljust(PAGE, b"\0"), port=0xEC, long_mode=False)
    assert code is not None and code.startswith(bytes.fromhex("f3 0f 1e fb 66 85 c0 78 04 0f 01 d9 c3 e7 ec c3"))


@pytest.mark.parametrize("page", ["90 90 90 c3", "0f 01 c1 90", "0d 00 00 00 80 0f 01 c1 c3"])
def test_an_unknown_page_is_left_alone(page: str) -> None:
    assert page_code_beside_kvm(bytes.fromhex(page).ljust(PAGE, b"\0")) is None
