"""GPADLs (guest physical address descriptor lists): the guest shares memory with the host by listing its pages.

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
from operator import sub

from pyvmm.errors import GuestError, GuestMemoryError, GuestProtocolError
from pyvmm.memory import PAGE_SIZE, GuestMemory
from pyvmm.vmbus.protocol import GpadlBody, GpadlHeader, Status

WORD_SIZE = 8
GPADL_LIMIT = 4096
"""Limit of GPADLs, established or pending: Linux needs one per ring and a few per network device."""
GPADL_PAGES_LIMIT = 1280 << 8
"""Limit of pages in all GPADLs, 1280 MiB, as in newer Hyper-V hosts. Bounds the memory used by a hostile guest."""


@dataclass(slots=True)
class GpaRange:
    """`length` bytes, one at least, from `offset` in the first of `pages` (guest physical addresses)."""

    length: int
    offset: int
    pages: list[int]

    def part(self, start: int, length: int) -> GpaRange:
        """Return `length` bytes of the range from byte `start` on. Raises GuestProtocolError if it has fewer."""
        if start < 0 or length < 1 or start + length > self.length:
            raise GuestProtocolError(f"{length} bytes from {start} of a range of {self.length} bytes")
        first, offset = divmod(self.offset + start, PAGE_SIZE)
        return GpaRange(length, offset, self.pages[first : first - (-(offset + length) // PAGE_SIZE)])

    def gpas(self) -> list[tuple[int, int]]:
        """Return the range as (guest physical address, length), neighbours merged."""
        pages = self.pages
        ends = [n for n, step in enumerate(map(sub, pages[1:], pages), 1) if step != PAGE_SIZE]
        starts = [0, *ends]
        ends.append(len(pages))
        runs = [(pages[start], (end - start) * PAGE_SIZE) for start, end in zip(starts, ends, strict=True)]
        runs[0] = runs[0][0] + self.offset, runs[0][1] - self.offset
        runs[-1] = runs[-1][0], runs[-1][1] - (len(pages) * PAGE_SIZE - self.offset - self.length)
        return runs

    def read(self, memory: GuestMemory) -> bytes:
        """Return a copy of all bytes. Raises GuestMemoryError if a page is not RAM."""
        return b"".join(self.views(memory))

    def views(self, memory: GuestMemory) -> list[memoryview]:
        """Return live views of the bytes, as preadv and pwritev take them. Raises GuestMemoryError if a page is not
        RAM. The guest may change the bytes at any time: copy what is to be checked.
        """
        low, high = min(self.pages), max(self.pages) + PAGE_SIZE
        if memory.contains(low, high - low):  # the usual case: all in one region, which is looked up once
            view = memory.view(low, high - low)
            return [view[gpa - low : gpa - low + length] for gpa, length in self.gpas()]
        return [view for gpa, length in self.gpas() for view in _views(memory, gpa, length)]


def _views(memory: GuestMemory, gpa: int, length: int) -> list[memoryview]:
    """Return views of contiguous guest memory, of which neighbouring regions may hold a part each."""
    views = [region.view[offset : offset + size] for region, offset, size in memory.pieces(gpa, length)]
    if sum(map(len, views)) != length:
        raise GuestMemoryError(f"{length} bytes at gpa {gpa:#x}: not guest RAM")
    return views


@dataclass(slots=True)
class Gpadl:
    """An established GPADL of the channel `relid`."""

    id: int
    relid: int
    ranges: list[GpaRange]
    torn_down: bool = False  # the guest requested the teardown while a channel still used it

    @property
    def page_count(self) -> int:
        """Return the number of pages of all ranges."""
        return sum(len(each.pages) for each in self.ranges)

    def read(self, memory: GuestMemory, range_index: int = 0) -> bytes:
        """Return a copy of all bytes of one range. Raises GuestMemoryError if a page is no longer RAM."""
        return self.ranges[range_index].read(memory)

    def views(self, memory: GuestMemory, range_index: int = 0) -> list[memoryview]:
        """Return live views of one range's bytes. Raises GuestMemoryError if a page is no longer RAM."""
        return self.ranges[range_index].views(memory)

    def ring_pages(self) -> list[int]:
        """Return the pages for a pair of rings: one range of whole pages. Raises GuestProtocolError otherwise.

        They are 8190 at most, 32 MiB: a list's size in bytes is a u16.
        """
        if len(self.ranges) != 1 or self.ranges[0].offset or self.ranges[0].length % PAGE_SIZE:
            raise GuestProtocolError(f"gpadl {self.id:#x} is not one range of whole pages")
        return self.ranges[0].pages


