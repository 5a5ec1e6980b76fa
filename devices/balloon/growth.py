"""Growth past the boot size by hot-add, with the bound driver: the next request, or the reason why there is none.

Source: Linux drivers/hv/hv_balloon.c, hot_add_req() and hv_mem_hot_add().

A guest's answers and their meaning:

    pages = requested    accepted                        pages < requested    in part; the rest is requested again
    pages 0, result 0    not now: requested again later  pages 0, result 1    never, as long as this driver is bound

The host is not notified when the guest brings the memory online. But Linux waits up to 5 s for that in each block,
and counts offline memory as committed in its status reports: after an answer that takes so long the memory counts as
offline, until a report shows as few committed pages as before.
"""

from __future__ import annotations

from collections import deque

from pyvmm.devices.balloon import events as trace
from pyvmm.devices.balloon.hot_add import Grant
from pyvmm.devices.balloon.ledger import Ledger
from pyvmm.devices.balloon.protocol import RANGE_PAGES_LIMIT, WIN7, HotAddRequest, StatusReport, Version
from pyvmm.errors import HostError

ONLINE_WAIT = 5.0
"""Seconds that Linux waits for each block to come online."""
OFFLINE_AFTER = 4.5
"""Seconds per block: a slower answer means that Linux's wait timed out."""
STRIDE = 8
"""Limit of pieces in a request."""

NEEDS_HOT_ADD = "memory beyond the boot size needs hot-add, which this machine does not have"
GUEST_CANNOT = "the guest's driver does not support hot-add"
GUEST_REFUSED = "the guest refused more memory for good (hot_add=0, no memory hotplug, or an address it knows)"
GUEST_COULD_NOT = "the guest could not add memory just now: it may lack memory for its own tables"
UNANSWERED = "the guest has not answered an earlier request to add memory"
LEFT_OFFLINE = (
    "the guest has the memory but left it offline; memhp_default_state=online on its kernel's command line helps"
)


class Growth:
    """Hot-add with one driver. A request has `piece` pages, or a block of the guest if that is larger.

    The first request is a test; while the guest accepts all, the next ones are twice as large, up to STRIDE pieces:
    each request is a round trip, some 10 ms of the 40 that a block of 128 MiB takes.
    """

    def __init__(self, ledger: Ledger, *, piece: int, whole_blocks: bool) -> None:
        self.ledger = ledger
        self.piece = piece
        self.whole_blocks = whole_blocks
        self.possible = True
        self.alignment = 128 << 8
        self.refused = ""  # why this driver accepts no more
        self.offline_pages = 0  # an estimate
        self.late_answers: deque[Grant] = deque()  # timed out; answers may still come
        self._usual_committed: int | None = None
        self._stride = 1

    def on_capabilities(self, *, hot_add: bool, alignment_log2_mib: int) -> None:
        """Handle the driver's capabilities."""
        self.possible = hot_add
        self.alignment = 1 << 8 + alignment_log2_mib

    def refusal_reason(self) -> str:
        """Return why hot-add is impossible; empty if it is possible."""
        if self.ledger.hot_range is None:
            return NEEDS_HOT_ADD
        if not self.possible:
            return GUEST_CANNOT
        return self.refused or (UNANSWERED if self.late_answers else "")

    def no_grant_reason(self) -> str:
        """Return why there is no next grant."""
        hot_range = self.ledger.hot_range
        assert hot_range is not None
        if hot_range.granted_pages >= hot_range.window.pages:
            return f"{self.ledger.maximum_pages >> 8} MiB are the most this machine may have"
        if self.whole_blocks or hot_range.next >= hot_range.window.end - self.alignment:
            return f"the guest takes memory in blocks of {self.alignment >> 8} MiB, and no further block fits"
        return "no address space is left for more memory until the machine is reset"

    def reachable_pages(self) -> int:
        """Return the largest size in pages that the guest is expected to reach."""
        hot_range = self.ledger.hot_range
        more = 0
        if hot_range is not None and not self.refusal_reason():
            more = hot_range.reachable(self.alignment, whole_blocks=self.whole_blocks)
        return self.ledger.ram_pages + more

    def next_grant(self, wanted: int) -> Grant | None:
        """Return the next grant, already made RAM. Raises HostError if the host has no memory for it."""
        hot_range = self.ledger.hot_range
        assert hot_range is not None
        piece = min(
            max(self.piece * self._stride, self.alignment), RANGE_PAGES_LIMIT // self.alignment * self.alignment
        )
        grant = hot_range.grant(wanted, self.alignment, piece, whole_blocks=self.whole_blocks)
        if grant is None:
            return None
        if hot_range.next == hot_range.window.start and trace.our_range_add.on:
            trace.our_range_add(hot_range.window.pages, hot_range.window.start)
        try:
            hot_range.window.provide(grant.start, grant.pages)
        except HostError as error:
            if trace.map_failed.on:
                trace.map_failed(grant.pages, grant.start, str(error))
            raise
        return grant

    def request(self, grant: Grant, trans_id: int, version: Version | None) -> HotAddRequest:
        """Return the message for a grant.

        Without a region Linux continues an existing one, or adds whole blocks: the only form in the oldest version.
        """
        region = None if version == WIN7 else grant.region
        return HotAddRequest(trans_id, (grant.start, grant.pages), region)

    def time_limit(self, grant: Grant, request_timeout: float) -> float:
        """Return the time limit in seconds, which allows for a guest whose wait for each block times out."""
        return request_timeout + ONLINE_WAIT * (grant.covers.pages / self.alignment)

    def on_accepted(self, grant: Grant, pages: int, took: float, status: StatusReport | None) -> bool:
        """Handle an answer: the guest accepted `pages` after `took` seconds. Return whether they seem offline."""
        self._stride = min(2 * self._stride, STRIDE) if pages == grant.pages else 1
        if grant.region is None or took < OFFLINE_AFTER * max(1, pages // self.alignment):
            return False
        self._stride = 1
        if not self.offline_pages and status is not None:
            self._usual_committed = status.committed_pages
        self.offline_pages += pages
        if trace.hot_add_offline.on:
            trace.hot_add_offline(pages, round(took, 1))
        return True

    def on_status(self, report: StatusReport) -> None:
        """Check in a status report whether memory that seemed offline is online."""
        if (
            self.offline_pages
            and self._usual_committed is not None
            and report.committed_pages < self._usual_committed + self.offline_pages // 2
        ):
            self.offline_pages = 0
