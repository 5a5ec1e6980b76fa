"""What `pyvmm top` shows, as rich renderables: machines above, the chosen one below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pyvmm.cli.output import duration
from pyvmm.cli.top.layout import SMALL_PANEL, Layout, fit
from pyvmm.cli.top.samples import Channel, Memory, Sample
from pyvmm.sizes import format_size

BAR = 24

STATE_WIDTH = 14
"""Columns of a machine's state where room is scarce: `guest-panicked`. What is longer stands in the head."""

VCPUS = 4
"""vCPUs with a column of their own."""

RATE, TOTAL = 8, 9
"""Columns for a rate and for a count, and the gap before it."""

_STATES = {
    "running": "green",
    "paused": "yellow",
    "prelaunch": "yellow",
    "shutdown": "dim",
    "guest-panicked": "bold red",
}

_KEYS = "↑↓ choose   + - resize   ? help   q quit"
_FEW_KEYS = "? help   q quit"
_HELP = """\
↑ ↓ k j    choose a machine
+ -        ask it to live in a 16th of its boot size more, or less
?          this help, and back
q Esc      end

exits/s    how often a second a vCPU stopped to be served by pyvmm
pressure   the guest's demand of memory as a part of what it has
resident   bytes of the machine that the host keeps in memory
┃          the balloon's target, has→target in the table
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A machine: its name, what is known of it, and what goes wrong. `ended`: `error` says how, `last_words` more."""

    name: str
    sample: Sample | None
    error: str = ""
    lines: Sequence[tuple[float, str]] = field(default_factory=tuple)
    ended: bool = False
    last_words: str = ""


@dataclass(frozen=True, slots=True)
class Screen:
    """The whole picture, as wide as the console. `height` in lines; None for as many as it takes."""

    rows: Sequence[Row]
    chosen: int = 0
    note: str = ""
    help: bool = False
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.rows:
            yield self._head(fit(options.max_width, self.height, 0, 0), self.note)
            yield Text("\nno VM is running: `pyvmm run` starts one", "dim")
            return
        chosen = min(self.chosen, len(self.rows) - 1)
        row = self.rows[chosen]
        channels = 0 if row.sample is None or row.ended or self.help else len(row.sample.channels)
        layout = fit(options.max_width, self.height, len(self.rows), channels)
        yield self._head(layout, self.note or (row.error if len(row.error) > STATE_WIDTH else ""))
        yield _machines(self.rows, chosen, layout)
        if self.help:
            yield _panel(Text(_HELP.rstrip(), no_wrap=True, overflow="ellipsis"), "keys and words")
        elif row.ended:
            yield from _end(row, layout)
        elif row.sample is not None:
            yield from _details(row, row.sample, layout)

    def _head(self, layout: Layout, note: str) -> Text:
        count = "1 machine" if len(self.rows) == 1 else f"{len(self.rows)} machines"
        text = Text.assemble(("pyvmm top", "bold"), f"   {count}   ", no_wrap=True, overflow="ellipsis")
        if not note or layout.broad:
            text.append(_FEW_KEYS if layout.narrow else _KEYS, "dim").append("   ")
        return text.append(note, "yellow")


