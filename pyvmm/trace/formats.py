"""Encoders of trace records as text or JSON. They do no I/O: records in, text out.

A JSON line holds `time` (seconds of the machine's monotonic clock), `event`, `thread`, then the event's own fields by
name. Lines are built from a template made once for each event: a tenth of a millisecond for a hundred of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as quote
from pathlib import Path
from typing import Any, Protocol

from pyvmm.guest_text import one_line
from pyvmm.trace import Event, Record

FORMATS = ("text", "json", "chrome")

_ENDINGS = {
    ".txt": "text",
    ".log": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "chrome",
    ".perfetto": "chrome",
}


def format_of(path: Path) -> str:
    """Return the format for a file's suffix: `.txt` and `.log` text, `.json` Chrome's, anything else JSON lines."""
    return _ENDINGS.get(path.suffix.lower(), "json")


CHUNK = 8
"""Records formatted between two releases of the GIL, some 20 µs of Python: the latest delay of an exit."""


def encode_in_turns(records: Sequence[Record], encode: Callable[[Record], str]) -> list[str]:
    """Encode records one by one, releasing the GIL every few of them so that a vCPU thread can answer an exit."""
    texts: list[str] = []
    for start in range(0, len(records), CHUNK):
        if start:
            time.sleep(0)
        texts += [encode(record) for record in records[start : start + CHUNK]]
    return texts


class Encoder(Protocol):
    """Turns records into a file's contents: `head()`, `encode` of each record in turn, `tail()`."""

    def head(self) -> str: ...

    def encode(self, record: Record) -> str: ...

    def tail(self) -> str: ...


class TextEncoder:
    """Encodes lines of `seconds name message`, seconds since the first record."""

    def __init__(self) -> None:
        self._start: float | None = None

    def head(self) -> str:
        return ""

    def encode(self, record: Record) -> str:
        if self._start is None:
            self._start = record.time
        return f"{record.time - self._start:.6f} {one_line(record.text())}\n"

    def tail(self) -> str:
        return ""


class JsonEncoder:
    """Encodes JSON lines."""

    def __init__(self) -> None:
        self._templates: dict[Event, str] = {}

    def head(self) -> str:
        return ""

    def tail(self) -> str:
        return ""

    def encode(self, record: Record) -> str:
        return self.object(record) + "\n"

    def object(self, record: Record) -> str:
        """Encode the record as one JSON object, without a newline."""
        template = self._templates.get(record.event)
        if template is None:
            template = self._templates[record.event] = _template(record.event)
        try:
            return template % (
                record.time,
                record.thread,
                *[value if type(value) is int else encode_value(value) for value in record.values],
            )
        except TypeError:  # as many values as fields is the rule, and not ours to enforce here
            return json.dumps(record.as_dict(), default=str)


def _template(event: Event) -> str:
    fields = "".join(f", {_plain(quote(name))}: %s" for name in event.fields)
    return f'{{"time": %.6f, "event": {_plain(quote(event.name))}, "thread": "%s"{fields}}}'


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def encode_value(value: Any) -> str:
    """Encode a field's value as JSON; objects of ours by their `str`."""
    match value:
        case str():
            return quote(value)
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))  # an IntEnum too
        case None | float() | list() | tuple() | dict():
            try:
                return json.dumps(value, default=str, allow_nan=False)
            except ValueError:
                return quote(str(value))
        case _:
            return quote(str(value))


def encoder(format: str) -> Encoder:
    """Return a new encoder for `text`, `json` or `chrome`."""
    makers: dict[str, Callable[[], Encoder]] = {"text": TextEncoder, "json": JsonEncoder, "chrome": _chrome}
    return makers[format]()


def _chrome() -> Encoder:
    from pyvmm.trace.chrome import ChromeEncoder

    return ChromeEncoder()
