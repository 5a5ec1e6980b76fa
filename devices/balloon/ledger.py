"""The ledger: the owner of each page of guest RAM, which is the guest, or the host ("out"); and which of those pages
the host could not discard.

    owned by the guest ----guest releases it----> removed by the guest --host discards it--> removed by both
            ^                                            |                                       |
            +--------------------------- host gives it back (unballoon) -------------------------+

`removed_guest` has the pages that the host could not discard (part of a huge page, or an error): the guest has lost
them, but they still use host memory. `removed_both` is the ordinary case, and what `actual` counts. A page is in one
of them at most, both lie within RAM, and no page is added twice: further claims by a guest are counted and refused.
Pages that wait for their discard (`devices.balloon.discards`) are in `removed_both` already; the figures still count
them as host memory in use.

Boot RAM and hot-added memory have records of their own, for the latter are dropped as a whole at a machine reset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pyvmm.devices.balloon import events as trace
from pyvmm.devices.balloon.discards import Turns, append_each, slice_of
from pyvmm.devices.balloon.hot_add import HotAddRange, Window
from pyvmm.devices.balloon.ranges import PageRange, PageRanges, clipped
from pyvmm.devices.balloon.response_trace import trace_response, trace_wanted
from pyvmm.errors import HostError

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

PLAIN_CLAIM_PAGES = 1 << 18
"""A claim of more pages than this (1 GiB, as much as Linux puts into a message) is clipped to RAM before it is
processed page by page: a message can name 32 TiB, repeatedly."""

Discard = Callable[[int, int], object]
"""discard(gpa, bytes): give RAM back to the host. Raises HostError where it cannot."""


@dataclass(slots=True)
class ClaimResult:
    """The effect of one message's ranges, in pages."""

    accepted: int  # newly out
    outside: int = 0  # not RAM
    known: int = 0  # out before
    repeated: int = 0  # named more than once in the same message

    @property
    def refused(self) -> int:
        return self.outside + self.known + self.repeated


@dataclass(slots=True)
class Counters:
    """Counts of pages since the machine's start, for `info` and tests."""

    outside: int = 0
    known: int = 0
    repeated: int = 0
    undiscarded: int = 0
    discards: int = 0  # calls: merged ranges


