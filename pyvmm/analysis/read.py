"""Readers of trace files: our JSON lines, text and Chrome format, and QEMU's log (`-d trace:PATTERN -D FILE`).

Source: QEMU docs/devel/tracing.rst and scripts/tracetool/backend/log.py, for the forms of its lines:

    vmbus_open_channel channel #1 gpadl #925200 target vp 0
    4711@1700000000.123456:vmbus_open_channel channel #1 gpadl #925200 target vp 0

Text is parsed back into fields by the template of the event that we declare under that name; without one, or if
it does not match, the whole message becomes the field `text`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Formatter
from typing import IO, Any, TypeGuard

from pyvmm import trace
from pyvmm.analysis.entry import Entry
from pyvmm.errors import ConfigError
from pyvmm.files import NUMBER_LIMIT, open_regular, parse_json

_LINE = re.compile(
    r"(?:(?P<pid>\d+)@(?P<qemu_time>\d+\.\d+):|(?P<time>\d+\.\d+) )?"
    r"(?P<name>[A-Za-z][A-Za-z0-9]*[._][A-Za-z0-9_.]+)(?: (?P<message>.*))?"
)
_SNIFF = 200
"""Lines without an event after which a file is taken not to be a trace."""


LINE_LIMIT = 1 << 20
"""Longest line in characters. The longest event (a panic's text, a command's output) has some ten thousand."""

EVENT_LIMIT = 2_000_000
"""Most events of a file, some 600 bytes of memory each."""

CHROME_LIMIT = 512 << 20
"""Most characters of a file in Chrome's format, which is read whole."""

TIME_LIMIT = 1e12
"""Largest time in seconds: thirty thousand years."""


@dataclass(slots=True)
class Trace:
    """A file's events in the order of their times, and the number of lines that were no event."""

    path: Path
    entries: list[Entry] = field(default_factory=list)
    skipped: int = 0

    @property
    def start(self) -> float:
        return self.entries[0].time if self.entries else 0.0

    @property
    def seconds(self) -> float:
        """Return the time from the first to the last event."""
        return self.entries[-1].time - self.start if self.entries else 0.0

    @property
    def dropped(self) -> int:
        """Return the number of events that the writer recorded as dropped."""
        return sum(entry.number("count") for entry in self.entries if entry.name == trace.dropped.name)


def read_trace(path: Path) -> Trace:
    """Read the events in `path`. ConfigError if it cannot be read or holds none."""
    found = Trace(path)
    descriptor = open_regular(path)
    try:
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            for entry in _events(file, path):
                if entry is not None:
                    found.entries.append(entry)
                    if len(found.entries) > EVENT_LIMIT:
                        raise ConfigError(f"{path}: more than {EVENT_LIMIT} events; cut it, or trace fewer of them")
                    continue
                found.skipped += 1
                if not found.entries and found.skipped > _SNIFF:
                    break
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not found.entries:
        raise ConfigError(f"{path} holds no trace events: `pyvmm run --trace-file {path}` makes such files")
    found.entries.sort(key=lambda entry: entry.time)  # threads queue in an order of their own
    return found


def _events(file: IO[str], path: Path) -> Iterator[Entry | None]:
    """Yield the file's events, None for each line that is no event."""
    first = file.readline(LINE_LIMIT)
    if first.lstrip()[:1] == "[":
        from pyvmm.analysis.chrome_read import chrome_entries

        text = first + file.read(CHROME_LIMIT)
        if len(text) > CHROME_LIMIT:
            raise ConfigError(
                f"{path}: more than {CHROME_LIMIT >> 20} MiB of Chrome's format; JSON lines may be longer"
            )
        yield from chrome_entries(text)
        return
    line = first
    while line:
        if len(line) >= LINE_LIMIT and line[-1] != "\n":
            while len(file.readline(LINE_LIMIT)) >= LINE_LIMIT:
                pass  # no event is that long
            yield None
        elif line.strip():
            yield parse_line(line)
        line = file.readline(LINE_LIMIT)


def parse_line(line: str) -> Entry | None:
    """Parse a line of any of the formats; None if it is no event."""
    return _from_json(line) if line.startswith("{") else _from_text(line)


def _from_json(line: str) -> Entry | None:
    try:
        found = parse_json(line)
    except ValueError:
        return None  # a truncated last line, of a machine that was killed
    return from_object(found) if isinstance(found, dict) else None


def from_object(found: Mapping[str, Any]) -> Entry | None:
    """Build an event from the JSON object of a JSON line or X_TRACE."""
    fields = dict(found)
    time, name, thread = (fields.pop(key, None) for key in ("time", "event", "thread"))
    if not is_time(time) or not isinstance(name, str):
        return None
    return Entry(float(time), name, str(thread or ""), fields)


def is_time(value: object) -> TypeGuard[int | float]:
    """Return whether the value is a usable number of seconds: no NaN, nothing beyond TIME_LIMIT."""
    return isinstance(value, (int, float)) and abs(value) < TIME_LIMIT


def _from_text(line: str) -> Entry | None:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        return None
    time = float(match["qemu_time"] or match["time"] or 0)
    if not is_time(time):
        return None
    return Entry(time, match["name"], "", _fields(match["name"], match["message"] or ""))


def _fields(name: str, message: str) -> dict[str, Any]:
    event = trace.find(name)
    if event is not None:
        pattern, bases = _pattern(event.template)
        for end in ("", " ", ": "):  # of an empty field at a line's end neither blank (once) nor colon (now) is kept
            if match := pattern.fullmatch(message + end):
                return {key: _value(text, bases[key]) for key, text in match.groupdict().items()}
    return {"text": message} if message else {}


def _value(text: str, base: int) -> Any:
    if len(text) > NUMBER_LIMIT:
        return text
    try:
        return int(text, base)
    except ValueError:
        return text


@cache
def _pattern(template: str) -> tuple[re.Pattern[str], dict[str, int]]:
    """Return the template as a regular expression, and the number base of each field (0: by its prefix)."""
    parts: list[str] = []
    bases: dict[str, int] = {}
    for literal, name, spec, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if name:
            parts.append(f"(?P<{name}>.*?)")
            bases[name] = 16 if (spec or "").lower() == "x" else 0
    return re.compile("".join(parts), re.DOTALL), bases


def rewrite(found: Trace, format: str) -> Iterator[str]:
    """Yield the trace as text, JSON lines or Chrome's format, piece by piece."""
    if format == "chrome":
        from pyvmm.machine.devices import load_devices
        from pyvmm.trace.chrome import ChromeEncoder

        load_devices()
        chrome = ChromeEncoder()
        yield chrome.head()
        for entry in found.entries:
            yield chrome.event(entry.time, entry.name, entry.thread, entry.fields)
        yield chrome.tail()
        return
    for entry in found.entries:
        if format == "json":
            head = {"time": entry.time, "event": entry.name, "thread": entry.thread}
            yield json.dumps(head | entry.fields) + "\n"
        else:
            yield f"{entry.time - found.start:.6f} {entry.name} {entry.message()}".rstrip() + "\n"
