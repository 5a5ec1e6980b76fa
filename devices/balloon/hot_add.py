"""The hot-add range (QEMU's "our range"): memory beyond the boot size, which of it the guest has, and the next grant.

Source: Linux drivers/hv/hv_balloon.c, hot_add_req(), handle_pg_range(); QEMU hw/hyperv/hv-balloon.c, our range.

    window.start                     next       block_end             window.end
      |  given, confirmed (`ram`)      |  rest of a  |  never given        |
      |  or in doubt (`unconfirmed`)   |  block      |                     |

It is given from the bottom up, never the same page twice: a guest that is offered an address it knows refuses
everything from then on. A guest makes memory in blocks (its alignment), but needs not have all of the last block: the
rest of that one is given later, as long as the same driver is bound, for it forgets when it goes.

Only what is given is RAM, to the page, and what the guest turns down stops being RAM: the guest could use any other.

In doubt is what was asked for without an answer, and everything after the guest made contact anew. The guest may have
it: so it is not offered again before the machine is reset, it stays RAM, and it counts as memory that the guest may
use. It is the guest's for sure once the guest names a page of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pyvmm.devices.balloon.ranges import PageRange, PageRanges


class Window(Protocol):
    """Address space above all else in the guest, and the memory behind it. Pages of 4 KiB."""

    start: int
    end: int  # of the address space: as many whole blocks as are needed for `pages`
    pages: int  # that may be given in all

    def provide(self, start: int, pages: int) -> None:
        """Make these pages RAM, before the guest is told of them. They lie above all that is. Raises HostError."""

    def keep_below(self, end: int) -> None:
        """Nothing from page `end` on is RAM any more."""

    def withdraw(self) -> None:
        """None of it is RAM any more; its contents are gone. For a machine reset."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one request gives: `pages` from `start`. `region` are the blocks that the guest shall make for it; None
    where it goes on within one that it has made."""

    start: int
    pages: int
    region: PageRange | None

    @property
    def end(self) -> int:
        return self.start + self.pages

    @property
    def covers(self) -> PageRange:
        """The addresses that the guest knows of from then on, whole blocks of which it may have been given a part."""
        return self.region or PageRange(self.start, self.pages)


@dataclass(slots=True)
class HotAddRange:
    """The books of the window: whose each of its pages is."""

    window: Window
    ram: PageRanges = field(default_factory=PageRanges)
    unconfirmed: PageRanges = field(default_factory=PageRanges)
    top: int = field(init=False)  # the end of what is the guest's or in doubt: nothing beyond is to be RAM
    next: int = field(init=False)  # the first page never asked for
    block_end: int = field(init=False)  # where the guest's last block ends; `next` if it is used up

    def __post_init__(self) -> None:
        self.top = self.next = self.block_end = self.window.start

    def reset(self) -> None:
        """Machine reset: the guest has none of it."""
        self.ram.clear()
        self.unconfirmed.clear()
        self.window.withdraw()
        self.top = self.next = self.block_end = self.window.start

    def trim(self) -> None:
        """Nothing is on offer: take away what was made RAM for an offer that was not taken, or never sent."""
        self.window.keep_below(self.top)

    def driver_gone(self) -> None:
        """The driver was unbound: Linux keeps the memory, and forgets that part of a block was not given yet."""
        self.next = self.block_end = max(self.next, self.block_end)

    def invalidate(self) -> None:
        """A new kernel may be running (new contact): it may know all of this memory or none."""
        self.driver_gone()
        self.unconfirmed.update(self.ram)
        self.ram.clear()

    @property
    def given_pages(self) -> int:
        """Pages that are the guest's, or may be."""
        return self.ram.pages + self.unconfirmed.pages

    @property
    def left_pages(self) -> int:
        """Pages that may yet be given, before the guest's blocks are looked at."""
        return min(self.window.pages - self.given_pages, self.window.end - self.next)

    @property
    def lost_pages(self) -> int:
        """Pages passed over: alignment, refused blocks, blocks cut short by a driver that left."""
        return self.next - self.window.start - self.given_pages

    def reachable(self, alignment: int, *, whole_blocks: bool) -> int:
        """Pages that can yet be given to a guest with such blocks."""
        in_block = min(self.block_end - self.next, self.left_pages) if not whole_blocks else 0
        start = _up(max(self.next, self.block_end), alignment)
        blocks = max(0, self.window.end - start) // alignment * alignment
        more = max(0, min(blocks, self.window.pages - self.given_pages - in_block))
        return in_block + (_down(more, alignment) if whole_blocks else more)

    def grant(self, wanted: int, alignment: int, piece: int, *, whole_blocks: bool) -> Grant | None:
        """The next request on the way to `wanted` more pages; None if nothing (more) can be given.

        At most `piece` pages, or a block if that is larger.
        """
        wanted = min(wanted, self.window.pages - self.given_pages)
        if self.next < self.block_end and not whole_blocks:
            pages = min(wanted, self.block_end - self.next)
            return Grant(self.next, pages, None) if pages > 0 else None
        start = _up(max(self.next, self.block_end), alignment)
        room = max(0, self.window.end - start) // alignment * alignment
        pages = min(wanted, room, max(_down(piece, alignment), alignment))
        if whole_blocks:
            pages = _down(pages, alignment)
        return Grant(start, pages, PageRange(start, _up(pages, alignment))) if pages > 0 else None

    def given(self, grant: Grant, pages: int, alignment: int) -> int:
        """The guest has taken the first `pages` of `grant`; how many of them count (all, unless it claims more)."""
        pages = min(pages, grant.pages)
        if pages:
            self.ram.insert([(grant.start, pages)])
            self.top = self.next = grant.start + pages
            self.block_end = max(self.block_end if grant.region is None else 0, _up(self.next, alignment))
        return pages

    def refused(self, grant: Grant) -> None:
        """The guest refused the grant for good. It may know the addresses: never offer them again."""
        self.next = self.block_end = max(grant.covers.end, self.block_end)

    def timed_out(self, grant: Grant) -> None:
        """The grant was not confirmed: the guest may or may not have it."""
        self.unconfirmed.insert([(grant.start, grant.pages)])
        self.top = grant.end
        self.next = self.block_end = max(grant.covers.end, self.block_end)

    def answered_late(self, grant: Grant, pages: int) -> int:
        """Handle the late answer to an unconfirmed grant. Returns the pages that became the guest's."""
        pages = min(pages, grant.pages)
        asked = PageRanges([(grant.start, grant.pages)])
        if not self.unconfirmed.subtract(asked):
            return 0  # settled meanwhile
        if self.top == grant.end:
            self.top = grant.start + pages
        return self.ram.insert([(grant.start, pages)])

    def confirm(self, named: PageRanges) -> int:
        """The guest names pages: what of them was in doubt it has, with all that lies next to them. Pages settled."""
        if not self.unconfirmed or self.unconfirmed.isdisjoint(named):
            return 0
        proven = PageRanges(r for r in self.unconfirmed if not named.isdisjoint(PageRanges([r])))
        self.unconfirmed.subtract(proven)
        return self.ram.update(proven)


def _up(pages: int, alignment: int) -> int:
    return -(-pages // alignment) * alignment


def _down(pages: int, alignment: int) -> int:
    return pages // alignment * alignment
