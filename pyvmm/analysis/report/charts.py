"""The report's charts: memory over time, message sequences, latencies, exits by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as List
from math import log10
from textwrap import wrap

from pyvmm.analysis.report.latency import Latency
from pyvmm.analysis.report.summary import FIGURES, Figure, MemoryPoint, TraceSummary
from pyvmm.analysis.report.svg import Svg, nice_ticks
from pyvmm.sizes import format_size
from pyvmm.trace.sequences import Message, Note, Sequence

WIDTH = 880
MIB = 1 << 20

STEPS_SHOWN = 120
"""Most arrows drawn of a sequence; the rest is counted."""

NOTE_WIDTH = 38
"""Most characters of a note beside the host's line."""

DOTS_SHOWN = 400
"""Most samples drawn for one kind of answer; more would merge into a bar."""

_WORDS: dict[Figure, str] = {
    "actual": "the guest has",
    "target": "target",
    "resident": "resident on the host",
    "available": "available in the guest",
    "committed": "committed in it",
}


def seconds(value: float) -> str:
    """Format seconds: `12 µs`, `3.4 ms`, `1.25 s`."""
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def memory_chart(summary: TraceSummary) -> str:
    """Draw a step line for each kind of memory that the trace has figures of."""
    lines = {figure: _points(summary.memory, figure) for figure in FIGURES}
    lines = {figure: points for figure, points in lines.items() if points}
    left, top, right, height = 64, 34, 20, 240
    begin = min(points[0][0] for points in lines.values())
    end = max(summary.seconds, begin + 1e-6)
    most = max(value for points in lines.values() for _, value in points)
    step = 1 << max(0, (int(most / MIB / 5)).bit_length())  # memory comes in powers of two
    ticks = range(0, int(most / MIB) + 1, step)
    limit = max(most, 1) * 1.04
    svg = Svg(WIDTH, height + top + 34, "memory over time")

    def x(time: float) -> float:
        return left + (WIDTH - left - right) * (time - begin) / (end - begin)

    def y(size: float) -> float:
        return top + height * (1 - size / limit)

    for tick in ticks:
        svg.line(left, y(tick * MIB), WIDTH - right, y(tick * MIB), "grid")
        svg.label(left - 8, y(tick * MIB) + 4, str(tick), "tick", "end")
    svg.label(left - 8, top - 14, "MiB", "tick", "end")
    for moment in nice_ticks(begin, end, 8):
        svg.label(x(moment), top + height + 18, f"{moment:g} s", "tick", "middle")
    svg.line(left, top + height, WIDTH - right, top + height, "axis")
    for time, text in summary.marks:
        if time >= begin:
            svg.line(x(time), top, x(time), top + height, "mark")
            late = x(time) > WIDTH - 120
            svg.label(x(time) + (-4 if late else 4), top + height - 6, text, "tick", "end" if late else "start")
    place = float(left)
    for figure, points in lines.items():
        path = [f"M{x(points[0][0]):.1f} {y(points[0][1]):.1f}"]
        for time, value in points[1:]:
            path.append(f"H{x(time):.1f}V{y(value):.1f}")
        path.append(f"H{x(end):.1f}")
        newest = format_size(points[-1][1])
        with svg.group(f"{_WORDS[figure]}: {newest} at the end"):
            svg.add("path", d="".join(path), class_=f"line {figure}")
        svg.line(place, 12, place + 20, 12, f"line {figure}")
        svg.label(place + 26, 16, _WORDS[figure], "key")
        place += 40 + 6.6 * len(_WORDS[figure])
    return str(svg)


def _points(memory: List[MemoryPoint], figure: Figure) -> list[tuple[float, int]]:
    return [(point.time, value) for point in memory if (value := getattr(point, figure)) is not None]