@dataclass(slots=True)
class GpadlAssembly:
    """A pending (partially received) GPADL; each message's words are checked on arrival, so that the last message
    takes no longer than the others. Raises GuestProtocolError if the announced sizes are invalid.
    """

    id: int
    relid: int
    range_bytes: int
    range_count: int
    ranges: list[GpaRange] = field(default_factory=list)
    missing: int = 0
    """Number of words not received yet."""
    frames_missing: int = 0
    """Number of pages missing in the last range."""

    def __post_init__(self) -> None:
        if (
            self.range_bytes % WORD_SIZE
            or self.range_bytes < 2 * WORD_SIZE * self.range_count
            or not self.range_count
        ):
            raise GuestProtocolError(f"{self.range_count} ranges in {self.range_bytes} bytes")
        self.missing = self.range_bytes // WORD_SIZE

    def add(self, words: tuple[int, ...], memory: GuestMemory) -> None:
        """Add the words of one message. Raises GuestProtocolError for more than are missing, or none, or ranges that
        do not fill the list; GuestMemoryError for a page that is not RAM.
        """
        if not words or len(words) > self.missing:
            raise GuestProtocolError(f"{len(words)} words come, {self.missing} are missing")
        for word in words:
            self.missing -= 1
            if self.frames_missing:
                self.frames_missing -= 1
                self.ranges[-1].pages.append(_page(memory, word))
            else:
                self._begin_range(word)
        if not self.missing and len(self.ranges) < self.range_count:
            raise GuestProtocolError(f"announced {self.range_count} ranges, has {len(self.ranges)}")

    def _begin_range(self, word: int) -> None:
        if len(self.ranges) == self.range_count:
            raise GuestProtocolError(f"{self.missing + 1} words too many")
        length, offset = word & 0xFFFFFFFF, word >> 32
        count = -(-(offset + length) // PAGE_SIZE)
        if not length or offset >= PAGE_SIZE or count > self.missing:
            raise GuestProtocolError(f"{length} bytes from {offset} in {self.missing} pages")
        self.ranges.append(GpaRange(length, offset, []))
        self.frames_missing = count


def _page(memory: GuestMemory, frame: int) -> int:
    memory.find(frame * PAGE_SIZE, PAGE_SIZE)
    return frame * PAGE_SIZE


class GpadlRefused(GuestProtocolError):
    """A refused GPADL; the guest is answered with `status`."""

    def __init__(self, relid: int, gpadl: int, status: int, reason: str) -> None:
        super().__init__(f"gpadl {gpadl:#x}: {reason}")
        self.relid = relid
        self.gpadl = gpadl
        self.status = status


class GpadlTable:
    """All GPADLs of one guest, established or pending, within GPADL_LIMIT and GPADL_PAGES_LIMIT.

    Two channels may use the same id, as Windows does, but not while one's list is pending: bodies name no channel.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.lists: dict[tuple[int, int], Gpadl] = {}  # established, by relid and id
        self._coming: dict[int, GpadlAssembly] = {}
        self._pages = 0  # of established GPADLs, and words announced for pending ones
        self._memory = memory

    def begin(self, message: GpadlHeader) -> Gpadl | None:
        """Start a GPADL; return it if it is complete already. Raises GpadlRefused."""
        relid, gpadl = message.relid, message.gpadl
        if (relid, gpadl) in self.lists or gpadl in self._coming:
            raise GpadlRefused(relid, gpadl, Status.INVALID_PARAMETER, "exists already")
        if len(self.lists) + len(self._coming) >= GPADL_LIMIT:
            raise GpadlRefused(relid, gpadl, Status.QUOTA_EXCEEDED, f"{GPADL_LIMIT} are established already")
        if self._pages + message.range_bytes // WORD_SIZE > GPADL_PAGES_LIMIT:
            raise GpadlRefused(relid, gpadl, Status.QUOTA_EXCEEDED, f"{self._pages} pages are established already")
        try:
            assembly = GpadlAssembly(gpadl, relid, message.range_bytes, message.range_count)
        except GuestProtocolError as error:
            raise GpadlRefused(relid, gpadl, Status.INVALID_PARAMETER, str(error)) from error
        self._coming[gpadl] = assembly
        self._pages += assembly.range_bytes // WORD_SIZE
        return self._add(assembly, message.words)

    def extend(self, message: GpadlBody) -> Gpadl | None:
        """Add a body to a pending GPADL; return it if it is complete now. Raises GpadlRefused, or GuestProtocolError
        if there is no such GPADL."""
        assembly = self._coming.get(message.gpadl)
        if assembly is None:
            raise GuestProtocolError(f"body of gpadl {message.gpadl:#x}, which has no pending header")
        return self._add(assembly, message.words)

    def _add(self, assembly: GpadlAssembly, words: tuple[int, ...]) -> Gpadl | None:
        try:
            assembly.add(words, self._memory)
        except GuestError as error:
            self._drop(assembly)
            raise GpadlRefused(assembly.relid, assembly.id, Status.INVALID_PARAMETER, str(error)) from error
        if assembly.missing:
            return None
        self._drop(assembly)
        gpadl = self.lists[assembly.relid, assembly.id] = Gpadl(assembly.id, assembly.relid, assembly.ranges)
        self._pages += gpadl.page_count
        return gpadl

    def _drop(self, assembly: GpadlAssembly) -> None:
        """Remove a pending GPADL that is complete or invalid."""
        del self._coming[assembly.id]
        self._pages -= assembly.range_bytes // WORD_SIZE

    def remove(self, gpadl: Gpadl) -> None:
        """Remove an established GPADL."""
        del self.lists[gpadl.relid, gpadl.id]
        self._pages -= gpadl.page_count

    def get(self, gpadl: int, relid: int) -> Gpadl:
        """Return the established GPADL `gpadl` of the channel `relid`. Raises GuestProtocolError if there is none."""
        found = self.lists.get((relid, gpadl))
        if found is None:
            raise GuestProtocolError(f"gpadl {gpadl:#x} is not established for channel {relid}")
        return found

    def forget(self, relid: int) -> None:
        """Drop all GPADLs of one channel."""
        for gpadl in [each for each in self.lists.values() if each.relid == relid]:
            self.remove(gpadl)
        for assembly in [each for each in self._coming.values() if each.relid == relid]:
            self._drop(assembly)

    def clear(self) -> None:
        self.lists.clear()
        self._coming.clear()
        self._pages = 0