def _machines(rows: Sequence[Row], chosen: int, layout: Layout) -> Table:
    """The table of machines: those around the chosen one, if not all have room."""
    edge = box.SIMPLE_HEAD if layout.airy else None
    table = Table(box=edge, expand=True, pad_edge=False, padding=(0, 1), header_style="dim", show_edge=layout.airy)
    table.add_column("machine", ratio=2, no_wrap=True)
    table.add_column("state", max_width=None if layout.broad else STATE_WIDTH, no_wrap=True)
    for title in _columns(layout):
        table.add_column(title, justify="right", no_wrap=True)
    first = max(0, min(chosen - layout.machines // 2, len(rows) - layout.machines))
    for number in range(first, first + layout.machines):
        is_chosen = number == chosen and len(rows) > 1
        mark = ("▸ " if is_chosen else "  ") if len(rows) > 1 else ""
        name = Text.assemble(mark, (rows[number].name, "bold"))
        table.add_row(name, *_machine(rows[number], layout), style="reverse" if is_chosen else "")
    return table


def _columns(layout: Layout) -> list[str]:
    """Titles of the figures that there is room for."""
    if layout.broad:
        return ["up", "vCPUs", "exits/s", "memory", "target", "resident", "pressure"]
    return [*([] if layout.narrow else ["up"]), "exits/s", "memory", "pressure"]


def _machine(row: Row, layout: Layout) -> list[RenderableType]:
    sample = row.sample
    if sample is None or row.ended:
        return [Text(row.error or "asking", "red" if row.ended else "dim")]
    memory = sample.memory
    target = memory.target if memory.target != memory.actual else None
    has = _size(memory.actual, layout)
    figures: dict[str, RenderableType] = {
        "up": duration(sample.uptime),
        "vCPUs": str(sample.cpus),
        "exits/s": rate(sample.exit_rate),
        "memory": has if layout.broad or target is None else f"{has}→{_size(target, layout)}",
        "target": _size(target, layout),
        "resident": _size(memory.resident, layout),
        "pressure": pressure_text(memory),
    }
    state = Text(row.error or sample.status, "red" if row.error else _STATES.get(sample.status, ""))
    return [state, *(figures[title] for title in _columns(layout))]


def _size(size: int | None, layout: Layout) -> str:
    """`512 MiB`, or `512M` where room is scarce."""
    text = "" if size is None else format_size(size)
    return text if layout.wide else text.replace(" ", "").removesuffix("iB")


def rate(value: float) -> str:
    """Short: `0`, `3.2`, `417`, `12.4k`."""
    if value >= 10_000:
        return f"{value / 1000:.1f}k"
    return f"{value:.1f}" if 0 < value < 10 else f"{value:.0f}"


def pressure_text(memory: Memory) -> Text:
    """Committed memory as a part of what the guest has, in a colour that warns."""
    part = memory.pressure
    if part is None:
        return Text("no report", "dim")
    return Text(f"{part:.0%}", "green" if part < 0.8 else "yellow" if part < 1 else "bold red")


def bar(part: float, width: int = BAR, style: str = "cyan", mark: float | None = None) -> Text:
    """A bar of `part` of `width`, to an eighth of a character; `mark` is where a target stands."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    filled = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
    text = Text(filled.ljust(width, "·"))
    text.stylize("dim", len(filled), width)
    text.stylize(style, 0, len(filled))
    if mark is not None and 0 <= mark <= 1:
        place = min(width - 1, int(mark * width))
        text = text[:place] + Text("┃", "bold yellow") + text[place + 1 :]
    return text


def _details(row: Row, sample: Sample, layout: Layout) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if layout.panel:
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(_exits(sample, layout), _memory(sample, layout))
        parts.append(grid)
    if layout.channels:
        of = "" if layout.channels == len(sample.channels) else f", {layout.channels} of {len(sample.channels)}"
        parts.append(_panel(_channels(sample.channels[: layout.channels], layout), f"VMBus channels{of}"))
    return parts + _trace_panel(row, layout)


def _end(row: Row, layout: Layout) -> list[RenderableType]:
    """What is left of a machine that ended: a panic from its first line on, and the last events."""
    if not layout.panel or not row.last_words:
        return _trace_panel(row, replace(layout, trace=layout.trace + layout.panel))
    lines, count = row.last_words.splitlines(), layout.panel - 2
    first = next((number for number, line in enumerate(lines) if "panic" in line), len(lines) - count)
    words = Text("\n".join(lines[max(0, first) :][:count]), no_wrap=True, overflow="ellipsis")
    return [_panel(words, row.error, layout.panel), *_trace_panel(row, layout)]


def _trace_panel(row: Row, layout: Layout) -> list[RenderableType]:
    return [_panel(_trace(row.lines, layout), "last trace events")] if layout.trace else []


def _panel(content: RenderableType, title: str, height: int | None = None) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="dim", box=box.ROUNDED, height=height)


def _exits(sample: Sample, layout: Layout) -> Panel:
    kinds = sample.exits_by_kind()
    shown = kinds[: layout.panel - 4]  # the borders, the header, and the rest added up
    rest = kinds[len(shown) :]
    most = kinds[0][1] if kinds and kinds[0][1] else 1.0
    vcpus = list(sample.exits)[:VCPUS]
    room = layout.width // 2 - 5 - max((len(kind) for kind, _ in shown), default=4)
    if RATE * len(vcpus) > room:
        vcpus = []  # their sum
    room -= RATE * (len(vcpus) or 1)
    with_totals, with_bars = room >= TOTAL, room >= TOTAL + 12
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim", show_edge=False)
    table.add_column("kind", no_wrap=True)
    for title in vcpus or ["a second"]:
        table.add_column(title, justify="right", no_wrap=True)
    if with_bars:
        table.add_column("", no_wrap=True)
    if with_totals:
        table.add_column("in all", justify="right", no_wrap=True)
    for kind, total in shown:
        cells: list[RenderableType] = [rate(sample.exits[vcpu].get(kind, 0.0)) for vcpu in vcpus] or [rate(total)]
        if with_bars:
            cells.append(bar(total / most, 10))
        if with_totals:
            cells.append(str(sample.totals[kind]))
        table.add_row(Text(kind), *cells)
    if rest:
        table.add_row(Text(f"{len(rest)} more: {rate(sum(each for _, each in rest))}", "dim"))
    return _panel(table, f"exits a second: {rate(sample.exit_rate)}", layout.panel)


def _memory(sample: Sample, layout: Layout) -> Panel:
    memory = sample.memory
    width = BAR if layout.wide else max(4, min(BAR, layout.width // 2 - 24))
    whole = max(filter(None, (memory.boot, memory.actual, memory.target, memory.resident)), default=1)
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    mark = None if memory.target is None else memory.target / whole
    small = layout.panel == SMALL_PANEL
    unknown = Text("no report" if layout.wide else "?", "dim")
    for name, size, style, at in (
        ("boot", memory.boot, "bright_black", None),
        ("actual", memory.actual, "cyan", mark),
        ("resident", memory.resident, "green", None),
        ("available", memory.available, "blue", None),
        ("committed", memory.committed, "magenta", None),
    ):
        if name == "boot" and small:
            continue
        if size is None:
            table.add_row(name, Text("·" * width, "dim"), unknown)
        else:
            table.add_row(name, bar(size / whole, width, style=style, mark=at), _size(size, layout))
    if not small:
        target = Text("none", "dim") if memory.target is None else Text(_size(memory.target, layout))
        table.add_row("target", Text("┃" if memory.target is not None else "", "bold yellow"), target)
        words = "demand of what it has" if layout.wide else ""
        table.add_row("pressure", Text(words, "dim"), pressure_text(memory))
    label = "balloon   " if layout.wide else "balloon "
    balloon = Text.assemble((label, "dim"), sample.balloon, no_wrap=True, overflow="ellipsis")
    return _panel(Group(table, balloon), f"memory, engine {sample.engine}", layout.panel)


def _channels(channels: Sequence[Channel], layout: Layout) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim", show_edge=False)
    titles = ["channel", "state"]
    if layout.wide:
        titles += ["ring from guest", "ring to guest", "signals/s in", "out", "packets/s", "packets", ""]
    else:
        titles += ["rings", "signals/s", *([] if layout.narrow else ["packets/s"]), ""]
    for title in titles:
        figures = title in ("rings", "signals/s", "signals/s in", "out", "packets/s", "packets")
        table.add_column(title, justify="right" if figures else "left", no_wrap=True)
    for channel in channels:
        is_open = channel.state == "open"
        name = Text(f"#{channel.relid} {channel.name}")
        state = Text(channel.state, "green" if is_open else "yellow")
        trouble = Text(channel.trouble, "red")
        if layout.wide:
            table.add_row(
                name,
                state,
                _fill(channel.fill_in) if is_open else "",
                _fill(channel.fill_out) if is_open else "",
                rate(channel.signals_in),
                rate(channel.signals_out),
                rate(channel.packets),
                str(channel.total_packets),
                trouble,
            )
        else:
            rings = f"{channel.fill_in:.0%} / {channel.fill_out:.0%}" if is_open else ""
            signals = f"{rate(channel.signals_in)} / {rate(channel.signals_out)}"
            packets = [] if layout.narrow else [rate(channel.packets)]
            table.add_row(name, state, rings, signals, *packets, trouble)
    return table


def _fill(part: float) -> Text:
    return bar(part, 10, "cyan" if part < 0.8 else "red") + Text(f" {part:4.0%}")


def _trace(lines: Sequence[tuple[float, str]], layout: Layout) -> Text:
    count = layout.trace
    shown = list(lines)[-count:]
    if not shown:
        return Text("nothing yet" + "\n" * (count - 1), "dim")
    text = Text(no_wrap=True, overflow="ellipsis")
    for time, line in shown:
        name, _, message = line.partition(" ")
        text.append(f"{time:9.2f} " if layout.narrow else f"{time:12.4f} ", "dim")
        text.append(name, "cyan")
        text.append(f" {message}\n")
    text.rstrip()
    text.append("\n" * (count - len(shown)))
    return text