def sequence_diagram(sequence: Sequence) -> str:
    """Draw a sequence diagram: guest left, host right, time downwards, an arrow for each message."""
    steps = sequence.steps[:STEPS_SHOWN]
    row, top = 30, 44
    guest, host = 150, 620
    height = top + row * len(steps) + 24
    svg = Svg(WIDTH, height, sequence.title)
    for place, name in ((guest, "guest"), (host, "host")):
        svg.label(place, 20, name, "actor", "middle")
        svg.line(place, 30, place, height - 8, "life")
    before = None
    for number, step in enumerate(steps):
        y = top + row * number + 12
        gap = "" if before is None else f"+{seconds(max(0.0, step.time - before))}"
        before = step.time
        svg.label(70, y + 4, f"{step.time:.4f}", "tick", "end")
        svg.label(guest - 12, y + 4, gap, "gap", "end")
        match step:
            case Message():
                _arrow(svg, step, y, guest, host)
            case Note(_, text):
                _note(svg, text, host, y)
    left_out = len(sequence.steps) - len(steps)
    if left_out:
        svg.label(guest, height - 4, f"and {left_out} more", "note")
    return str(svg)


def _arrow(svg: Svg, message: Message, y: float, guest: float, host: float) -> None:
    begin, end = (guest, host) if message.to_host else (host, guest)
    tip = -9 if message.to_host else 9
    kind = "bad" if message.bad else "up" if message.to_host else "down"
    took = "" if message.begin is None else f", taken {seconds(message.time - message.begin)} after it was posted"
    with svg.group(f"{message.label} {message.detail}{took}", class_=kind):
        svg.line(begin, y, end + tip / 2, y, "arrow")
        svg.add("path", d=f"M{end} {y}l{tip} -4.5v9z", class_="tip")
        middle = (guest + host) / 2
        text = f"{message.label}  {message.detail}".rstrip()
        svg.label(middle, y - 5, text if len(text) < 72 else text[:71] + "…", "say", "middle")


def _note(svg: Svg, text: str, host: float, y: float) -> None:
    """Draw a note beside the host's line, in two lines at most; its tooltip has all of it."""
    lines = wrap(text, NOTE_WIDTH, max_lines=2, placeholder=" …") or [text]
    with svg.group(text):
        svg.add("circle", cx=host, cy=y, r=3.5, class_="dot")
        for number, line in enumerate(lines):
            svg.label(host + 12, y + 4 + 14 * number - 7 * (len(lines) - 1), line, "note")


def latency_chart(latencies: List[Latency]) -> str:
    """Draw a row of dots for each kind of answer, on one logarithmic scale; a bar marks the median."""
    row, top, left, right = 34, 30, 330, 150
    low = min(latency.seconds[0] for latency in latencies)
    high = max(latency.seconds[-1] for latency in latencies)
    first = int(log10(max(low, 1e-7)) - 1)
    last = max(int(log10(max(high, 1e-6)) + 1), first + 1)
    height = top + row * len(latencies) + 8
    svg = Svg(WIDTH, height, "how long answers took")

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * (log10(max(value, 1e-7)) - first) / (last - first)

    for power in range(first, last + 1):
        svg.line(x(10.0**power), top - 8, x(10.0**power), height - 8, "grid")
        svg.label(x(10.0**power), top - 14, seconds(10.0**power), "tick", "middle")
    for number, latency in enumerate(latencies):
        y = top + row * number + row / 2
        svg.label(left - 14, y + 4, latency.title, "key", "end")
        samples = latency.seconds
        stride = max(1, len(samples) // DOTS_SHOWN)
        span = f"{len(samples)}: {seconds(samples[0])} to {seconds(samples[-1])}"
        with svg.group(f"{latency.title}, {span}"):
            for value in [*samples[::stride], samples[-1]]:
                svg.add("circle", cx=x(value), cy=y, r=3.5, class_="sample")
            svg.line(x(latency.median), y - 10, x(latency.median), y + 10, "median")
        svg.label(WIDTH - right + 14, y + 4, f"{seconds(latency.median)}  ({len(samples)})", "key")
    return str(svg)


def bar_chart(counts: Counter[str], title: str) -> str:
    """Draw a horizontal bar for each value, longest first."""
    row, left, right = 26, 200, 90
    rows = counts.most_common()
    most = max(counts.values())
    svg = Svg(WIDTH, row * len(rows) + 8, title)
    for number, (name, count) in enumerate(rows):
        y = row * number + 4
        width = max(2.0, (WIDTH - left - right) * count / most)
        svg.label(left - 12, y + 15, name, "key", "end")
        with svg.group(f"{name}: {count}"):
            svg.add("rect", x=left, y=y + 3, width=width, height=row - 10, rx=3, class_="bar")
        svg.label(left + width + 8, y + 15, f"{count:,}".replace(",", " "), "key")
    return str(svg)
