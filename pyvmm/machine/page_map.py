"""Who owns which page of the guest's address space now, for `pyvmm map` and `x-query-map`.

Two layers: every page of RAM and of the hot-add window has an owner by the balloon's ledger, and single pages within
have a purpose that the guest gave them, by MSRs and by GPADLs.

    |        boot RAM                          | no RAM |  hot-add window                      |
    | ram | out | ram | SIMP | ring | ram | ...|        | added | unconfirmed | unmapped       |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyvmm.contain import contained
from pyvmm.errors import GuestError, HostError
from pyvmm.hyperv.tlfs import Msr, PageMsr
from pyvmm.machine import events as trace
from pyvmm.memory import PAGE_SIZE
from pyvmm.qapi import PageMap, PageOwner, PageSpan
from pyvmm.vmbus.states import Open

if TYPE_CHECKING:
    from pyvmm.devices.balloon.ranges import PageRanges
    from pyvmm.machine.machine import Machine
    from pyvmm.vmbus.states import ServedChannel

SPANS_LIMIT: Final = 4096
"""Spans of a reply: a guest may have every second page out, and a terminal shows some thousand characters."""
TRACED_LIMIT: Final = 256
"""Spans, and single pages, of a map in a trace: it is one line there."""
SPECIAL_LIMIT: Final = 2048
"""Single pages with a purpose in a reply; GPADLs of a network card have thousands, most of them neighbours."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes from `start` to `end` with one owner. `detail` is for people: a channel's name, a VP."""

    start: int
    end: int
    owner: PageOwner
    detail: str = ""


def page_map(machine: Machine, limit: int = SPANS_LIMIT) -> PageMap:
    """Return the map, with some `limit` spans at most. On the loop's thread, once the services have started."""
    base = list(_base(machine))
    coarse = len(base) > limit
    if coarse:
        base = _coarse(base, limit)
    special = sorted(_special(machine), key=lambda each: each.start)
    shown = special[: min(limit, SPECIAL_LIMIT)]
    totals: dict[str, int] = {}
    for each in (*_base(machine), *special):
        totals[each.owner] = totals.get(each.owner, 0) + each.end - each.start
    return {
        "name": machine.name,
        "spans": [_row(each) for each in base],
        "special": [_row(each) for each in shown],
        "totals": [{"owner": owner, "size": size} for owner, size in totals.items()],  # type: ignore[typeddict-item]
        "coarse": coarse,
        "left-out": len(special) - len(shown),
    }


@contained("map of pages")
def trace_map(machine: Machine) -> None:
    """Trace the map, for the report of the run."""
    trace.page_map(page_map(machine, TRACED_LIMIT))


def _row(span: Span) -> PageSpan:
    row: PageSpan = {"start": span.start, "size": span.end - span.start, "owner": span.owner}
    if span.detail:
        row["detail"] = span.detail
    return row


# The base layer


def _base(machine: Machine) -> Iterator[Span]:
    """Yield the owners of RAM and window by rising address, without gaps within a region."""
    balloon = machine.balloon
    ledger = balloon.machine.ledger if balloon is not None else None
    window = machine.window
    window_start = window.gpa if window is not None else 1 << 64
    for region in sorted(machine.memory, key=lambda each: each.gpa):
        if region.gpa < window_start:
            layers: list[tuple[PageOwner, PageRanges]] = []
            if ledger is not None:
                layers = [("out", ledger.boot.removed_both), ("undiscarded", ledger.boot.removed_guest)]
            yield from _split(region.gpa, region.gpa + region.size, "ram", layers)
    if window is None:
        return
    at, end = window.gpa, window.gpa + window.backing.size
    for region in sorted((each for each in machine.memory if each.gpa >= window_start), key=lambda each: each.gpa):
        if at < region.gpa:
            yield Span(at, region.gpa, "unmapped")
        layers = []
        if ledger is not None:
            layers = [("out", ledger.added.removed_both), ("undiscarded", ledger.added.removed_guest)]
            if ledger.hot_range is not None:
                layers.append(("unconfirmed", ledger.hot_range.unconfirmed))
        yield from _split(region.gpa, region.gpa + region.size, "added", layers)
        at = region.gpa + region.size
    if at < end:
        yield Span(at, end, "unmapped")


