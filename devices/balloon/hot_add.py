"""The hot-add range (QEMU's "our range"): memory beyond the boot size, its state, and the next grant.

Source: Linux drivers/hv/hv_balloon.c, hot_add_req(), handle_pg_range(); QEMU hw/hyperv/hv-balloon.c, our range.

    window.start                     next       block_end             window.end
      |  granted, confirmed (`ram`)    |  rest of a  |  never granted      |
      |  or in doubt (`unconfirmed`)   |  block      |                     |

Memory is granted from the bottom up, never the same page twice: a guest that is offered an address again refuses all
later requests. A guest adds memory in blocks (its alignment), but the last block may be granted in part: the rest of
it is granted later, as long as the same driver is bound, whose state is lost when it is unbound.

Only granted pages are RAM, and refused ones stop being RAM: a guest could use any mapped page.

In doubt are grants that were not answered, and everything after a new contact of the guest. The guest may have the
memory: so it is not offered again before the machine is reset, it stays RAM, and it counts as memory that the guest
may use. It is confirmed once the guest names a page of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pyvmm.devices.balloon.ranges import PageRange, PageRanges


class Window(Protocol):
    """Address space above everything else in the guest, with its backing memory. Pages of 4 KiB."""

    start: int
    end: int  # of the address space: as many whole blocks as are needed for `pages`
    pages: int  # limit of all grants

    def provide(self, start: int, pages: int) -> None:
        """Make these pages RAM, before they are offered. They lie above all others. Raises HostError."""

    def keep_below(self, end: int) -> None:
        """Unmap everything from page `end` on."""

    def withdraw(self) -> None:
        """Unmap all of it and discard its contents. For a machine reset."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The memory of one request: `pages` from `start`. `region` are the blocks that the guest adds for it; None for
    the rest of a block that it has already added."""

    start: int
    pages: int
    region: PageRange | None

    @property
    def end(self) -> int:
        return self.start + self.pages

    @property
    def covers(self) -> PageRange:
        """Return the addresses that the guest must not be offered again: whole blocks, perhaps granted in part."""
        return self.region or PageRange(self.start, self.pages)


@dataclass(slots=True)
class HotAddRange:
    """The state of each page of the window: confirmed, unconfirmed or never granted."""

    window: Window
    ram: PageRanges = field(default_factory=PageRanges)
    unconfirmed: PageRanges = field(default_factory=PageRanges)
    top: int = field(init=False)  # end of confirmed and unconfirmed memory: nothing beyond is to be RAM
    next: int = field(init=False)  # the first page never offered
    block_end: int = field(init=False)  # where the guest's last block ends; `next` if it is used up

    def __post_init__(self) -> None:
        self.top = self.next = self.block_end = self.window.start

    def reset(self) -> None:
        """Handle a machine reset: the guest has no hot-added memory."""
        self.ram.clear()
        self.unconfirmed.clear()
        self.window.withdraw()
        self.top = self.next = self.block_end = self.window.start

    def trim(self) -> None:
        """Unmap memory of a grant that was refused or never sent. To be called while no grant is outstanding."""
        self.window.keep_below(self.top)

    def driver_unbound(self) -> None:
        """Handle an unbound driver: Linux keeps the memory, but loses the state of a partly granted block."""
        self.next = self.block_end = max(self.next, self.block_end)

    def invalidate(self) -> None:
        """Treat all memory as unconfirmed: a new kernel may be running (new contact), with all of it or none."""
        self.driver_unbound()
        self.unconfirmed.update(self.ram)
        self.ram.clear()

    @property
    def granted_pages(self) -> int:
        """Return the number of confirmed and unconfirmed pages."""
        return self.ram.pages + self.unconfirmed.pages

    @property
    def left_pages(self) -> int:
        """Return the number of pages that can still be granted, regardless of the guest's block size."""
        return min(self.window.pages - self.granted_pages, self.window.end - self.next)

    @property
    def lost_pages(self) -> int:
        """Return the number of skipped pages: alignment, refused blocks, partly granted blocks of unbound drivers."""
        return self.next - self.window.start - self.granted_pages

    def reachable(self, alignment: int, *, whole_blocks: bool) -> int:
        """Return the number of pages that can still be granted to a guest with such blocks."""
        in_block = min(self.block_end - self.next, self.left_pages) if not whole_blocks else 0
        start = _up(max(self.next, self.block_end), alignment)
        blocks = max(0, self.window.end - start) // alignment * alignment
        more = max(0, min(blocks, self.window.pages - self.granted_pages - in_block))
        return in_block + (_down(more, alignment) if whole_blocks else more)

    def grant(self, wanted: int, alignment: int, piece: int, *, whole_blocks: bool) -> Grant | None:
        """Return the next grant on the way to `wanted` more pages; None if nothing (more) can be granted.

        At most `piece` pages, or a block if that is larger.
        """
        wanted = min(wanted, self.window.pages - self.granted_pages)
        if self.next < self.block_end and not whole_blocks:
            pages = min(wanted, self.block_end - self.next)
            return Grant(self.next, pages, None) if pages > 0 else None
        start = _up(max(self.next, self.block_end), alignment)
        room = max(0, self.window.end - start) // alignment * alignment
        pages = min(wanted, room, max(_down(piece, alignment), alignment))
        if whole_blocks:
            pages = _down(pages, alignment)
        return Grant(start, pages, PageRange(start, _up(pages, alignment))) if pages > 0 else None

    def accepted(self, grant: Grant, pages: int, alignment: int) -> int:
        """Confirm the first `pages` of `grant`; return how many of them count (all, unless the guest claims more)."""
        pages = min(pages, grant.pages)
        if pages:
            self.ram.insert([(grant.start, pages)])
            self.top = self.next = grant.start + pages
            self.block_end = max(self.block_end if grant.region is None else 0, _up(self.next, alignment))
        return pages

    def refused(self, grant: Grant) -> None:
        """Handle a refusal for good. The guest may have recorded the addresses: they are never offered again."""
        self.next = self.block_end = max(grant.covers.end, self.block_end)

    def timed_out(self, grant: Grant) -> None:
        """Mark the grant as unconfirmed: the guest may or may not have it."""
        self.unconfirmed.insert([(grant.start, grant.pages)])
        self.top = grant.end
        self.next = self.block_end = max(grant.covers.end, self.block_end)

    def accepted_late(self, grant: Grant, pages: int) -> int:
        """Handle the late answer to an unconfirmed grant. Returns the pages that became the guest's."""
        pages = min(pages, grant.pages)
        asked = PageRanges([(grant.start, grant.pages)])
        if not self.unconfirmed.subtract(asked):
            return 0  # confirmed meanwhile
        if self.top == grant.end:
            self.top = grant.start + pages
        return self.ram.insert([(grant.start, pages)])

    def confirm(self, named: PageRanges) -> int:
        """Confirm unconfirmed ranges of which the guest has named pages. Return the number of pages confirmed."""
        if not self.unconfirmed or self.unconfirmed.isdisjoint(named):
            return 0
        proven = PageRanges(r for r in self.unconfirmed if not named.isdisjoint(PageRanges([r])))
        self.unconfirmed.subtract(proven)
        return self.ram.update(proven)


def _up(pages: int, alignment: int) -> int:
    return -(-pages // alignment) * alignment


def _down(pages: int, alignment: int) -> int:
    return pages // alignment * alignment
