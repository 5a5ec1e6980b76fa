"""How a picture shares out the terminal: which columns it has room for, how many lines each part gets. No rich."""

from __future__ import annotations

from dataclasses import dataclass

WIDE = 110
"""Columns from which nothing is left out."""

BROAD = 97
"""Columns from which the table of machines is whole."""

NARROW = 72
"""Columns below which only what matters most is left."""

TRACE_LEAST = 3
"""Trace lines for which other parts shrink."""

TRACE_UNBOUND = 8
"""Trace lines of a picture that may be as high as it likes."""

PANEL, SMALL_PANEL = 10, 7
"""Lines of the panels for exits and memory, borders included: they stay where they are."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`machines`, `channels` and `trace` are lines of what they show, `panel` is its height; 0 leaves a part out."""

    width: int
    airy: bool  # blank lines and a rule around the machines
    machines: int
    panel: int
    channels: int
    trace: int

    @property
    def wide(self) -> bool:
        return self.width >= WIDE

    @property
    def broad(self) -> bool:
        return self.width >= BROAD

    @property
    def narrow(self) -> bool:
        return self.width < NARROW


def fit(width: int, height: int | None, machines: int, channels: int) -> Layout:
    """The roomiest layout with TRACE_LEAST trace lines. What is left of `height` (None: no end) is for more."""
    if height is None:
        return Layout(width, True, machines, PANEL, channels, TRACE_UNBOUND)
    for airy, panel, rows in (
        (True, PANEL, channels),
        (False, PANEL, channels),
        (False, SMALL_PANEL, channels),
        (False, SMALL_PANEL, min(channels, 2)),
        (False, SMALL_PANEL, 0),
        (False, 0, 0),
    ):
        left = height - _lines(airy, machines, panel, rows)
        if left >= TRACE_LEAST:
            return Layout(width, airy, machines, panel, rows, left)
    machines = max(1, height - _lines(False, 0, 0, 0) - TRACE_LEAST)
    return Layout(width, False, machines, 0, 0, max(0, height - _lines(False, machines, 0, 0)))


def _lines(airy: bool, machines: int, panel: int, channels: int) -> int:
    """Lines of everything but what the trace panel shows: the head, headers and borders included."""
    return 1 + (4 if airy else 1) + machines + panel + (channels + 3 if channels else 0) + 2
