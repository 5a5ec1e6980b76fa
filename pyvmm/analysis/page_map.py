"""A map of who owns which page of a guest (`x-query-map`), drawn for a terminal and as SVG.

Both cut the address space into cells of equal size, a power of two. A cell that holds a page with a purpose shows
that one, else the owner of most of its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Final, cast

from pyvmm.errors import ConfigError
from pyvmm.guest_text import one_line
from pyvmm.qapi import PageMap, PageSpan
from pyvmm.sizes import format_size

PAGE: Final = 4096
ROWS: Final = 16
"""Lines of cells, at most some: the cells' size is chosen for that."""
ADDRESS_WIDTH: Final = 14

Paint = Callable[[str, str], str]
"""Colours a text as an owner's cell: `paint(owner, text)`."""


@dataclass(frozen=True, slots=True)
class Look:
    """How an owner's cells look: a letter, colours for terminals (ECMA-48) and pictures, words for the legend."""

    mark: str
    colour: str
    fill: str
    words: str


LOOKS: Final[dict[str, Look]] = {
    "ram": Look("█", "34", "#4f81bd", "RAM of the guest"),
    "out": Look("·", "90", "#c8ccd2", "out: given to the host through the balloon"),
    "undiscarded": Look("○", "33", "#d9a441", "out, but still in the host's memory"),
    "added": Look("▓", "36", "#3aa6a6", "hot-added RAM"),
    "unconfirmed": Look("▒", "35", "#9b6fb5", "hot-added, not confirmed by the guest"),
    "unmapped": Look("-", "90", "#eceef1", "hot-add window: address space without RAM"),
    "ring": Look("R", "1;32", "#2e9e4f", "ring of a channel"),
    "gpadl": Look("G", "32", "#86c06c", "other memory lent to a device (GPADL)"),
    "synic-messages": Look("M", "1;33", "#e07b39", "SynIC message page (SIMP)"),
    "synic-events": Look("E", "1;33", "#c95f8b", "SynIC event flags (SIEFP)"),
    "hypercall": Look("H", "1;31", "#c0392b", "hypercall page"),
    "reference-tsc": Look("T", "31", "#8e5a3c", "reference TSC page"),
    "monitor-page": Look("N", "1;35", "#6a5acd", "monitor page"),
}
"""By owner, in the order of the legend. An owner that a newer machine names gets UNKNOWN."""
UNKNOWN: Final = Look("?", "0", "#000000", "unknown")


def look(owner: str) -> Look:
    """Return how an owner's cells look."""
    return LOOKS.get(owner, UNKNOWN)


def read_map(reply: object) -> PageMap:
    """Return a monitor's reply as a map, if it is one. Raises ConfigError."""
    try:
        found = cast("PageMap", reply)
        spans = [*found["spans"], *found["special"], *found["totals"]]
        sizes = [each["size"] for each in spans]
        starts = [each["start"] for each in (*found["spans"], *found["special"])]
        words = [found["name"], *(each["owner"] for each in spans)]
        fits = all(type(each) is int and 0 <= each < 1 << 64 for each in (*sizes, *starts, found["left-out"]))
        if fits and all(type(each) is str for each in words) and type(found["coarse"]) is bool:
            return found
    except (KeyError, TypeError):
        pass
    raise ConfigError("the machine's answer is no map of pages: is it of another version of pyvmm?")


@dataclass(frozen=True, slots=True)
class Strip:
    """A stretch of address space without gaps, in cells: each the owner that it shows."""

    start: int
    end: int
    cells: list[str]


@dataclass(frozen=True, slots=True)
class Grid:
    """The map in cells of `cell` bytes."""

    cell: int
    strips: list[Strip]


def grid(found: PageMap, columns: int, rows: int = ROWS) -> Grid:
    """Cut the map into cells for lines of `columns` cells."""
    extents = list(_extents(found["spans"]))
    total = sum(end - start for start, end in extents)
    cell = PAGE
    while total > cell * columns * rows:
        cell *= 2
    return Grid(cell, [_strip(found, start, end, cell) for start, end in extents])


