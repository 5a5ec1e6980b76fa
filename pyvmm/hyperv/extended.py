"""Extended hypercalls, 0x8001 and up: free page reporting, with which a guest gives its free memory to the host.

Source: Linux include/asm-generic/hyperv-tlfs.h, struct hv_memory_hint, union hv_gpa_page_range;
drivers/hv/hv_balloon.c, hv_free_page_report(). The published TLFS does not describe them.

    0x8001 query capabilities   output: u64, bit 8: cold discard hints are supported
    0x8003 memory heat hint     input: u64 with the kind of hint in bits 0..1, then an entry for each repetition

            63                    21 20     13 12  11 10         0
    4 KiB   |       base page number, 52 bits    |  0 | additional |       both: base and `additional` pages after it
    large   | base / 2 MiB, 43 bits | reserved |sz| 1 | additional |       sz: 0 = 2 MiB, 1 = 1 GiB

Linux holds reported pages back from its allocator until the call returns, so they must be discarded within the call,
on the vCPU's thread: a moment later they may hold data again. Offered by CPUID 0x40000003 EBX bit 20.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from struct import unpack_from

from pyvmm.bits import Bits, bit, bits
from pyvmm.errors import HostError
from pyvmm.hyperv import events as trace
from pyvmm.hyperv.tlfs import ExtendedCapability, HeatHint, HypercallCode, HypercallControl, HypercallStatus
from pyvmm.memory import PAGE_SIZE, GuestMemory

FIRST_EXTENDED = 0x8000

HINT_HEAD_SIZE = 8
ENTRY_SIZE = 8

BYTES_AT_ONCE = 1 << 30
"""Bytes after which a call returns and leaves the remaining entries to the guest's next call (a rep hypercall).
Discarding dirty memory takes the host a while, and meanwhile the vCPU takes no interrupts."""

LARGE_SHIFTS = (21, 30)

Discard = Callable[[int, int], int]
"""discard(gpa, bytes): return RAM to the host; returns the bytes discarded. On vCPU threads; may raise HostError."""


class HeatHintHead(Bits):
    """The first qword of struct hv_memory_hint."""

    type = bits(0, 2)
    reserved = bits(2, 62)


class PageEntry(Bits):
    """union hv_gpa_page_range, as 4 KiB pages."""

    additional = bits(0, 11)
    large = bit(11)
    base = bits(12, 52)


class LargePageEntry(Bits):
    """union hv_gpa_page_range, as large pages."""

    additional = bits(0, 11)
    large = bit(11)
    page_size = bit(12)
    reserved = bits(13, 8)
    base = bits(21, 43)


@dataclass(slots=True)
class ReportCounters:
    """Counters of free page reporting since power-on, for `info` and tests."""

    calls: int = 0
    discarded: int = 0  # bytes
    refused: int = 0  # entries
    failed: int = 0  # merged ranges that the host could not discard


def entry_range(entry: int) -> tuple[int, int] | None:
    """Decode an entry to (gpa, bytes); None if reserved bits are set or the base is misaligned."""
    pages = PageEntry(entry)
    if not pages.large:
        return pages.base * PAGE_SIZE, (pages.additional + 1) * PAGE_SIZE
    large = LargePageEntry(entry)
    shift = LARGE_SHIFTS[large.page_size]
    gpa = large.base << LARGE_SHIFTS[0]
    if large.reserved or gpa % (1 << shift):
        return None
    return gpa, (large.additional + 1) << shift


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort `ranges` of (gpa, bytes) and merge those that touch or overlap."""
    result: list[tuple[int, int]] = []
    for gpa, size in sorted(ranges):
        if result and gpa <= (end := result[-1][0] + result[-1][1]):
            result[-1] = result[-1][0], max(end, gpa + size) - result[-1][0]
        else:
            result.append((gpa, size))
    return result


