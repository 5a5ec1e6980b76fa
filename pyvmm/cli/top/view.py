"""What `pyvmm top` shows, as rich renderables: machines above, the chosen one below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pyvmm.cli.output import duration
from pyvmm.cli.top.samples import Channel, Memory, Sample
from pyvmm.sizes import format_size

BAR = 24
KINDS = 6
"""Kinds of exits shown; the rest is added up."""

VCPUS = 4
"""vCPUs with a column of their own."""

HEIGHT = 10
"""Lines of the panels for exits and memory: they stay where they are."""

_STATES = {"running": "green", "paused": "yellow", "shutdown": "dim", "guest-panicked": "bold red"}
_HELP = "↑↓ choose   + - resize   q quit"


@dataclass(frozen=True, slots=True)
class Row:
    """A machine: its name, what is known of it, and what goes wrong."""

    name: str
    sample: Sample | None
    error: str = ""
    lines: Sequence[tuple[float, str]] = field(default_factory=tuple)


def screen(rows: Sequence[Row], chosen: int, *, trace_lines: int = 8, note: str = "") -> RenderableType:
    """The whole picture."""
    head = Text.assemble(("pyvmm top", "bold"), f"   {_count(len(rows))}   ", (_HELP, "dim"))
    if note:
        head.append(f"   {note}", "yellow")
    if not rows:
        return Group(head, Text("\nno VM is running: `pyvmm run` starts one", "dim"))
    chosen = min(chosen, len(rows) - 1)
    parts: list[RenderableType] = [head, _machines(rows, chosen)]
    row = rows[chosen]
    if row.sample is not None:
        parts += _details(row, row.sample, trace_lines)
    return Group(*parts)


def _count(number: int) -> str:
    return "1 machine" if number == 1 else f"{number} machines"


def _machines(rows: Sequence[Row], chosen: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, header_style="dim")
    table.add_column("machine", ratio=2, no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("up", justify="right", no_wrap=True)
    table.add_column("vCPUs", justify="right", no_wrap=True)
    table.add_column("exits/s", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("resident", justify="right", no_wrap=True)
    table.add_column("pressure", justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(*_machine(row), style="reverse" if number == chosen and len(rows) > 1 else "")
    return table


def _machine(row: Row) -> list[RenderableType]:
    sample = row.sample
    if sample is None:
        return [Text(row.name, "bold"), Text(row.error or "asking", "dim"), *[""] * 7]
    memory = sample.memory
    return [
        Text(row.name, "bold"),
        Text(row.error or sample.status, "red" if row.error else _STATES.get(sample.status, "")),
        duration(sample.uptime),
        str(sample.cpus),
        rate(sample.exit_rate),
        _size(memory.actual),
        _size(memory.target) if memory.target not in (None, memory.actual) else "",
        _size(memory.resident),
        pressure_text(memory),
    ]


def _size(size: int | None) -> str:
    return "" if size is None else format_size(size)


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


def _details(row: Row, sample: Sample, trace_lines: int) -> list[RenderableType]:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(_exits(sample), _memory(sample))
    parts: list[RenderableType] = [grid]
    if sample.channels:
        parts.append(_panel(_channels(sample.channels), "VMBus channels"))
    if trace_lines:
        parts.append(_panel(_trace(row.lines, trace_lines), "last trace events"))
    return parts


def _panel(content: RenderableType, title: str, height: int | None = None) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="dim", box=box.ROUNDED, height=height)


def _exits(sample: Sample) -> Panel:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim", show_edge=False)
    table.add_column("kind", no_wrap=True)
    vcpus = list(sample.exits)[:VCPUS]
    for vcpu in vcpus:
        table.add_column(vcpu, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("in all", justify="right", no_wrap=True)
    kinds = sample.exits_by_kind()
    most = kinds[0][1] if kinds and kinds[0][1] else 1.0
    for kind, total in kinds[:KINDS]:
        rates = [rate(sample.exits[vcpu].get(kind, 0.0)) for vcpu in vcpus]
        table.add_row(kind, *rates, bar(total / most, 10), str(sample.totals[kind]))
    if len(kinds) > KINDS:
        table.add_row(Text(f"{len(kinds) - KINDS} more: {rate(sum(r for _, r in kinds[KINDS:]))}", "dim"))
    return _panel(table, f"exits a second: {rate(sample.exit_rate)}", HEIGHT)


def _memory(sample: Sample) -> Panel:
    memory = sample.memory
    whole = max(filter(None, (memory.boot, memory.actual, memory.target, memory.resident)), default=1)
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    mark = None if memory.target is None else memory.target / whole
    for name, size, style, at in (
        ("boot", memory.boot, "bright_black", None),
        ("actual", memory.actual, "cyan", mark),
        ("resident", memory.resident, "green", None),
        ("available", memory.available, "blue", None),
        ("committed", memory.committed, "magenta", None),
    ):
        if size is None:
            table.add_row(name, Text("·" * BAR, "dim"), Text("no report", "dim"))
        else:
            table.add_row(name, bar(size / whole, style=style, mark=at), format_size(size))
    target = Text("none", "dim") if memory.target is None else Text(format_size(memory.target))
    table.add_row("target", Text("┃" if memory.target is not None else "", "bold yellow"), target)
    table.add_row("pressure", Text("demand of what it has", "dim"), pressure_text(memory))
    balloon = Text.assemble(("balloon   ", "dim"), sample.balloon, no_wrap=True, overflow="ellipsis")
    return _panel(Group(table, balloon), f"memory, engine {sample.engine}", HEIGHT)


def _channels(channels: Sequence[Channel]) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim", show_edge=False)
    for title, side in (
        ("channel", "left"),
        ("state", "left"),
        ("ring from guest", "left"),
        ("ring to guest", "left"),
        ("signals/s in", "right"),
        ("out", "right"),
        ("packets/s", "right"),
        ("packets", "right"),
        ("", "left"),
    ):
        table.add_column(title, justify="right" if side == "right" else "left", no_wrap=True)
    for channel in channels:
        is_open = channel.state == "open"
        table.add_row(
            Text(f"#{channel.relid} {channel.name}"),
            Text(channel.state, "green" if is_open else "yellow"),
            _fill(channel.fill_in) if is_open else "",
            _fill(channel.fill_out) if is_open else "",
            rate(channel.signals_in),
            rate(channel.signals_out),
            rate(channel.packets),
            str(channel.total_packets),
            Text(channel.trouble, "red"),
        )
    return table


def _fill(part: float) -> Text:
    return bar(part, 10, "cyan" if part < 0.8 else "red") + Text(f" {part:4.0%}")


def _trace(lines: Sequence[tuple[float, str]], count: int) -> Text:
    shown = list(lines)[-count:]
    if not shown:
        return Text("nothing yet" + "\n" * (count - 1), "dim")
    text = Text(no_wrap=True, overflow="ellipsis")
    for time, line in shown:
        name, _, message = line.partition(" ")
        text.append(f"{time:12.4f} ", "dim")
        text.append(name, "cyan")
        text.append(f" {message}\n")
    text.rstrip()
    text.append("\n" * (count - len(shown)))
    return text
