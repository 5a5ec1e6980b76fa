"""Summary of a trace: memory over time, message sequences, exits."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from pyvmm.analysis.entry import Entry
from pyvmm.analysis.page_map import read_map
from pyvmm.analysis.read import Trace
from pyvmm.analysis.report.vmbus_messages import vmbus_sequences
from pyvmm.errors import ConfigError
from pyvmm.machine.devices import load_devices
from pyvmm.qapi import PageMap
from pyvmm.trace.sequences import Sequence
from pyvmm.trace.views import VIEWS

PAGE = 4096


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """Memory sizes in bytes at a time (seconds since the trace's start); None where the event lacks them."""

    time: float
    actual: int | None = None
    target: int | None = None
    resident: int | None = None
    available: int | None = None
    committed: int | None = None


Figure = Literal["actual", "target", "resident", "available", "committed"]
FIGURES: tuple[Figure, ...] = ("actual", "target", "resident", "available", "committed")


@dataclass(slots=True)
class TraceSummary:
    """The data of the page, times in seconds since the trace's start."""

    machine: str
    wall_clock: str
    seconds: float
    skipped: int
    dropped: int
    memory: list[MemoryPoint]
    handshakes: list[Sequence]
    transactions: list[Sequence]
    exits: dict[str, Counter[str]]  # by vCPU
    counts: Counter[str]
    page_map: PageMap | None = None  # at the machine's end
    marks: list[tuple[float, str]] = field(default_factory=list)  # resets, panics and the like

    @property
    def exits_by_kind(self) -> Counter[str]:
        """Return the exits by kind over all vCPUs."""
        return sum(self.exits.values(), Counter[str]())


def summarise(trace: Trace) -> TraceSummary:
    """Summarise a trace."""
    start = trace.start
    machine = wall_clock = ""
    for entry in trace.entries:
        if entry.name == "trace.started":
            machine, wall_clock = entry.text("machine"), entry.text("wall_clock")
            break
    return TraceSummary(
        machine=machine,
        wall_clock=wall_clock,
        seconds=trace.seconds,
        skipped=trace.skipped,
        dropped=trace.dropped,
        memory=_memory(trace.entries, start),
        handshakes=vmbus_sequences(trace),
        transactions=_device_sequences(trace),
        exits=_exits(trace.entries),
        counts=Counter(entry.name for entry in trace.entries),
        page_map=_page_map(trace.entries),
        marks=[(entry.time - start, mark) for entry in trace.entries if (mark := _mark(entry))],
    )


def _page_map(entries: list[Entry]) -> PageMap | None:
    """Return the last map of pages that the trace has, if it is one."""
    for entry in reversed(entries):
        if entry.name == "machine.page_map":
            with suppress(ConfigError):
                return read_map(entry.fields.get("map"))
    return None


def _memory(entries: list[Entry], start: float) -> list[MemoryPoint]:
    points = [point for entry in entries if (point := _memory_point(entry, start)) is not None]
    return [point for point in points if any(getattr(point, figure) is not None for figure in FIGURES)]


def _memory_point(entry: Entry, start: float) -> MemoryPoint | None:
    time = entry.time - start
    fields = entry.fields

    def pages(name: str) -> int | None:
        return fields[name] * PAGE if isinstance(fields.get(name), int) else None

    def plain(name: str) -> int | None:
        value = fields.get(name)
        return value if isinstance(value, int) else None

    match entry.name:
        case "machine.memory":
            return MemoryPoint(time, plain("actual"), plain("target"), plain("resident"))
        case "balloon.target_set" | "balloon.finished":
            return MemoryPoint(time, pages("current"), pages("target"))
        case "balloon.status_report":
            return MemoryPoint(time, available=pages("available"), committed=pages("committed"))
        case "monitor_protocol_event_emit" if fields.get("name") == "BALLOON_CHANGE":
            data = fields.get("data")
            actual = data.get("actual") if isinstance(data, dict) else None
            return MemoryPoint(time, actual) if isinstance(actual, int) else None
    return None


def _mark(entry: Entry) -> str:
    match entry.name:
        case "machine.reset":
            return "reset"
        case "hyperv.crash":
            return "panic"
        case "machine.power_off":
            return "power off"
        case "agent.ready":
            return "guest ready"
    return ""


def _exits(entries: list[Entry]) -> dict[str, Counter[str]]:
    """Count exits by vCPU and kind: from the totals at the trace's end if it has them, else from its exit events."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    single: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        vcpu = f"vcpu{entry.fields.get('vcpu', '?')}"
        if entry.name == "machine.exit_count":
            sums[vcpu][entry.text("exit")] += entry.number("count")
        elif entry.name == "machine.vcpu_exit":
            single[vcpu][entry.text("exit")] += 1
    return dict(sorted((sums or single).items()))


def _device_sequences(trace: Trace) -> list[Sequence]:
    """Return the sequences of each device that declares its messages."""
    load_devices()
    made: list[Sequence] = []
    for view in VIEWS:
        if view.sequences is not None:
            found = view.sequences(trace.entries, trace.start)
            for each in found:
                each.device = view.packages[-1]
            made += found
    return made
