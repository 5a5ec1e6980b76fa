"""Discards: returns released pages to the host, in slices, one slice each turn of the loop.

A guest chooses how many pages it releases and how scattered they are, and each range is a system call: a message of
510 single pages costs 5 ms, 1 TiB of them twenty minutes. So a message is recorded at once, with bit operations, and
the pages to be discarded wait in a set, which is bounded by the guest's RAM however it is fragmented.

  record --+--> waiting --slice--> discarded         at most RANGES_A_TURN calls of PIECE_PAGES, or SECONDS_A_TURN
           +--> the first slice of a turn is done at once: an ordinary answer never waits
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pyvmm.devices.balloon.ranges import PageRange, PageRanges

RANGES_A_TURN = 256
"""Limit of system calls in a turn of the loop: some 10 µs each."""
SECONDS_A_TURN = 0.004
"""Seconds after which a turn's slice ends, once the current call returns. Memory that was never touched costs almost
nothing, written memory 0.1 µs a page and more."""
PIECE_PAGES = 64 << 8
"""Limit of pages in one call, 64 MiB: if all were written as 4 KiB pages, the kernel takes about 5 ms."""

Later = Callable[[Callable[[], object]], object]


class Turns:
    """Calls `work()` at most once a turn of the loop, as long as it returns that work is left.

    `later(callback)` runs a callback in a later turn; `progress()` is called after the work there. Without `later`
    there are no turns, and `work()` must leave nothing.
    """

    def __init__(self, work: Callable[[], bool]) -> None:
        self.later: Later | None = None
        self.progress: Callable[[], object] = lambda: None
        self._work = work
        self._turn_is_used = False
        self._is_left = False

    def schedule(self) -> None:
        """Schedule the work."""
        self._is_left = True
        if self.later is not None and not self._turn_is_used:
            self._is_left = self._work()
            self._turn_is_used = True
            self.later(self._next)

    def _next(self) -> None:
        self._turn_is_used = self._is_left
        if self._is_left and self.later is not None:
            self._is_left = self._work()
            self.later(self._next)
            self.progress()


def slice_of(waiting: PageRanges, granule: int) -> Iterator[PageRange]:
    """Yield pieces of `waiting` for one turn, each of whole granules. The caller removes those it has discarded."""
    piece = max(PIECE_PAGES // granule, 1) * granule
    until = time.monotonic() + SECONDS_A_TURN
    left = RANGES_A_TURN
    for each in waiting.top(RANGES_A_TURN * piece, RANGES_A_TURN):
        for part in each.parts(piece):
            yield part
            left -= 1
            if not left or time.monotonic() > until:
                return


def append_each(pieces: Iterator[PageRange], done: list[PageRange]) -> Iterator[PageRange]:
    """Yield the same pieces, and append each to `done`."""
    for piece in pieces:
        done.append(piece)
        yield piece
