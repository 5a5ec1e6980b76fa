"""Decoded structures as lines for a terminal: the bytes beside the names of the fields.

+0  0e 00 00 00              type          14           INITIATE_CONTACT
+8  03 00 05 00              version       0x50003      WIN10_5_3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyvmm.decode.fields import Decoded, Part, Row

Paint = Callable[[str, str], str]
"""Colours a text: the first argument is `name`, `bytes`, `value`, `meaning`, `title` or `offset`."""

BYTES_LIMIT = 8  # of a field, shown beside its name; text of an array shows its own


def plain(_kind: str, text: str) -> str:
    """Return the text as it is."""
    return text


def lines(decoded: Decoded, width: int = 100, paint: Paint = plain) -> Iterator[str]:
    """Return the lines of all parts, each at most `width` columns."""
    for part in decoded.parts:
        yield from part_lines(part, width, paint)


def part_lines(part: Part, width: int = 100, paint: Paint = plain) -> Iterator[str]:
    """Return the lines of one part: its title, then one line for each row."""
    yield paint("title", cut(part.title, width))
    if not part.rows:
        return
    names = max(len(row.name) for row in part.rows)
    values = max((len(row.text) for row in part.rows if len(row.text) <= 18), default=0)
    for row in part.rows:
        yield _line(row, names, values, width, paint)


def _line(row: Row, names: int, values: int, width: int, paint: Paint) -> str:
    cells = (
        ("offset", f"  +{row.offset}".ljust(7)),
        ("bytes", _bytes(row.data).ljust(3 * BYTES_LIMIT + 3)),
        ("name", row.name.ljust(names + 2)),
        ("value", f"{row.text.ljust(values)}  " if row.meaning else row.text),
        ("meaning", row.meaning),
    )
    made, left = "", width
    for kind, cell in cells:
        shown = cut(cell, left)
        left -= len(shown)
        made += paint(kind, shown) if shown.strip() else shown
    return made.rstrip()


def _bytes(data: bytes) -> str:
    return data[:BYTES_LIMIT].hex(" ") + (" .." if len(data) > BYTES_LIMIT else "")


def cut(text: str, width: int) -> str:
    """Shorten a text to `width` columns."""
    return text if len(text) <= width else text[: max(0, width - 1)] + ("…" if width else "")
