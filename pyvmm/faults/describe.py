"""Texts about fault rules: what `--fault help` prints, and the tables of docs/faults.md."""

from __future__ import annotations

import textwrap
from itertools import groupby

from pyvmm.faults import layouts
from pyvmm.faults.library import LIBRARY
from pyvmm.faults.parse import ACTIONS, NEEDS
from pyvmm.faults.points import POINTS

WIDTH = 112

SYNTAX = """\
A rule is POINT:ACTION[,KEY=VALUE...], or the name of a fault below, with keys or without:

    message.out:drop,type=OPEN_RESULT,channel=hv-balloon,once
    packet.out:change,message=UNBALLOON_REQUEST,to.range_count=2000
    torndown-withheld,after=1

KEY selects what crosses the point (type=OPEN_RESULT, channel=hv-balloon, relid=3), or is one of
    after=N    skip the first N that are selected        once, count=N   act once, N times
    state=S    act in this state only (first: start)     new=S           enter a state, when it has acted
and those of the action. Of several rules for a point the first that acts is the only one; `pass` lets it be."""


def describe() -> str:
    """Return what `--fault help` prints."""
    lines = [*SYNTAX.splitlines(), "", "Actions"]
    lines += _rows(
        [(name, text + (f" ({NEEDS[name]}= is needed)" if name in NEEDS else "")) for name, text in ACTIONS.items()]
    )
    lines += ["", "Points (in: from the guest, out: to the guest or the host)"]
    for point in POINTS.values():
        selectors = [point.kind, *point.fields] if point.kind else list(point.fields)
        text = point.what + "."
        if selectors:
            text += f" Selected by {', '.join(selectors)}."
        if point.settable or point.has_bytes:
            text += f" Changed: {', '.join([*(f'to.{each}' for each in point.settable), *_bytes(point.name)])}."
        if point.note:
            text += f" {point.note}"
        lines += _rows([(point.name, text)])
        lines += _rows([("", "Actions: " + ", ".join(point.actions))])
    for group, faults in groupby(LIBRARY.values(), key=lambda each: each.group):
        lines += ["", group]
        lines += _rows([(each.name, each.breaks) for each in faults])
    lines += ["", "docs/faults.md says which rule of the protocol each breaks, and of which rules it is made."]
    return "\n".join(lines)


def _bytes(point: str) -> list[str]:
    return (["bytes="] if POINTS[point].has_bytes else []) + (
        ["to.NAME of its message"] if layouts.names(point) else []
    )


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    width = 34
    lines = []
    for name, text in rows:
        first, *rest = textwrap.wrap(text, WIDTH - width)
        lines.append(f"  {name:{width - 3}} {first}")
        lines += [f"{'':{width}}{line}" for line in rest]
    return lines


def library_table() -> str:
    """Return the library as Markdown: a table for each group."""
    lines: list[str] = []
    for group, faults in groupby(LIBRARY.values(), key=lambda each: each.group):
        lines += [f"### {group}", "", "| fault | what happens | against | rule |", "|---|---|---|---|"]
        for each in faults:
            rules = "<br>".join(f"`{rule}`" for rule in each.rules)
            lines.append(f"| `{each.name}` | {each.breaks} | {each.against} | {rules} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def points_table() -> str:
    """Return the points as a Markdown table."""
    lines = ["| point | what crosses it | selected by | changed by | actions |", "|---|---|---|---|---|"]
    for point in POINTS.values():
        selectors = ", ".join(f"`{each}`" for each in ([point.kind] if point.kind else []) + list(point.fields))
        changes = ", ".join(
            [*(f"`to.{each}`" for each in point.settable), *(f"`{each}`" for each in _bytes(point.name))]
        )
        what = point.what + (f". {point.note}" if point.note else "")
        lines.append(f"| `{point.name}` | {what} | {selectors} | {changes} | {', '.join(point.actions)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(points_table())
    print(library_table(), end="")
