"""Two kinds of pictures as SVG: who sends what to whom, and what lies where in memory.

They are narrow, so that a telephone shows them without shrinking the text. Colours are the theme's where the site
puts the picture into a page, else the fallbacks named here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

WIDTH = 460
STYLE = """<style>
.paper{fill:var(--md-default-bg-color,#fff)}.ink{fill:var(--md-default-fg-color,#202430)}
.soft{fill:var(--md-default-fg-color--light,#5b6270)}.line{stroke:var(--md-default-fg-color--light,#5b6270)}
.lane{fill:var(--md-primary-fg-color,#3949ab)}.lanetext{fill:var(--md-primary-bg-color,#fff)}
.out{stroke:#d9822b}.in{stroke:#3f8fd2}.outfill{fill:#d9822b}.infill{fill:#3f8fd2}
.ram{fill:#3f8fd2;fill-opacity:.25}.hole{fill:none}.special{fill:#d9822b;fill-opacity:.3}.given{fill:#4caf6d;fill-opacity:.3}
text{font-family:system-ui,sans-serif}.mono{font-family:ui-monospace,monospace}
</style>"""


def _document(height: float, body: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}">'
    return (
        "\n".join([head, STYLE, f'<rect class="paper" width="{WIDTH}" height="{height:g}"/>', *body, "</svg>"]) + "\n"
    )


def _text(x: float, y: float, text: str, cls: str = "ink", size: int = 13, anchor: str = "middle") -> str:
    return f'<text class="{cls}" x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


@dataclass
class Sequence:
    """A sequence diagram: lanes from left to right, steps from top to bottom."""

    lanes: list[str]
    steps: list[tuple[int, int, str, str]] = field(default_factory=list)

    def step(self, sender: str, receiver: str, text: str, note: str = "") -> None:
        """Add an arrow; with sender and receiver alike, a line of text at the lane."""
        self.steps.append((self.lanes.index(sender), self.lanes.index(receiver), text, note))

    def svg(self) -> str:
        """The picture."""
        gap = WIDTH / len(self.lanes)
        at = [gap * (n + 0.5) for n in range(len(self.lanes))]
        rows: list[str] = []
        y = 44.0
        for sender, receiver, text, note in self.steps:
            y += 20
            if sender == receiver:
                rows += [
                    f'<circle class="outfill" cx="{at[sender]:g}" cy="{y - 4:g}" r="3"/>',
                    _beside(at[sender], y, text),
                ]
                if note:
                    y += 15
                    rows.append(_beside(at[sender], y, note, "soft", 11))
                continue
            left, right = sorted((at[sender], at[receiver]))
            middle = (left + right) / 2
            half = len(text) * 3.7
            middle = min(max(middle, half + 4), WIDTH - half - 4)
            rows.append(_text(middle, y, text, "ink mono", 12))
            if note:
                y += 14
                rows.append(_text(middle, y, note, "soft", 11))
            y += 7
            rows.append(_arrow(at[sender], at[receiver], y))
            y += 4
        bottom = y + 14
        lines = [
            f'<line class="line" x1="{x:g}" x2="{x:g}" y1="34" y2="{bottom:g}" stroke-dasharray="2 4"/>' for x in at
        ]
        heads = []
        for name, x in zip(self.lanes, at, strict=True):
            width = min(gap - 8, 150)
            heads.append(
                f'<rect class="lane" x="{x - width / 2:g}" y="8" width="{width:g}" height="26" rx="4"/>'
                + _text(x, 26, name, "lanetext")
            )
        return _document(bottom + 6, [*lines, *heads, *rows])


def _beside(x: float, y: float, text: str, cls: str = "ink", size: int = 12) -> str:
    right = x + 8 + len(text) * size * 0.55 < WIDTH
    return _text(x + 8 if right else x - 8, y, text, cls, size, "start" if right else "end")


def _arrow(start: float, end: float, y: float) -> str:
    kind = "in" if end > start else "out"
    tip = -7 if end > start else 7
    return (
        f'<line class="{kind}" x1="{start:g}" x2="{end:g}" y1="{y:g}" y2="{y:g}" stroke-width="1.6"/>'
        f'<path class="{kind}fill" d="M{end:g} {y:g} l{tip} -4 l0 8 z"/>'
    )


def memory_map(rows: list[tuple[int, int, str, str]], *, unit: str = "") -> str:
    """A memory map, lowest address at the bottom. Rows: start, end, text, kind (ram, hole, special, given).

    The heights are not to scale: each range gets one line, a larger one two.
    """
    y = 12.0
    body: list[str] = []
    for start, end, text, kind in sorted(rows, reverse=True):
        height = 30 if end - start <= 4096 else 46
        body.append(
            f'<rect class="{kind} line" x="130" y="{y:g}" width="{WIDTH - 142}" height="{height}" '
            f'stroke-width="1"{" stroke-dasharray=" + chr(34) + "4 3" + chr(34) if kind == "hole" else ""}/>'
        )
        body.append(_text(122, y + height - 2, f"{start:#x}", "soft mono", 12, "end"))
        body.append(_text(142, y + height / 2 + 5, text, "ink", 13, "start"))
        body.append(_text(WIDTH - 20, y + height / 2 + 5, _size(end - start), "soft", 11, "end"))
        y += height
    return _document(y + 12, body)


def _size(size: int) -> str:
    for name, unit in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size / 1024:.1f} KiB" if size > 8192 else f"{size} bytes"
