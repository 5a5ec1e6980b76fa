"""The last messages between host and guest as a sequence diagram in text, for the report of a failing test.

     seconds  host                                                         guest
     12.3010   |  target 256 MiB                                             |
     12.3020   |---- hv-balloon BALLOON_REQUEST 128 MiB -------------------->|
     12.3400   |<--- hv-balloon BALLOON_RESPONSE 12 ranges ------------------|
     12.3520   |---- hv-balloon packet type 6, 40 bytes -------------------->|

The messages are those of a trace's report (`pyvmm.analysis.report`): the VMBus's control messages, and what devices
declare as theirs. A packet that no device has described stands for itself: it was sent past the device, or its sender
does not trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import Trace
from pyvmm.analysis.report.vmbus_messages import vmbus_sequences
from pyvmm.guest_text import one_line
from pyvmm.trace import Record
from pyvmm.trace.sequences import Message, Sequence
from pyvmm.trace.views import VIEWS

ROWS = 30
"""Most rows of a diagram, the newest."""
WIDTH = 66
"""Columns between the two lines."""
SAME = 0.5
"""Seconds between a device's event and that of its packet, at most."""

_TROUBLE = ("refused", "lost", "dropped", "broken", "failed", "crash", "unload", "reset", "busy")
_SHOWN = ("agent.command", "agent.exited", "vmbus.channel_state", "vmbus.connection_state", "machine.state")
_SHOWN_PACKAGES = ("fault", "faults", "balloon", "testbed")


@dataclass(slots=True)
class _Row:
    time: float
    text: str
    to_host: bool | None = None  # None: a note
    device: str = ""
    packet: bool = False


def as_entries(records: Iterable[Record], clock: Callable[[float], float] = lambda moment: moment) -> list[Entry]:
    """Return events as they are traced in the form of those read from a file, their times as `clock` gives them."""
    return [
        Entry(clock(r.time), r.event.name, r.thread, dict(zip(r.event.fields, r.values, strict=False)))
        for r in records
    ]


def diagram(
    entries: list[Entry],
    *,
    rows: int = ROWS,
    channels: Mapping[int, str] | None = None,
    quiet: Collection[str] = (),
    quiet_commands: str = "\0",
) -> str:
    """Draw the last messages of a trace; empty if there are none. `channels` names those of the VMBus.

    Messages of the devices `quiet`, and commands of the agent that begin with `quiet_commands`, are counted only.
    """
    if not entries:
        return ""
    found = _folded(sorted([*_messages(entries), *_packets(entries, channels or {})], key=attrgetter("time")))
    told = {round(row.time, 6) for row in found}
    left_out = [(row.time, f"messages of {row.device}") for row in found if row.device in quiet]
    found = [row for row in found if row.device not in quiet]
    found += [row for row in _notes(entries, quiet_commands, left_out) if round(row.time, 6) not in told]
    found.sort(key=attrgetter("time"))
    lines = [_drawn(row) for row in found[-rows:]]
    if not lines:
        return ""
    since = found[-rows:][0].time
    counts = Counter(what for time, what in left_out if time >= since)
    more = [f"left out: {', '.join(f'{count} {what}' for what, count in sorted(counts.items()))}"] if counts else []
    return "\n".join([f"{'seconds':>10}  host{'guest':>{WIDTH + 1}}", *lines, *more])


def _messages(entries: list[Entry]) -> Iterator[_Row]:
    """What the VMBus and the devices declare as messages and notes."""
    sequences: list[Sequence] = vmbus_sequences(Trace(Path(), entries))
    for view in VIEWS:
        if view.sequences is not None:
            for sequence in view.sequences(entries, entries[0].time):
                sequence.device = view.track or view.packages[-1]
                sequences.append(sequence)
    for sequence in sequences:
        for step in sequence.steps:
            time = step.time + entries[0].time
            if isinstance(step, Message):
                words = (sequence.device, step.label, step.detail)
                yield _Row(time, " ".join(word for word in words if word), step.to_host, sequence.device)
            else:
                yield _Row(time, step.text)


def _packets(entries: list[Entry], channels: Mapping[int, str]) -> Iterator[_Row]:
    names = dict(channels)
    for entry in entries:
        match entry.name:
            case "vmbus.channel_state":
                names[entry.number("chan_id")] = entry.text("name")
            case "vmbus.packet_received" | "vmbus.packet_sent":
                number = entry.number("chan_id")
                name = names.get(number) or f"channel #{number}"
                text = f"{name} packet type {entry.number('type')}, {entry.number('size')} bytes"
                yield _Row(entry.time, text, entry.name.endswith("received"), name, packet=True)


def _folded(rows: list[_Row]) -> list[_Row]:
    """Leave out the packet of each device's message: it comes just before it from the guest, just after it to it."""
    dropped: set[int] = set()
    for n, row in enumerate(rows):
        if row.to_host is None or row.packet:
            continue
        places = range(n - 1, -1, -1) if row.to_host else range(n + 1, len(rows))
        for place in places:
            other = rows[place]
            if abs(other.time - row.time) > SAME:
                break
            if other.packet and (other.device, other.to_host) == (row.device, row.to_host) and place not in dropped:
                dropped.add(place)
                break
    return [row for n, row in enumerate(rows) if n not in dropped]


def _notes(entries: list[Entry], quiet_commands: str, left_out: list[tuple[float, str]]) -> Iterator[_Row]:
    """Events without a message that explain what went wrong, or what was going on."""
    quiet: set[int] = set()
    for entry in entries:
        package, _, what = entry.name.partition(".")
        if entry.name == "agent.command" and entry.text("command").startswith(quiet_commands):
            quiet.add(entry.number("id"))
            left_out.append((entry.time, "commands of the oracles"))
        elif entry.name == "agent.exited" and entry.number("id") in quiet:
            quiet.discard(entry.number("id"))
        elif entry.name in _SHOWN or package in _SHOWN_PACKAGES or any(word in what for word in _TROUBLE):
            yield _Row(entry.time, f"{entry.name} {entry.message()}".rstrip())


def _drawn(row: _Row) -> str:
    text = one_line(row.text)
    text = text if len(text) <= WIDTH - 10 else text[: WIDTH - 11] + "…"
    match row.to_host:
        case None:
            middle = f"  {text}".ljust(WIDTH)
        case True:
            middle = f"<--- {text} ".ljust(WIDTH, "-")
        case False:
            middle = f"---- {text} ".ljust(WIDTH - 1, "-") + ">"
    return f"{row.time:>10.4f}   |{middle}|"
