"""GPADLs (guest physical address descriptor lists): the guest lends memory to the host by listing its pages.

Source: Linux drivers/hv/channel.c, create_gpadl_header(); include/linux/hyperv.h, struct gpa_range.

A list is one or more ranges, each a u64 (byte count u32, byte offset u32 into the first page) followed by the page
frame numbers. A message holds 26 of them, so a long list comes as a header and bodies:

    GPADL_HEADER relid, id, bytes of all ranges | range, pfn, pfn, ...
    GPADL_BODY   id | pfn, pfn, ...                                       as often as needed
    GPADL_CREATED status  <- host, once all announced bytes are there

The host keeps addresses, never views: pages may stop being RAM (memory unplug), so they are checked at creation and
again when a ring is built from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyvmm.errors import GuestProtocolError
from pyvmm.memory import PAGE_SIZE, GuestMemory

WORD_SIZE = 8


@dataclass(slots=True)
class GpaRange:
    """`length` bytes from `offset` in the first of `pages` (guest physical addresses)."""

    length: int
    offset: int
    pages: list[int]

    def gpas(self) -> list[tuple[int, int]]:
        """The bytes as (guest physical address, length), neighbours merged."""
        runs: list[tuple[int, int]] = []
        left, skip = self.length, self.offset
        for page in self.pages:
            step = min(PAGE_SIZE - skip, left)
            start = page + skip
            if runs and sum(runs[-1]) == start:
                runs[-1] = runs[-1][0], runs[-1][1] + step
            else:
                runs.append((start, step))
            left, skip = left - step, 0
        return runs


@dataclass(slots=True)
class Gpadl:
    """A complete list, lent for the channel `relid`."""

    id: int
    relid: int
    ranges: list[GpaRange]
    torn_down: bool = False  # the guest asked for it while a channel still used it

    def read(self, memory: GuestMemory, range_index: int = 0) -> bytes:
        """A copy of all bytes of one range. Raises GuestMemoryError if a page is no longer RAM."""
        return b"".join(memory.read(gpa, length) for gpa, length in self.ranges[range_index].gpas())

    def views(self, memory: GuestMemory, range_index: int = 0) -> list[memoryview]:
        """One range's bytes, live. Raises GuestMemoryError if a page is no longer RAM."""
        return [memory.view(gpa, length) for gpa, length in self.ranges[range_index].gpas()]

    def ring_pages(self) -> list[int]:
        """The pages, for a ring: one range of whole pages. Raises GuestProtocolError for anything else."""
        if len(self.ranges) != 1 or self.ranges[0].offset or self.ranges[0].length % PAGE_SIZE:
            raise GuestProtocolError(f"gpadl {self.id:#x} is not one range of whole pages")
        return self.ranges[0].pages


@dataclass(slots=True)
class GpadlAssembly:
    """A list that is still coming in. Raises GuestProtocolError when the announcement makes no sense."""

    id: int
    relid: int
    range_bytes: int
    range_count: int
    words: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (
            self.range_bytes % WORD_SIZE
            or self.range_bytes < 2 * WORD_SIZE * self.range_count
            or not self.range_count
        ):
            raise GuestProtocolError(f"gpadl {self.id:#x}: {self.range_count} ranges in {self.range_bytes} bytes")

    @property
    def missing(self) -> int:
        """Words still to come."""
        return self.range_bytes // WORD_SIZE - len(self.words)

    def add(self, words: tuple[int, ...]) -> None:
        """Take the words of one message. Raises GuestProtocolError for more than are missing, or none."""
        if not words or len(words) > self.missing:
            raise GuestProtocolError(f"gpadl {self.id:#x}: {len(words)} words come, {self.missing} are missing")
        self.words += words

    def finish(self, memory: GuestMemory) -> Gpadl:
        """The complete list. Raises GuestProtocolError if the ranges do not fill it, GuestMemoryError for a page
        that is not RAM."""
        ranges: list[GpaRange] = []
        position = 0
        for _ in range(self.range_count):
            if position >= len(self.words):
                raise GuestProtocolError(
                    f"gpadl {self.id:#x}: announced {self.range_count} ranges, has {len(ranges)}"
                )
            length, offset = self.words[position] & 0xFFFFFFFF, self.words[position] >> 32
            count = -(-(offset + length) // PAGE_SIZE)
            frames = self.words[position + 1 : position + 1 + count]
            if not length or offset >= PAGE_SIZE or len(frames) < count:
                raise GuestProtocolError(f"gpadl {self.id:#x}: {length} bytes from {offset} in {len(frames)} pages")
            ranges.append(GpaRange(length, offset, [_page(memory, frame) for frame in frames]))
            position += 1 + count
        if position != len(self.words):
            raise GuestProtocolError(f"gpadl {self.id:#x}: {len(self.words) - position} words too many")
        return Gpadl(self.id, self.relid, ranges)


def _page(memory: GuestMemory, frame: int) -> int:
    memory.find(frame * PAGE_SIZE, PAGE_SIZE)
    return frame * PAGE_SIZE
