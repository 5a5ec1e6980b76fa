"""Traces the ranges of a balloon response as QEMU does: joined where they touch, each cut at the hot-added range.

Source: QEMU hw/hyperv/hv-balloon.c, hv_balloon_remove_response_handle_range().

    joined range        |----------------------------------------------|     hv_balloon_remove_response
    our range                       |=====================|
                        |  hole     |  common             |  remainder |     hv_balloon_remove_response_{...}

A range that does not touch our range is all remainder. Ranges join only if `both` is the same: 1 where the host takes
the pages back as well, 0 where it does not (not RAM, part of a huge page, a failed discard).
"""

from __future__ import annotations

from pyvmm.devices.balloon import events as trace
from pyvmm.devices.balloon.ranges import PageRange, PageRanges

_EVENTS = (
    trace.remove_response,
    trace.remove_response_hole,
    trace.remove_response_common,
    trace.remove_response_remainder,
)


def trace_wanted() -> bool:
    """Return whether any of these events is traced."""
    return any(event.on for event in _EVENTS)


def trace_response(named: PageRanges, both: PageRanges, our: PageRange, counted: PageRanges) -> None:
    """Trace the pages that a response named. `both`: pages that the host discards, too; `our`: the hot-added range,
    of zero pages while there is none; `counted`: pages of it that this response took out.
    """
    pieces = [(each, 1) for each in named & both] + [(each, 0) for each in named - both]
    for each, is_both in sorted(pieces):
        _trace_range(each, is_both, our, counted)


def _trace_range(each: PageRange, both: int, our: PageRange, counted: PageRanges) -> None:
    start, pages = each
    trace.remove_response(pages, start, both)
    if start < our.end and our.start < each.end:
        if start < our.start:
            trace.remove_response_hole(our.start - start, start, pages, start, our.start, both)
        first, end = max(start, our.start), min(each.end, our.end)
        removed = (PageRanges([(first, end - first)]) & counted).pages
        trace.remove_response_common(end - first, first, pages, start, our.pages, our.start, removed, both)
        start = end
    if start < each.end:
        trace.remove_response_remainder(each.end - start, start, both)
