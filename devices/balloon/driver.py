"""The bound driver: the result of the negotiation with it, its last status report, and the replies queued for it.

Source: Linux drivers/hv/hv_balloon.c, balloon_connect_vsp() and post_status().

Another driver, or the same one bound again, is a new `Driver`, without the old one's state.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pyvmm.devices.balloon import events as trace
from pyvmm.devices.balloon.protocol import (
    VERSIONS,
    Capabilities,
    CapabilitiesReport,
    CapabilitiesResponse,
    Info,
    StatusReport,
    Version,
    VersionRequest,
    VersionResponse,
)
from pyvmm.errors import GuestProtocolError

REPLY_LIMIT = 16
"""Limit of negotiation answers queued for lack of room. A driver sends one request at a time."""

STATUS_PAGES_LIMIT = 1 << 51
"""Pages from which on a figure in a status report is refused: in bytes the figures must fit into a signed number of
64 bits, in which a monitor's client may store them."""


@dataclass(slots=True)
class Driver:
    """State of one bound driver. `newest` is the newest version that we accept, `replies` its queue of messages."""

    newest: Version
    version: Version | None = None
    caps: Capabilities | None = None
    status: StatusReport | None = None
    replies: deque[bytes] = field(default_factory=deque)
    _pages_at_report: int = 0  # the guest's size in pages at that report

    def on_version(self, request: VersionRequest) -> bool:
        """Handle a version request; returns whether the version is agreed."""
        offered = Version(request.version)
        if trace.incoming_version.on:
            trace.incoming_version(offered.major, offered.minor)
        accepted = offered in VERSIONS and offered <= self.newest
        self._reply(VersionResponse.of(request.trans_id, accepted).build())
        if accepted:
            self.version = offered
        return accepted

    def on_capabilities(self, report: CapabilitiesReport, *, suppress_reports: bool) -> Capabilities:
        """Handle the driver's capabilities."""
        if trace.incoming_caps.on:
            trace.incoming_caps(report.caps & 0xFFFFFFFF)
        self.caps = Capabilities(report.caps)
        self._reply(CapabilitiesResponse.of(report.trans_id, suppress_reports=suppress_reports).build())
        return self.caps

    def queue_info(self, trans_id: int, pages: int) -> None:
        """Queue the message with the guest's maximum size."""
        if trace.info_sent.on:
            trace.info_sent(pages)
        self._reply(Info.of(trans_id, pages).build())

    def on_status(self, report: StatusReport, current: int) -> None:
        """Handle a status report; the guest has `current` pages. Raises GuestProtocolError for absurd figures."""
        if max(report.available_pages, report.committed_pages) >= STATUS_PAGES_LIMIT:
            raise GuestProtocolError("balloon: a status report with an impossible amount of memory")
        if trace.status_report.on:
            trace.status_report(report.available_pages, report.committed_pages)
        self.status, self._pages_at_report = report, current

    def available_pages(self, current: int) -> int | None:
        """Return the available pages of the last report, adjusted for resizes since; None before the first report."""
        if self.status is None:
            return None
        return max(0, self.status.available_pages + current - self._pages_at_report)

    def _reply(self, message: bytes) -> None:
        if len(self.replies) >= REPLY_LIMIT:
            raise GuestProtocolError(f"balloon: {REPLY_LIMIT} answers wait for a guest that does not read")
        self.replies.append(message)
