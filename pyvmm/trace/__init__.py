"""Trace events: named, declared once, nearly free when off, readable by people and programs when on.

    opened = event("vmbus_open_channel", "channel #{chan_id} gpadl #{gpadl_id} target vp {target_vp}")
    ...
    if trace.opened.on:
        trace.opened(relid, gpadl, vp)

    Event --> Record --> TextSink, TailSink                here
                     --> writer.FileSink                   a file, by a thread with a queue
                     --> control.observe                   a client of a running machine
    formats, chrome, tracks: records as text, JSON lines, Chrome's trace format

Names and fields are QEMU's where QEMU has the event (so that the logs of both compare), ours otherwise as
`package.what_happened`. A sink is any callable that takes a `Record`; it runs in the thread that traced, a vCPU's
often, so one that does more than store the record belongs behind a queue (`pyvmm.trace.writer`).

Values are numbers, strings, lists and dictionaries of them, in words that a client may rely on. Objects of ours
are not values: their text changes with the names of classes. `pyvmm.analysis` reads the files written here.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from string import Formatter
from typing import Any, NamedTuple, TextIO

from pyvmm.errors import ConfigError
from pyvmm.guest_text import one_line


class Record(NamedTuple):
    """One event that happened: `time` in seconds of time.monotonic(), `values` in the order of `event.fields`."""

    time: float
    event: Event
    thread: str
    values: tuple[Any, ...]

    def text(self) -> str:
        """Return `name message`, the message formatted as the event was declared."""
        return f"{self.event.name} {self.event.format(*self.values)}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """Return field names to values, after `time`, `event` and `thread`."""
        head = {"time": round(self.time, 6), "event": self.event.name, "thread": self.thread}
        return head | dict(zip(self.event.fields, self.values, strict=False))


Sink = Callable[[Record], None]


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Fill `template` with `fields`. An empty reason at the end is dropped with its colon: `now 5: {reason}`."""
    return template.format_map(fields).removesuffix(": ")


def _numbered(template: str) -> str:
    """Return `template` with its fields by number, which is filled twice as fast as by name."""
    pieces = []
    for number, (text, field, spec, conversion) in enumerate(Formatter().parse(template)):
        pieces.append(text.replace("{", "{{").replace("}", "}}"))
        if field is not None:
            pieces.append(f"{{{number}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}")
    return "".join(pieces)


class Event:
    """One kind of event. Call sites test `on`; calling it while off does nothing."""

    __slots__ = ("_numbered", "_sinks", "fields", "name", "on", "template")

    def __init__(self, name: str, template: str) -> None:
        self.name = name
        self.template = template
        self.fields = tuple(f for _, f, _, _ in Formatter().parse(template) if f)
        self._numbered = _numbered(template)
        self.on = False
        self._sinks: tuple[Sink, ...] = ()

    def __call__(self, *values: Any) -> None:
        """Record one occurrence; `values` in the order of `fields`."""
        if self._sinks:
            record = Record(time.monotonic(), self, threading.current_thread().name, values)
            for sink in self._sinks:
                sink(record)

    def format(self, *values: Any) -> str:
        """Format the message for these values."""
        return self._numbered.format(*values).removesuffix(": ")


class Pattern:
    """A selection of events: shell wildcards separated by commas, `!` before exclusions: `vmbus_*,!*_msg`."""

    __slots__ = ("excluded", "wanted")

    def __init__(self, text: str) -> None:
        words = [word.strip() for word in text.split(",") if word.strip()]
        self.excluded = [word[1:] for word in words if word.startswith("!")]
        self.wanted = [word for word in words if not word.startswith("!")] or (["*"] if words else [])

    def matches(self, name: str) -> bool:
        """Return whether the pattern selects the event called `name`."""
        return any(fnmatchcase(name, word) for word in self.wanted) and not any(
            fnmatchcase(name, word) for word in self.excluded
        )


_events: dict[str, Event] = {}
_subscriptions: list[tuple[Pattern, Sink]] = []
_lock = threading.Lock()


def event(name: str, template: str = "") -> Event:
    """Declare an event; `template` is a format string that names its fields. Declaring a name twice is our bug."""
    with _lock:
        assert name not in _events, f"trace event {name} declared twice"
        made = _events[name] = Event(name, template)
        _connect(made)
    return made


def _connect(target: Event) -> None:
    target._sinks = tuple(dict.fromkeys(s for p, s in _subscriptions if p.matches(target.name)))
    target.on = bool(target._sinks)


def subscribe(pattern: str, sink: Sink) -> None:
    """Send every event that `pattern` selects (see `Pattern`) to `sink`, events declared later too."""
    with _lock:
        _subscriptions.append((Pattern(pattern), sink))
        for each in _events.values():
            _connect(each)


def unsubscribe(sink: Sink) -> None:
    """Remove every subscription of `sink`."""
    with _lock:
        _subscriptions[:] = [(p, s) for p, s in _subscriptions if s is not sink]
        for each in _events.values():
            _connect(each)


def events() -> list[Event]:
    """Return all events declared so far, by name."""
    return sorted(_events.values(), key=lambda e: e.name)


def find(name: str) -> Event | None:
    """Return the event declared under `name`."""
    return _events.get(name)


def matching(pattern: str) -> list[Event]:
    """Return the events declared so far that `pattern` selects, by name."""
    wanted = Pattern(pattern)
    return [each for each in events() if wanted.matches(each.name)]


def check_pattern(pattern: str) -> str:
    """Return `pattern`. Raises ConfigError if a word of it matches no declared event."""
    parsed = Pattern(pattern)
    for word in parsed.wanted:
        if not any(fnmatchcase(name, word) for name in _events):
            raise ConfigError(f"no trace event matches {word[:60]!r}: `pyvmm trace --list` shows them")
    if not matching(pattern):
        raise ConfigError(f"{pattern[:60]!r} leaves no trace event: `pyvmm trace --list` shows them")
    return pattern


class TextSink:
    """Writes lines of `seconds name message`, seconds since the sink was made."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._start = time.monotonic()

    def line(self, record: Record) -> str:
        """Format `record` as a line."""
        return f"{record.time - self._start:.6f} {one_line(record.text())}\r\n"

    def __call__(self, record: Record) -> None:
        self._stream.write(self.line(record))


class TailSink:
    """Keeps the last `size` records, for a failing test or a crash report."""

    def __init__(self, size: int = 100) -> None:
        self.records: deque[Record] = deque(maxlen=size)

    def __call__(self, record: Record) -> None:
        self.records.append(record)

    def lines(self) -> Iterable[str]:
        return [f"{r.time:.6f} {r.text()}" for r in list(self.records)]


started = event("trace.started", "{machine} at {wall_clock}")
dropped = event("trace.dropped", "{count} events lost: {reason}")
"""Event of a sink itself: every sink with a queue records how many events it dropped."""
