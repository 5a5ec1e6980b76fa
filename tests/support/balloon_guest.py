"""The guest's side of Dynamic Memory as Linux plays it, without a bus: host messages in, guest messages out.

Keeps which pages it let go of, and objects where a real kernel would be corrupted: a page given back that is not out.
Hot-add is Linux's hot_add_req(), process_hot_add() and handle_pg_range() line by line, in pages and blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pyvmm.devices.balloon.protocol import (
    RANGES_LIMIT,
    BalloonRequest,
    BalloonResponse,
    CapabilitiesReport,
    CapabilitiesResponse,
    HostMessage,
    HotAddRequest,
    HotAddResponse,
    MessageType,
    StatusReport,
    UnballoonRequest,
    UnballoonResponse,
    VersionRequest,
    VersionResponse,
)

HUGE = 512


@dataclass
class Region:
    """struct hv_hotadd_state: memory the driver made, or is about to, and how much of it the host has given."""

    start: int
    end: int
    ha_end: int
    covered_end: int


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
        self.block = 128 << 8  # pages
        self.known: set[int] = set()  # blocks that the kernel has memory devices for
        self.regions: list[Region] = []
        self.hot_adds_refused = False
        self.out_of_memory = 0  # blocks that fail before one succeeds
        self.blocks_left = 1 << 30
        self.hot_added: set[int] = set()

    def rebind(self) -> None:
        """Unbound and bound: the driver forgets its regions, the kernel keeps its memory."""
        self.regions = []
        self.hot_adds_refused = False

    def _next_id(self) -> int:
        self._id += 1
        return self._id

    def version(self, version: int = 0x20000, last: int = 0) -> bytes:
        return VersionRequest(MessageType.VERSION_REQUEST, 16, self._next_id(), version, last).build()

    def caps(self, caps: int | None = None) -> bytes:
        if caps is None:
            caps = 3 | (self.block // 256).bit_length() - 1 << 2
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
            case HotAddRequest():
                yield from self._hot_add(message)
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

    def _hot_add(self, request: HotAddRequest) -> Iterator[bytes]:
        (start, count), region = request.range, request.region
        specified = region is not None
        if region is None:
            region = start // self.block * self.block, -(-count // self.block) * self.block
        pages = 0 if self.hot_adds_refused else self._process_hot_add(start, count, *region, specified=specified)
        result = int(pages > 0 or self.hot_adds_refused)
        yield HotAddResponse(MessageType.HOT_ADD_RESPONSE, 16, self._next_id(), pages, result).build()

    def _process_hot_add(self, start: int, count: int, region: int, size: int, *, specified: bool) -> int:
        if not specified:
            for has in self.regions:
                if has.start <= start < has.end:
                    assert has.covered_end == start, "a gap: pages that never come online"
                    has.end += -(-max(0, start + count - has.end) // self.block) * self.block
                    return self._range(start, count)
        self.regions.append(Region(region, region + size, region, start))
        return self._range(start, count)

    def _range(self, start: int, count: int) -> int:
        has = next(each for each in self.regions if each.start <= start < each.end)
        before = has.covered_end
        if start < has.ha_end:
            online = min(has.ha_end - start, count)
            self._online(has.covered_end, online)
            has.covered_end += online
            count -= online
        if has.ha_end < has.end and count > 0:
            room = has.end - has.ha_end
            size = -(-count // self.block) * self.block if count <= room else room
            for _ in range(size // self.block):
                block, part = has.ha_end, min(count, self.block)
                assert block % self.block == 0, "not a block of the guest"
                if block in self.known:
                    self.hot_adds_refused = True  # -EEXIST
                    break
                if self.out_of_memory or not self.blocks_left:
                    self.out_of_memory = max(0, self.out_of_memory - 1)
                    break
                self.known.add(block)
                self.blocks_left -= 1
                has.ha_end += self.block
                self._online(has.covered_end, part)
                has.covered_end += part
                count -= part
        return has.covered_end - before

    def _online(self, start: int, count: int) -> None:
        pages = set(range(start, start + count))
        assert not pages & (self.hot_added | self.free | self.out), "memory added twice: corruption"
        self.hot_added |= pages
        self.free |= pages

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