@dataclass(slots=True)
class PageRecord:
    """The record of pages out for one kind of RAM. `granule`: pages that the host can only discard together."""

    ram: PageRanges
    granule: int = 1
    removed_guest: PageRanges = field(default_factory=PageRanges)
    removed_both: PageRanges = field(default_factory=PageRanges)
    waiting: PageRanges = field(default_factory=PageRanges)  # of removed_both: to be discarded

    @property
    def removed_pages(self) -> int:
        return self.removed_guest.pages + self.removed_both.pages

    def removed_of(self, named: PageRanges) -> PageRanges:
        """Return the pages of `named` that are out."""
        return (named & self.removed_guest) | (named & self.removed_both)

    def clear(self) -> None:
        """Clear the record: the guest has all of its RAM."""
        self.removed_guest.clear()
        self.removed_both.clear()
        self.waiting.clear()

    def absorb(self, given: PageRanges) -> tuple[int, int, PageRanges]:
        """Record the pages of `given` that are RAM and not out. Return the counts of pages in RAM and of pages
        accepted, and the pages to discard now."""
        taken, inside = self.removed_both.absorb(given, self.ram, self.removed_guest)
        if self.granule == 1 or not taken:
            return inside, taken.pages, taken
        # Only whole granules can be discarded: the rest waits until its neighbours are out too.
        self.removed_both.subtract(taken)
        self.removed_guest.update(taken)
        whole = self._granules(taken) & self.removed_guest
        ready = PageRanges(span for span in self._spans(taken) if (whole & PageRanges([span])).pages == span.pages)
        self.removed_guest.subtract(ready)
        self.removed_both.update(ready)
        return inside, taken.pages, ready

    def mark_undiscarded(self, failed: PageRanges) -> None:
        """Record pages that could not be discarded."""
        self.removed_both.subtract(failed)
        self.removed_guest.update(failed)

    def give_back(self, pages: PageRanges) -> int:
        """Remove `pages` from those out; return how many were out."""
        if self.waiting:
            self.waiting.subtract(pages if self.granule == 1 else self._granules(pages))
        gone = self.removed_both.subtract(pages)
        if gone and self.granule > 1:
            # A granule of which the guest has a page is fully backed by host memory again.
            self.mark_undiscarded(self._granules(pages) & self.removed_both)
        if gone < pages.pages:
            gone += self.removed_guest.subtract(pages)
        return gone

    def _spans(self, pages: PageRanges) -> list[PageRange]:
        """Return the granules that `pages` overlap."""
        size = self.granule
        first = {g for start, count in pages for g in range(start // size, (start + count - 1) // size + 1)}
        return [PageRange(g * size, size) for g in sorted(first)]

    def _granules(self, pages: PageRanges) -> PageRanges:
        return PageRanges(self._spans(pages))


@dataclass(slots=True)
class Ledger:
    """The ledger of one guest. `boot_ranges` are the ranges of its boot RAM, in pages, sorted; `window` is for
    hot-added memory."""

    boot_ranges: list[PageRange]
    discard: Discard
    window: Window | None = None
    granule: int = 1
    boot: PageRecord = field(init=False)
    hot_range: HotAddRange | None = field(init=False)
    added: PageRecord = field(init=False)
    counters: Counters = field(default_factory=Counters)
    turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.turns = Turns(self._discard_some)
        self.boot = PageRecord(PageRanges(self.boot_ranges), self.granule)
        self.hot_range = HotAddRange(self.window) if self.window is not None else None
        self.added = PageRecord(self.hot_range.ram if self.hot_range is not None else PageRanges(), self.granule)

    def reset(self) -> None:
        """Handle a machine reset: the guest has all of its boot RAM and nothing else."""
        self.boot.clear()
        self.added.clear()
        if self.hot_range is not None:
            self.hot_range.reset()

    def invalidate(self) -> None:
        """Treat boot RAM as returned and hot-added memory as unknown: a new kernel may be running."""
        self.boot.clear()
        self.added.clear()
        if self.hot_range is not None:
            self.hot_range.invalidate()

    @property
    def boot_pages(self) -> int:
        return self.boot.ram.pages

    @property
    def added_pages(self) -> int:
        """Return the guest's pages beyond boot RAM, ballooned ones included."""
        return self.added.ram.pages

    @property
    def ram_pages(self) -> int:
        return self.boot.ram.pages + self.added.ram.pages

    @property
    def maximum_pages(self) -> int:
        """Return the guest's maximum size in pages."""
        return self.boot.ram.pages + (self.hot_range.window.pages if self.hot_range is not None else 0)

    @property
    def removed_pages(self) -> int:
        """Return the number of pages that are out."""
        return self.boot.removed_pages + self.added.removed_pages

    @property
    def removed_guest(self) -> PageRanges:
        """Return the pages that are out but could not be discarded, of both kinds of RAM."""
        boot, added = self.boot.removed_guest, self.added.removed_guest
        return boot | added if added else boot

    @property
    def removed_both(self) -> PageRanges:
        """Return the pages that are out and discarded, of both kinds of RAM."""
        boot, added = self.boot.removed_both, self.added.removed_both
        return boot | added if added else boot

    @property
    def removed_guest_pages(self) -> int:
        return self.boot.removed_guest.pages + self.added.removed_guest.pages + self.waiting_pages

    @property
    def removed_both_pages(self) -> int:
        return self.boot.removed_both.pages + self.added.removed_both.pages - self.waiting_pages

    @property
    def waiting_pages(self) -> int:
        """Return the number of pages that are out and still to be discarded."""
        return self.boot.waiting.pages + self.added.waiting.pages

    @property
    def current_pages(self) -> int:
        """Return the guest's current size in pages, which is compared with the target."""
        return self.ram_pages - self.removed_pages

    @property
    def actual_pages(self) -> int:
        """Return the most host memory the guest can use, in pages, for query-balloon. Includes unconfirmed ones."""
        return self.ram_pages - self.removed_both_pages + self.unconfirmed_pages

    @property
    def unconfirmed_pages(self) -> int:
        """Return the number of unconfirmed hot-added pages, which the guest may use."""
        return self.hot_range.unconfirmed.pages if self.hot_range is not None else 0

    def record_released(self, ranges: list[tuple[int, int]]) -> ClaimResult:
        """Record `ranges` that the guest has released. Only pages that are RAM and not out are accepted.

        A slice is discarded at once, the rest turn by turn.
        """
        announced = sum([pages for _, pages in ranges])
        beyond = 0
        claimed: Iterable[tuple[int, int]] = ranges
        if announced > PLAIN_CLAIM_PAGES:
            claimed, beyond = clipped(ranges, self._bounds())
        named = PageRanges(claimed)
        before = self.added.removed_of(named) if trace_wanted() else None
        inside, accepted, ready = self.boot.absorb(named)
        self._discard(self.boot, ready)
        if self.hot_range is not None and inside < named.pages:
            self.hot_range.confirm(named)
            more, also, ready = self.added.absorb(named)
            self._discard(self.added, ready)
            inside, accepted = inside + more, accepted + also
        if before is not None:
            both = (named & self.boot.removed_both) | (named & self.added.removed_both)
            trace_response(named, both, self._hot_add_range(), self.added.removed_of(named) - before)
        outside = named.pages - inside + beyond
        result = ClaimResult(accepted, outside, inside - accepted, announced - named.pages - beyond)
        if result.refused:
            self.counters.outside += outside
            self.counters.known += result.known
            self.counters.repeated += result.repeated
            if trace.pages_refused.on:
                trace.pages_refused(outside, result.known, result.repeated)
        return result

    def _hot_add_range(self) -> PageRange:
        """Return QEMU's "our range", pages not yet added included: it exists from the first hot-add after a reset."""
        if self.hot_range is None or self.hot_range.next == self.hot_range.window.start:
            return PageRange(0, 0)
        return PageRange(self.hot_range.window.start, self.hot_range.window.pages)

    def _bounds(self) -> list[PageRange]:
        """Return the address ranges in which RAM may lie."""
        if self.hot_range is None:
            return self.boot_ranges
        start = self.hot_range.window.start
        return [*self.boot_ranges, PageRange(start, self.hot_range.next - start)]

    def _discard(self, record: PageRecord, pages: PageRanges) -> None:
        if self.turns.later is None:
            self._discard_each(record, pages)
        elif pages:
            record.waiting.update(pages)
            self.turns.schedule()

    def _discard_some(self) -> bool:
        """Discard a slice of the waiting pages; return whether some are left."""
        record = self.boot if self.boot.waiting else self.added
        done: list[PageRange] = []
        self._discard_each(record, append_each(slice_of(record.waiting, record.granule), done))
        record.waiting.subtract(PageRanges(done))
        return bool(self.boot.waiting or self.added.waiting)

    def _discard_each(self, record: PageRecord, pieces: Iterable[PageRange]) -> None:
        kept = []
        for start, count in pieces:
            self.counters.discards += 1
            try:
                self.discard(start << PAGE_SHIFT, count << PAGE_SHIFT)
            except HostError as error:
                kept.append((start, count))
                if trace.discard_failed.on:
                    trace.discard_failed(count, start, str(error))
        if kept:
            failed = PageRanges(kept)
            self.counters.undiscarded += failed.pages
            record.mark_undiscarded(failed)

    def choose(self, pages: int, max_ranges: int) -> list[PageRange]:
        """Choose `pages` to give back next: about `max_ranges` ranges at most. They stay out meanwhile.

        Boot RAM comes first, as in QEMU: devices with short addresses need it. The order is from the highest address
        down, with pages first that the host could not discard: they cost nothing to return.
        """
        ranges: list[PageRange] = []
        for record in (self.boot, self.added):
            for removed in (record.removed_guest, record.removed_both):
                if removed and pages > 0 and len(ranges) < max_ranges:
                    chosen = removed.top(pages, max_ranges - len(ranges))
                    ranges += chosen
                    pages -= chosen.pages
        return ranges

    def give_back(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Return pages to the guest. It frees them without a check, so they must be out, each exactly once."""
        pages = PageRanges(ranges)
        gone = self.boot.give_back(pages)
        if gone < pages.pages:
            gone += self.added.give_back(pages)
        assert gone == pages.pages, f"{pages.pages - gone} pages given back that were not out"