def _split(start: int, end: int, owner: PageOwner, layers: list[tuple[PageOwner, PageRanges]]) -> Iterator[Span]:
    """Yield the spans of [start, end): those of the layers, which are disjoint, and `owner` between them."""
    pieces = sorted(
        (max(start, each.start * PAGE_SIZE), min(end, each.end * PAGE_SIZE), name)
        for name, ranges in layers
        for each in ranges
        if each.start * PAGE_SIZE < end and each.end * PAGE_SIZE > start
    )
    at = start
    for low, high, name in pieces:
        if at < low:
            yield Span(at, low, owner)
        if high > max(at, low):
            yield Span(max(at, low), high, name)
            at = high
    if at < end:
        yield Span(at, end, owner)


def _coarse(spans: list[Span], limit: int) -> list[Span]:
    """Merge spans into at most some `limit`: pieces of equal size, each with the owner of the most of its bytes."""
    total = sum(each.end - each.start for each in spans)
    unit = max(PAGE_SIZE, -(-total // limit // PAGE_SIZE) * PAGE_SIZE)
    made: list[Span] = []
    shares: dict[PageOwner, int] = {}
    begin = at = spans[0].start

    def close() -> None:
        if at > begin:
            most = max(shares, key=lambda owner: shares[owner])
            detail = "" if len(shares) == 1 else f"{100 * shares[most] // (at - begin)}%"
            made.append(Span(begin, at, most, detail))

    for span in spans:
        if span.start != at:  # another region
            close()
            begin, shares = span.start, {}
        low = span.start
        while low < span.end:
            high = min(span.end, begin + unit)
            shares[span.owner] = shares.get(span.owner, 0) + high - low
            at = low = high
            if at == begin + unit:
                close()
                begin, shares = at, {}
    close()
    return made


# Single pages


def _special(machine: Machine) -> Iterator[Span]:
    """Yield the pages that the guest gave a purpose. They are RAM, but for what the guest chose wrongly."""
    for vp, state in enumerate(machine.engine.synic.vps):
        yield from _page(state.simp, "synic-messages", f"VP {vp}")
        yield from _page(state.siefp, "synic-events", f"VP {vp}")
    for msr, owner in ((Msr.HYPERCALL, "hypercall"), (Msr.REFERENCE_TSC, "reference-tsc")):
        yield from _page(PageMsr(_msr(machine, msr)), owner)  # type: ignore[arg-type]
    server = machine.services.bus.server
    if server.monitor_page:
        yield Span(server.monitor_page, server.monitor_page + PAGE_SIZE, "monitor-page", "guest to host")
    for (relid, number), gpadl in server.gpadls.lists.items():
        channel = server.channels.get(relid)
        name = channel.offer.name if channel is not None else f"channel {relid}"
        if channel is not None and _carries_rings(channel, number):
            yield from _rings(machine, channel, gpadl.ranges[0].pages, name)
        else:
            pages = (page for each in gpadl.ranges for page in each.pages)
            yield from _runs(pages, "gpadl", f"{name}, gpadl {number:#x}")


def _carries_rings(channel: ServedChannel, gpadl: int) -> bool:
    return isinstance(channel.state, Open) and channel.state.gpadl == gpadl


def _rings(machine: Machine, channel: ServedChannel, pages: list[int], name: str) -> Iterator[Span]:
    """Yield the two rings of an open channel."""
    opened = dict(machine.services.bus.open_channels()).get(channel)
    send = opened.reader.size // PAGE_SIZE + 1 if opened is not None else len(pages)
    yield from _runs(pages[:send], "ring", f"{name}, guest to host")
    yield from _runs(pages[send:], "ring", f"{name}, host to guest")


def _page(value: PageMsr, owner: PageOwner, detail: str = "") -> Iterator[Span]:
    if value.enable:
        yield Span(value.gpa, value.gpa + PAGE_SIZE, owner, detail)


def _runs(pages: Iterable[int], owner: PageOwner, detail: str) -> Iterator[Span]:
    """Yield the spans of pages, neighbours merged."""
    begin = end = -1
    for page in pages:
        if page != end:
            if end > begin:
                yield Span(begin, end, owner, detail)
            begin = page
        end = page + PAGE_SIZE
    if end > begin:
        yield Span(begin, end, owner, detail)


def _msr(machine: Machine, msr: Msr) -> int:
    """Return a page's MSR, wherever it is kept; 0 if it cannot be read."""
    engine = machine.engine
    kept = {Msr.HYPERCALL: "hypercall_page", Msr.REFERENCE_TSC: "reference_tsc"}[msr]
    found = getattr(engine, kept, None)
    if found is not None:
        return int(found)
    threads = machine.slot.threads
    if not threads:
        return 0
    try:
        with machine.slot.stopped_vcpus() if machine.state == "running" else nullcontext():
            return threads[0].vcpu.get_msrs([msr])[msr]
    except (HostError, GuestError, KeyError):
        return 0
