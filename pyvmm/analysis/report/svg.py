"""SVG as text: elements with attributes, nested by `with`, all escaped. Colours come from the page's classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from pyvmm.guest_text import clean


class Svg:
    """One SVG picture. `_` in names of attributes stands for `-`, a trailing one is dropped (`class_`)."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self._parts = [
            f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
            f'aria-label="{escape(clean(title))}">'
        ]

    def add(self, name: str, text: str = "", **attributes: object) -> None:
        """Add an element, with text in it."""
        self._parts.append(f"<{name}{_attributes(attributes)}>{escape(clean(text))}</{name}>")

    @contextmanager
    def group(self, tooltip: str = "", **attributes: object) -> Iterator[None]:
        """Put a `<g>` around the elements added in the block; `tooltip` shows under the pointer."""
        self._parts.append(f"<g{_attributes(attributes)}>")
        if tooltip:
            self.add("title", tooltip)
        yield
        self._parts.append("</g>")

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> None:
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)

    def label(self, x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> None:
        self.add("text", text, x=x, y=y, class_=class_, text_anchor=anchor)

    def __str__(self) -> str:
        return "".join([*self._parts, "</svg>"])


def _attributes(attributes: dict[str, object]) -> str:
    shown = []
    for name, value in attributes.items():
        if value == "" or value is None:
            continue
        text = f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        shown.append(f' {name.rstrip("_").replace("_", "-")}="{escape(clean(text))}"')
    return "".join(shown)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** len(str(int(rough))) / 10 if rough >= 1 else 1.0
    while power > rough:
        power /= 10
    step = next((power * factor for factor in (1, 2, 5, 10) if power * factor >= rough), power * 10)
    first = int(low / step)
    ticks = [number * step for number in range(first, int(high / step) + 2)]
    return [tick for tick in ticks if low <= tick <= high + step * 1e-9]
