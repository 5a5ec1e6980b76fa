"""State machines as SVG, from tables of transitions: rows by distance from the first state, numbered arrows."""

from __future__ import annotations

from pyvmm.transitions import Transitions
from tests.support.book.drawing import WIDTH, _document, _text

WIDE = 138
ROW = 96
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="infill" d="M0 0L8 4L0 8z"/></marker></defs>'
)
COMMON = 0.6
"""A state that can follow so large a part of all others is named in a line of text, not drawn with its arrows."""


def name_of(state: object) -> str:
    """Return a state's name, a class's or a member's."""
    return str(getattr(state, "NAME", None) or getattr(state, "value", state))


def common(table: Transitions) -> dict[object, str]:
    """Return the states that may follow almost any, with the reason."""
    found: dict[object, str] = {}
    for state in table:
        reasons = [nexts[state] for nexts in table.values() if state in nexts]
        if len(reasons) >= COMMON * len(table) and len(set(reasons)) == 1:
            found[state] = reasons[0]
    return found


def drawn(table: Transitions) -> list[tuple[object, object, str]]:
    """Return the transitions that are drawn, in the order of their numbers."""
    everywhere = common(table)
    first = next(iter(table))
    return [
        (old, new, why)
        for old, nexts in table.items()
        for new, why in nexts.items()
        if new not in everywhere or (old is first and new is not first)
    ]


def _rows(table: Transitions) -> list[list[object]]:
    """Return the states in rows: by the fewest transitions from the first."""
    edges = drawn(table)
    rank = {next(iter(table)): 0}
    waiting = list(rank)
    while waiting:
        old = waiting.pop(0)
        for source, new, _ in edges:
            if source is old and new not in rank:
                rank[new] = rank[old] + 1
                waiting.append(new)
    last = max(rank.values())
    return [[state for state in table if rank.get(state, last) == number] for number in range(last + 1)]


def svg(table: Transitions) -> str:
    """Return the picture."""
    rows = _rows(table)
    everywhere = common(table)
    level = {state: number for number, row in enumerate(rows) for state in row}
    edges = [(number, *edge) for number, edge in enumerate(drawn(table), 1)]
    forth = [edge for edge in edges if level[edge[2]] == level[edge[1]] + 1]
    remarks = {state: ["from almost any"] if state in everywhere and level[state] else [] for state in table}
    for number, old, new, _ in edges:
        if level[new] != level[old] + 1:
            remarks[old].append(f"{number} back to {name_of(new)}" if new is not old else f"{number} stays")
    at: dict[object, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        gap = (WIDTH - 20) / len(row)
        for column, state in enumerate(row):
            at[state] = 10 + gap * (column + 0.5), 34 + ROW * number
    body = [_TIP]
    for number, old, new, _ in forth:
        (x1, y1), (x2, y2) = at[old], at[new]
        shift = max(-40.0, min(40.0, (x2 - x1) / 6))
        x1, y1, x2, y2 = x1 + shift, y1 + _height(remarks[old]) / 2, x2 - shift, y2 - _height(remarks[new]) / 2
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        line = f"M{x1:.0f} {y1:.0f}L{x2:.0f} {y2:.0f}"
        body += [
            f'<path class="in" d="{line}" fill="none" stroke-width="1.4" marker-end="url(#tip)"/>',
            f'<circle class="paper" cx="{x:.0f}" cy="{y:.0f}" r="9"/>',
            _text(round(x), round(y + 4), str(number), "soft", 11),
        ]
    for state, (x, y) in at.items():
        height = _height(remarks[state])
        top = y - height / 2
        body += [
            f'<rect class="ram line" x="{x - WIDE / 2:.0f}" y="{top:.0f}" width="{WIDE}" height="{height}" rx="7"/>',
            _text(round(x), round(top + 19), name_of(state), "ink", 12),
        ]
        body += [_text(round(x), round(top + 33 + 12 * n), each, "soft", 10) for n, each in enumerate(remarks[state])]
    return _document(ROW * (len(rows) - 1) + 68, body)


def _height(remarks: list[str]) -> int:
    return 30 + 12 * len(remarks)
