"""Output of the commands: lines, tables, fields, marks, JSON. click removes colours unless on a terminal.

Every line that a command composes is printed here, and nowhere else in `pyvmm.cli`: names, error texts and
counters come from guests, monitors and files, and are filtered by `pyvmm.guest_text`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from pyvmm.guest_text import clean, one_line

if TYPE_CHECKING:
    from pyvmm.decode import Decoded

TITLE_WIDTH = 22

Mark = Literal["ok", "missing", "note"]

_MARKS: dict[Mark, tuple[str, str]] = {"ok": ("ok", "green"), "missing": ("--", "red"), "note": ("??", "yellow")}


def echo(text: object = "", *, nl: bool = True, err: bool = False, **style: Any) -> None:
    """Print `text` in the style of click's arguments, with terminal control characters escaped."""
    shown = clean(str(text))
    click.echo(click.style(shown, **style) if style else shown, nl=nl, err=err)


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    click.echo(json.dumps(value, indent=2, default=str))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: columns as narrow as their texts allow, the header in bold."""
    lines = [tuple(map(one_line, header)), *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(click.style(text, bold=True) if number == 0 else text)


def row(cells: Sequence[str], widths: Sequence[int], *, colour: str | None = None, bold: bool = False) -> None:
    """Print one row of a table whose rows come one by one. `colour` is the first cell's."""
    first, *others = (one_line(cell).ljust(width) for cell, width in zip(cells, widths, strict=True))
    text = "  ".join([click.style(first, fg=colour) if colour else first, *others]).rstrip()
    click.echo(click.style(text, bold=True) if bold else text)


def painted(line: str) -> None:
    """Print a line with colours whose texts are filtered already; click removes the colours unless on a terminal."""
    click.echo(line)


def progress(text: str) -> None:
    """Show `text` in the terminal's current line, in place of what `progress` showed there; nothing without one."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{one_line(text)}", nl=False, err=True)


def fields(pairs: Iterable[tuple[str, str]], indent: str = "  ") -> None:
    """Print lines of `name   text`; empty texts are left out."""
    shown = [(one_line(name), one_line(text)) for name, text in pairs if text]
    width = max((len(name) for name, _ in shown), default=0)
    for name, text in shown:
        click.echo(f"{indent}{click.style(name.ljust(width), dim=True)}  {text}")


_PAINTS: dict[str, dict[str, Any]] = {
    "title": {"fg": "cyan"},
    "offset": {"dim": True},
    "bytes": {"fg": "blue"},
    "name": {"bold": True},
    "value": {},
    "meaning": {"fg": "green"},
}


def decoded(found: Decoded) -> None:
    """Print decoded structures: for each field offset, bytes, name, value and meaning."""
    from pyvmm.decode.text import lines

    for line in lines(found, paint=lambda kind, text: click.style(one_line(text), **_PAINTS[kind])):
        click.echo(line)


def finding(mark: Mark, title: str, text: str, fix: str = "") -> None:
    """Print a line of `pyvmm doctor`, and a second one with the fix."""
    word, colour = _MARKS[mark]
    title, text = one_line(title), one_line(text)
    click.echo(f"{click.style(word, fg=colour, bold=True)}  {title.ljust(TITLE_WIDTH)}  {text}".rstrip())
    if fix:
        click.echo(f"    {' ' * TITLE_WIDTH}  {click.style('->', fg=colour)} {one_line(fix)}")


def running(title: str) -> None:
    """Print the name of a step that runs, on a terminal; `overwrite` removes it."""
    click.echo(f"..  {one_line(title)}", nl=False)


def overwrite() -> None:
    """Remove what `running` printed."""
    click.echo("\r\x1b[K", nl=False)


_BALLOON_STATES = {
    "Closed": "no driver in the guest",
    "AwaitVersion": "driver starting",
    "AwaitCaps": "driver starting",
    "Idle": "idle",
    "BalloonPosting": "taking memory out",
    "BalloonWaiting": "taking memory out",
    "BalloonPausing": "short of the target, retrying soon",
    "UnballoonPosting": "giving memory back",
    "UnballoonWaiting": "giving memory back",
    "HotAddPosting": "adding memory",
    "HotAddWaiting": "adding memory",
    "HotAddPausing": "adding memory, retrying soon",
}


def balloon_state(state: str) -> str:
    """Return a balloon state (`devices.balloon.states`) as text for people."""
    return _BALLOON_STATES.get(state, state)


def duration(seconds: float) -> str:
    """Format a duration: `42 s`, `3 min 5 s`, `2 h 3 min`, `4 days 2 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole // 60 % 60} min"
    return f"{whole // 86400} days {whole // 3600 % 24} h"