def _extents(spans: Sequence[PageSpan]) -> Iterator[tuple[int, int]]:
    """Yield the stretches without gaps."""
    begin = end = -1
    for span in sorted(spans, key=lambda each: each["start"]):
        if span["start"] > end:
            if end > begin:
                yield begin, end
            begin = span["start"]
        end = max(end, span["start"] + span["size"])
    if end > begin:
        yield begin, end


def _strip(found: PageMap, start: int, end: int, cell: int) -> Strip:
    count = -(-(end - start) // cell)
    shares: list[dict[str, int]] = [{} for _ in range(count)]
    for span in found["spans"]:
        low, stop = max(start, span["start"]), min(end, span["start"] + span["size"])
        while low < stop:
            index = (low - start) // cell
            high = min(stop, start + (index + 1) * cell)
            shares[index][span["owner"]] = shares[index].get(span["owner"], 0) + high - low
            low = high
    cells = [max(share, key=lambda owner: share[owner]) if share else "unmapped" for share in shares]
    for span in found["special"]:
        low, stop = max(start, span["start"]), min(end, span["start"] + span["size"])
        for index in range(max(0, (low - start) // cell), -(-(stop - start) // cell) if low < stop else 0):
            cells[index] = span["owner"]
    return Strip(start, end, cells)


def lines(found: PageMap, width: int, paint: Paint) -> Iterator[str]:
    """Return the lines for a terminal: cells, legend, pages with a purpose."""
    columns = 16
    while columns * 2 <= width - ADDRESS_WIDTH - 2 and columns < 128:
        columns *= 2
    cut = grid(found, columns)
    ram = sum(
        each["size"] for each in found["totals"] if each["owner"] in ("ram", "added", "undiscarded", "unconfirmed")
    )
    name = one_line(found["name"])
    yield f"{name}: {format_size(ram)} with the guest; a character is {format_size(cut.cell)}"
    before = None
    for strip in cut.strips:
        if before is not None and strip.start > before:
            yield paint("unmapped", f"{'':{ADDRESS_WIDTH}}no RAM: {format_size(strip.start - before)}")
        above: list[str] = []
        skipped = 0
        for begin in range(0, len(strip.cells), columns):
            row = strip.cells[begin : begin + columns]
            if row == above:
                skipped += 1
                continue
            yield from _skipped(skipped, paint)
            above, skipped = row, 0
            cells = (paint(owner, look(owner).mark * count) for _, owner, count in _runs(row))
            yield f"{strip.start + begin * cut.cell:#012x}  " + "".join(cells)
        yield from _skipped(skipped, paint)
        before = strip.end
    yield ""
    yield from _legend(found, paint, width)
    yield from _specials(found, paint, width)


def _skipped(count: int, paint: Paint) -> Iterator[str]:
    if count:
        yield paint("unmapped", f"{'':{ADDRESS_WIDTH}}{count} more {'line' if count == 1 else 'lines'} like this")


def _runs(row: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    """Yield the runs of equal cells: where each begins, its owner, its length."""
    begin = 0
    for owner, cells in groupby(row):
        count = len(list(cells))
        yield begin, owner, count
        begin += count


def _ordered_totals(found: PageMap) -> Iterator[tuple[str, int, str]]:
    """Yield each owner of anything in the legend's order: its name, bytes and words; unknown ones last."""
    totals: dict[str, int] = {each["owner"]: each["size"] for each in found["totals"]}
    for owner in [*LOOKS, *(each for each in totals if each not in LOOKS)]:
        if owner in totals:
            yield owner, totals[owner], look(owner).words if owner in LOOKS else one_line(owner)


def _legend(found: PageMap, paint: Paint, width: int) -> Iterator[str]:
    for owner, size, words in _ordered_totals(found):
        if size:
            text = f"{format_size(size).rjust(10)}  {words}"
            yield f"  {paint(owner, look(owner).mark)}  {text}"[: width + 20]


def _specials(found: PageMap, paint: Paint, width: int) -> Iterator[str]:
    shown = found["special"]
    if not shown:
        return
    yield ""
    room = max(20, width - 2)
    for span in shown[:32]:
        end = span["start"] + span["size"]
        what = look(span["owner"]).words if span["owner"] in LOOKS else span["owner"]
        detail = f": {span['detail']}" if span.get("detail") else ""
        text = f"{span['start']:#012x} - {end:#012x}  {one_line(what + detail)}"
        yield f"  {paint(span['owner'], look(span['owner']).mark)}  {text[: room - 3]}"
    more = len(shown) - 32 + found["left-out"]
    if more > 0:
        yield f"  ... {more} more; --json has {len(shown)}"
    if found["coarse"]:
        yield "  the guest's pages change owner so often that each cell shows who has most of it"


# SVG

CELL: Final = 12
LISTED: Final = 14
"""Pages with a purpose that the picture lists."""
_COLUMNS: Final = 64
_LEFT, _TOP, _LINE = 110, 34, 18
_STYLE: Final = (
    ".pm text{font:12px system-ui,sans-serif;fill:#222}"
    ".pm text.a{font:11px ui-monospace,monospace;fill:#555}"
    ".pm text.t{font:600 14px system-ui,sans-serif}.pm rect.b{fill:#fff}"
    "@media(prefers-color-scheme:dark){.pm text{fill:#ddd}.pm text.a{fill:#aaa}.pm rect.b{fill:#16181d}}"
)


def svg(found: PageMap) -> str:
    """Return the map as a picture that needs no other file; light or dark as its viewer prefers."""
    cut = grid(found, _COLUMNS, rows=24)
    parts: list[str] = []
    y = _TOP
    before = None
    for strip in cut.strips:
        if before is not None and strip.start > before:
            parts.append(
                f'<text class="a" x="{_LEFT}" y="{y + 11}">no RAM: {format_size(strip.start - before)}</text>'
            )
            y += _LINE
        for begin in range(0, len(strip.cells), _COLUMNS):
            row = strip.cells[begin : begin + _COLUMNS]
            address = f"{strip.start + begin * cut.cell:#x}"
            parts.append(f'<text class="a" text-anchor="end" x="{_LEFT - 8}" y="{y + 10}">{address}</text>')
            parts += _row_of(row, y)
            y += CELL
        before = strip.end
        y += 6
    y += 12
    legend = y
    for owner, size, words in _ordered_totals(found):
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{CELL}" height="{CELL}" fill="{look(owner).fill}"/>')
        text = escape(f"{format_size(size)}  {words}")
        parts.append(f'<text x="{_LEFT + CELL + 8}" y="{y + 10}">{text}</text>')
        y += _LINE
    y = max(y, _shared(found["special"], parts, legend))
    width, height = _LEFT + _COLUMNS * CELL + 16, y + 10
    title = escape(f"{one_line(found['name'])}: a square is {format_size(cut.cell)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pm" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">'
        f"<style>{_STYLE}</style>"
        f'<rect class="b" width="{width}" height="{height}" rx="6"/><text class="t" x="16" y="22">{title}</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def _shared(special: Sequence[PageSpan], parts: list[str], y: int) -> int:
    """Add the list of pages with a purpose, right of the legend; return where it ends."""
    x = _LEFT + 31 * CELL
    for span in special[:LISTED]:
        parts.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{look(span["owner"]).fill}"/>')
        pages = span["size"] // PAGE
        detail = one_line(span.get("detail") or look(span["owner"]).words)
        text = escape(f"{span['start']:#x}  {pages} {'page' if pages == 1 else 'pages'}  {detail}"[:60])
        parts.append(f'<text class="a" x="{x + CELL + 8}" y="{y + 10}">{text}</text>')
        y += _LINE
    if len(special) > LISTED:
        parts.append(f'<text class="a" x="{x + CELL + 8}" y="{y + 10}">... {len(special) - LISTED} more</text>')
        y += _LINE
    return y


def _row_of(row: Sequence[str], y: int) -> Iterator[str]:
    for begin, owner, count in _runs(row):
        x, width = _LEFT + begin * CELL, count * CELL
        yield f'<rect x="{x}" y="{y}" width="{width}" height="{CELL - 1}" fill="{look(owner).fill}"/>'
