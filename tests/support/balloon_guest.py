"""The guest's side of Dynamic Memory as Linux plays it, without a bus: host messages in, guest messages out.

Keeps which pages it let go of, and objects where a real kernel would be corrupted: a page given back that is not out.
"""

from __future__ import annotations

from collections.abc import Iterator

from devices.balloon.protocol import (
    RANGES_LIMIT,
    BalloonRequest,
    BalloonResponse,
    CapabilitiesReport,
    CapabilitiesResponse,
    HostMessage,
    MessageType,
    StatusReport,
    UnballoonRequest,
    UnballoonResponse,
    VersionRequest,
    VersionResponse,
)

HUGE = 512
CAPS = 1 | 2 | 7 << 2  # balloon, hot add, 128 MiB


class BalloonGuest:
    """`answers(message)` yields what Linux would send for one message of the host."""

    def __init__(self, pages: int, *, floor: int = 0, first: int = 0, unit: int = HUGE) -> None:
        self.free = set(range(first, first + pages))
        self.floor = floor
        self.unit = unit
        self.out: set[int] = set()
        self.answered_unballoons = 0
        self.version_accepted = self.caps_accepted = False
        self._id = 1000

    def _next_id(self) -> int:
        self._id += 1
        return self._id

    def version(self, version: int = 0x20000, last: int = 0) -> bytes:
        return VersionRequest(MessageType.VERSION_REQUEST, 16, self._next_id(), version, last).build()

    def caps(self, caps: int = CAPS) -> bytes:
        return CapabilitiesReport(MessageType.CAPABILITIES, 32, self._next_id(), caps, 0, (1 << 64) - 1).build()

    def status(self, available: int | None = None, committed: int = 1000) -> bytes:
        available = len(self.free) if available is None else available
        return StatusReport(MessageType.STATUS_REPORT, 48, self._next_id(), available, committed, 0, 0, 0, 0).build()

    def answers(self, message: HostMessage) -> Iterator[bytes]:
        match message:
            case VersionResponse():
                self.version_accepted = bool(message.is_accepted & 1)
                if self.version_accepted:
                    yield self.caps()
            case CapabilitiesResponse():
                self.caps_accepted = bool(message.flags & 1)
            case BalloonRequest(pages=pages):
                yield from self._balloon(pages)
            case UnballoonRequest(ranges=ranges, more=more):
                for start, count in ranges:
                    for page in range(start, start + count):
                        assert page in self.out, f"page {page:#x} given back that is not out: corruption"
                        self.out.remove(page)
                        self.free.add(page)
                if not more:
                    self.answered_unballoons += 1
                    yield UnballoonResponse(MessageType.UNBALLOON_RESPONSE, 8, self._next_id()).build()

    def _balloon(self, pages: int) -> Iterator[bytes]:
        pages = min(pages, max(0, len(self.free) - self.floor))
        for unit in (self.unit, 1):
            starts = [p for p in sorted(self.free) if p % unit == 0 and all(p + i in self.free for i in range(unit))]
            ranges = [(start, unit) for start in starts[: pages // unit]]
            for start, count in ranges:
                self.free.difference_update(range(start, start + count))
                self.out.update(range(start, start + count))
            pages -= unit * len(ranges)
            for at in range(0, len(ranges), RANGES_LIMIT):
                part = ranges[at : at + RANGES_LIMIT]
                last = at + RANGES_LIMIT >= len(ranges) and (pages == 0 or unit == 1)
                yield BalloonResponse(self._next_id(), not last, part).build()
                if last:
                    return
        yield BalloonResponse(self._next_id(), False, []).build()