class ExtendedCalls:
    """Handles extended hypercalls on the vCPU thread that made them; several threads may be in here at once.

    Pages that the balloon holds need no check: to discard them a second time changes nothing.
    """

    def __init__(self, memory: GuestMemory, discard: Discard) -> None:
        self.memory = memory
        self.counters = ReportCounters()
        self._discard = discard
        self._lock = threading.Lock()  # of the counters

    def call(self, word: HypercallControl, input: int, output: int) -> int:
        """The result for RAX. `input` and `output` are gpas. Raises GuestMemoryError for a bad one."""
        match word.code:
            case HypercallCode.EXT_QUERY_CAPABILITIES | HypercallCode.EXT_MEMORY_HEAT_HINT if word.fast:
                return HypercallStatus.INVALID_PARAMETER  # as KVM answers, which passes on only the others
            case HypercallCode.EXT_QUERY_CAPABILITIES if word.rep_count or word.rep_start:
                return HypercallStatus.INVALID_HYPERCALL_INPUT
            case HypercallCode.EXT_QUERY_CAPABILITIES if output % 8:
                return HypercallStatus.INVALID_ALIGNMENT
            case HypercallCode.EXT_QUERY_CAPABILITIES:
                self.memory.write(output, int(ExtendedCapability.MEMORY_COLD_DISCARD_HINT).to_bytes(8, "little"))
                return HypercallStatus.SUCCESS
            case HypercallCode.EXT_MEMORY_HEAT_HINT:
                return self._heat_hint(word.rep_count, word.rep_start, input)
        return HypercallStatus.INVALID_HYPERCALL_CODE

    def _heat_hint(self, count: int, start: int, gpa: int) -> int:
        if start >= count:
            return HypercallStatus.INVALID_HYPERCALL_INPUT
        size = HINT_HEAD_SIZE + count * ENTRY_SIZE
        if gpa % 8 or gpa % PAGE_SIZE + size > PAGE_SIZE:
            return HypercallStatus.INVALID_ALIGNMENT  # a block of parameters may not cross a page
        block = self.memory.read(gpa, size)  # one copy: the guest may change it under us
        head = HeatHintHead.from_bytes(block[:HINT_HEAD_SIZE], "little")
        if head.type != HeatHint.COLD_DISCARD or head.reserved:
            return _result(HypercallStatus.INVALID_PARAMETER, start)
        entries: tuple[int, ...] = unpack_from(f"<{count - start}Q", block, HINT_HEAD_SIZE + start * ENTRY_SIZE)
        return self._take(entries, start)

    def _take(self, entries: tuple[int, ...], start: int) -> int:
        """Discard the ranges in `entries`, the first of which is repetition `start`."""
        wanted: list[tuple[int, int]] = []
        total, status = 0, HypercallStatus.SUCCESS
        for entry in entries:
            meant = entry_range(entry)
            if meant is None or not self._is_ram(*meant):
                status = HypercallStatus.INVALID_PARAMETER
                break
            wanted.append(meant)
            total += meant[1]
            if total >= BYTES_AT_ONCE:
                break
        done = start + len(wanted)
        discarded = failed = calls = 0
        for gpa, size in merged(wanted):
            calls += 1
            try:
                discarded += self._discard(gpa, size)
            except HostError as error:  # a hint: the guest has lost nothing
                failed += 1
                if trace.cold_discard_failed.on:
                    trace.cold_discard_failed(gpa, size, str(error))
        with self._lock:
            self.counters.calls += 1
            self.counters.discarded += discarded
            self.counters.failed += failed
            self.counters.refused += status != HypercallStatus.SUCCESS
        if trace.cold_discard.on:
            trace.cold_discard(len(wanted), calls, discarded, done, int(status))
        return _result(status, done)

    def _is_ram(self, gpa: int, size: int) -> bool:
        """Whether the whole range is RAM; adjacent regions count as one."""
        return sum(length for _, _, length in self.memory.pieces(gpa, size)) == size


def _result(status: HypercallStatus, done: int) -> int:
    """The result word: a status, and the number of repetitions done, those of earlier calls included."""
    return int(status) | done << 32
