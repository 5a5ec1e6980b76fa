"""The layers of pyvmm as docs/layers.toml lists them, and their picture: python -m tests.support.layers writes it."""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = DOCS / "layers.svg"

WIDTH, ROW, GAP = 860, 50, 10  # of the picture, of a row and between boxes, in pixels


def layers() -> list[dict[str, str]]:
    """Rows from the top: what stands in each, and one line about it."""
    rows: list[dict[str, str]] = tomllib.loads((DOCS / "layers.toml").read_text())["row"]
    return rows


def picture() -> str:
    """The layers as SVG: a box for each package, a row for each layer."""
    rows = layers()
    height = len(rows) * (ROW + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, row in enumerate(rows):
        top = GAP + number * (ROW + GAP)
        width = (WIDTH - GAP * (len(row) + 1)) / len(row)
        for place, (name, text) in enumerate(row.items()):
            left = GAP + place * (width + GAP)
            middle = left + width / 2
            lines += [
                f'<rect x="{left:g}" y="{top}" width="{width:g}" height="{ROW}" fill="#eef3fa" stroke="#456"/>',
                f'<text x="{middle:g}" y="{top + 21}" text-anchor="middle" font-weight="bold" font-size="15">'
                f"{escape(name)}</text>",
                f'<text x="{middle:g}" y="{top + 40}" text-anchor="middle" font-size="12">{escape(text)}</text>',
            ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture())
