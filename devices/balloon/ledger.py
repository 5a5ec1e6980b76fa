"""Whose each page of guest RAM is: the guest's, or out, and then whether the host could take it back.

    in the guest's hands --guest lets go of it--> removed by the guest --host discards it--> removed by both
            ^                                            |                                       |
            +--------------------------- host gives it back (unballoon) -------------------------+

`removed_guest` keeps what the host could not discard (huge pages as backing, or an error): gone for the guest, yet
still costing the host. `removed_both` is the ordinary case and what `actual` counts. A page is in one of them at
most, both lie within RAM, and neither ever takes a page twice: what a guest says beyond that is counted and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from devices.balloon import events as trace
from devices.balloon.ranges import PageRange, PageRanges, clipped
from pyvmm.errors import HostError

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

PLAIN_CLAIM_PAGES = 1 << 18
"""A claim of more pages than this (1 GiB, as much as Linux puts into a message) is cut to RAM before it is looked at
page by page: a message has room to name 32 TiB, over and over."""

Discard = Callable[[int, int], object]
"""discard(gpa, bytes): give RAM back to the host. Raises HostError where it cannot."""


@dataclass(slots=True)
class Booking:
    """What one message's ranges came to, in pages."""

    booked: int  # newly out
    outside: int = 0  # not RAM
    known: int = 0  # out before
    repeated: int = 0  # named more than once in the same message

    @property
    def refused(self) -> int:
        return self.outside + self.known + self.repeated


@dataclass(slots=True)
class Counters:
    """Pages over the life of the machine, for `info` and tests."""

    outside: int = 0
    known: int = 0
    repeated: int = 0
    undiscarded: int = 0
    discards: int = 0  # calls: merged ranges


@dataclass(slots=True)
class Ledger:
    """The books of one guest. `boot` are the stretches of its boot RAM, in pages, sorted."""

    boot: list[PageRange]
    discard: Discard
    ram: PageRanges = field(init=False)
    removed_guest: PageRanges = field(default_factory=PageRanges)
    removed_both: PageRanges = field(default_factory=PageRanges)
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.ram = PageRanges(self.boot)

    def reset(self) -> None:
        """Fresh books: the guest has all of its boot RAM."""
        self.removed_guest.clear()
        self.removed_both.clear()

    @property
    def boot_pages(self) -> int:
        return self.ram.pages

    @property
    def removed_pages(self) -> int:
        """Pages the guest does not have."""
        return self.removed_guest.pages + self.removed_both.pages

    @property
    def current_pages(self) -> int:
        """Pages the guest has: what a target is compared with."""
        return self.ram.pages - self.removed_pages

    @property
    def actual_pages(self) -> int:
        """Pages the guest costs the host at most: what query-balloon tells."""
        return self.ram.pages - self.removed_both.pages

    def book(self, ranges: list[tuple[int, int]]) -> Booking:
        """The guest let go of `ranges`: discard and keep what is RAM and was not out before.

        Each merged range is discarded in one call. Nothing else ever is.
        """
        announced = sum([pages for _, pages in ranges])
        beyond = 0
        claimed: Iterable[tuple[int, int]] = ranges
        if announced > PLAIN_CLAIM_PAGES:
            claimed, beyond = clipped(ranges, self.boot)
        done = self.removed_both.absorb(claimed, self.ram, self.removed_guest)
        outside = done.outside + beyond
        booking = Booking(done.new.pages, outside, done.known, announced - done.given - beyond)
        self._discard(done.new)
        if booking.refused:
            self.counters.outside += outside
            self.counters.known += booking.known
            self.counters.repeated += booking.repeated
            if trace.pages_refused.on:
                trace.pages_refused(outside, booking.known, booking.repeated)
        return booking

    def _discard(self, pages: PageRanges) -> None:
        kept = []
        for start, count in pages:
            both = 1
            self.counters.discards += 1
            try:
                self.discard(start << PAGE_SHIFT, count << PAGE_SHIFT)
            except HostError as error:
                both = 0
                kept.append((start, count))
                if trace.discard_failed.on:
                    trace.discard_failed(count, start, str(error))
            if trace.remove_response.on:
                trace.remove_response(count, start, both)
            if trace.remove_response_remainder.on:
                trace.remove_response_remainder(count, start, both)
        if kept:
            failed = PageRanges(kept)
            self.counters.undiscarded += failed.pages
            self.removed_both.subtract(failed)
            self.removed_guest.update(failed)

    def choose(self, pages: int, max_ranges: int) -> list[PageRange]:
        """Which `pages` to give back next: about `max_ranges` ranges at most. They stay on the books.

        From the highest address down, those first that the host could not discard: they cost nothing to return.
        """
        chosen = self.removed_guest.top(pages, max_ranges)
        ranges = list(chosen)
        if chosen.pages < pages and len(ranges) < max_ranges:
            ranges += self.removed_both.top(pages - chosen.pages, max_ranges - len(ranges))
        return ranges

    def give_back(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Pages that are the guest's from now on. It frees them unchecked, so they must be out: each exactly once."""
        pages = PageRanges(ranges)
        gone = self.removed_both.subtract(pages)
        if gone < pages.pages:
            gone += self.removed_guest.subtract(pages)
        assert gone == pages.pages, f"{pages.pages - gone} pages given back that were not out"
